"""The IP target: the driver and the emulated board give what the Simulator gives, in bytes and cycles."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boards
import numpy as np
import pytest
from boards import MACHINE, OTHER, inputs, pcie_options, program, right, served
from random_graphs import random_graph, random_inputs

from mera_torch import device, emulated, native
from mera_torch.bisect import build
from mera_torch.errors import (
    ConfigError,
    DeviceAbsentError,
    DeviceBusyError,
    DeviceFaultError,
    DoesNotFitError,
    InvalidModelError,
    MeraError,
    OutOfMemoryError,
    StateError,
    StorageError,
)
from mera_torch.platform import Platform, find


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The runtime folder of this test's boards."""
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where boards are by default; what this process opened there is given up in the end."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder
    device._opened.close()


# ---- the same bytes, the same cycles ----

PLATFORMS = [find("DNAF132S0001"), find("SAKURA_1"), MACHINE, OTHER]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, native.Device]]:
    """A device of each platform."""
    folder = tmp_path_factory.mktemp("boards")
    folder.chmod(0o700)
    with contextlib.ExitStack() as stack:
        found = {}
        for platform in PLATFORMS:
            board = stack.enter_context(served(folder, platform))
            found[platform.name] = stack.enter_context(native.Device(board.address, runtime_folder=folder))
        yield found


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda p: p.name)
@pytest.mark.parametrize("seed", range(6))
def test_random_graphs(platform: Platform, seed: int, engines: dict[str, native.Device]) -> None:
    graph = random_graph(random.Random(seed), nodes=8)
    built, given_inputs = build(graph), random_inputs(graph, seed)
    try:
        compiled = built.compile(platform)
    except DoesNotFitError:
        pytest.skip("it does not fit")
    engine, simulator = engines[platform.name].engine(compiled), native.Simulator(compiled)
    wanted = native.Interpreter(built).run(given_inputs)
    found, simulated = engine.run(given_inputs), simulator.run(given_inputs)
    for w, s, f in zip(wanted, simulated, found, strict=True):
        assert np.array_equal(w.reshape(-1), f) and np.array_equal(s, f)
    assert engine.stats() == simulator.stats()
    engine.unload()


def test_several_programs_stay_loaded(folder: Path) -> None:
    with served(folder) as board, native.Device(board.address, runtime_folder=folder) as dev:
        free = dev.info().memory_free
        engines = {name: dev.engine(program(name)) for name in ("residual", "convolution")}
        for seed in range(4):
            for name, engine in engines.items():
                assert right(engine.run(inputs(seed, name)), seed, name)
        assert dev.info().memory_free < free
        for engine in engines.values():
            engine.unload()
        assert dev.info().memory_free == free


def test_counters_are_those_of_the_simulator_times_the_runs(folder: Path) -> None:
    simulator = native.Simulator(program())
    with served(folder) as board, native.Device(board.address, runtime_folder=folder) as dev:
        engine = dev.engine(program())
        for seed in range(3):
            engine.run(inputs(seed))
        counters, stats = dev.counters(), simulator.stats()
        names = {
            "cycles": "cycles", "instructions": "instructions", "array_busy": "array_busy_cycles",
            "dram_read": "dram_bytes_read", "dram_written": "dram_bytes_written", "sram_read": "sram_words_read",
            "window_busy": "window_busy_cycles", "bank_conflicts": "bank_conflict_cycles",
            "dma_busy": "dma_busy_cycles", "vector_busy": "vector_busy_cycles", "sram_written": "sram_words_written",
        }  # fmt: skip
        assert {name: counters[name] for name in names} == {name: 3 * stats[key] for name, key in names.items()}
        assert counters["runs"] == 3 and counters["host_written"] == 3 * sum(program().output_bytes)
        dev.reset()
        assert dev.counters()["runs"] == 0
        assert right(engine.run(inputs(1)), 1)


def test_many_requests_in_flight(folder: Path) -> None:
    """More than the completion ring has entries; waited for in any order."""
    with served(folder) as board, native.Device(board.address, runtime_folder=folder) as dev:
        engine = dev.engine(program())
        requests = [(seed % 7, engine.start(inputs(seed % 7))) for seed in range(600)]
        for seed, request in sorted(requests, key=lambda r: hash((r[0], id(r)))):
            assert right(request.wait(), seed)
        assert requests[0][1].device is dev
        with pytest.raises(StateError, match="no request"):
            requests[0][1].wait()


def test_inputs_larger_than_a_page_and_dma_memory_in_use(folder: Path) -> None:
    """DMA memory for three requests: the fourth one waits for it."""
    with served(folder, dma_bytes=1 << 17) as board, native.Device(board.address, runtime_folder=folder) as dev:
        engine = dev.engine(program("convolution"))
        requests = [engine.start(inputs(seed, "convolution")) for seed in range(8)]
        for seed, request in enumerate(requests):
            assert right(request.wait(), seed, "convolution")


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ([], "1 input"),
        ([np.zeros(3, np.int8)], "input 0 .'x'. has 3 bytes, the program needs 1440"),
        ([np.zeros(1440, np.float32)], "must be an int8 numpy array, got float32"),
    ],
)
def test_wrong_inputs(arrays: list[np.ndarray], match: str, engines: dict[str, native.Device]) -> None:
    with pytest.raises(InvalidModelError, match=match):
        engines[MACHINE.name].engine(program()).run(arrays)


# ---- pcie ----


@pytest.mark.parametrize("interrupts", [True, False])
def test_pcie(interrupts: bool, folder: Path) -> None:
    """Registers in a file, DMA memory with gaps on the bus, and interrupts from a UIO device, or none."""
    with served(folder, pcie_root=folder) as board:
        if not interrupts:
            for link in (folder / "dev").iterdir():
                link.unlink()
        (found,) = device.discover(**pcie_options(folder), runtime_folder=folder)
        assert (found.address, found.state, found.platform) == (board.address, "free", MACHINE)
        with native.Device(board.address, **pcie_options(folder)) as dev:
            assert dev.info().interrupts or not interrupts
            for name in ("residual", "convolution"):
                engine = dev.engine(program(name))
                for seed in range(20):
                    assert right(engine.run(inputs(seed, name)), seed, name)
                assert engine.stats() == native.Simulator(program(name)).stats()
            (found,) = device.discover(**pcie_options(folder), runtime_folder=folder)
            assert (found.state, found.holder) == ("busy", os.getpid())
            config = (folder / f"sys/bus/pci/devices/{board.address.removeprefix('pcie:')}/config").read_bytes()
            assert config[4] & 6 == 6, "bus master"
        assert list((folder / "hugepages").iterdir()) == []


def test_pcie_of_others(folder: Path) -> None:
    with served(folder, pcie_root=folder) as board:
        options = pcie_options(folder)
        assert device.discover(**options, runtime_folder=folder, vendor_id=0x10EE) == []
        with pytest.raises(DeviceAbsentError, match="no DNA board: vendor 0xecd1"):
            native.Device(board.address, **options, vendor_id=0x10EE)
        with pytest.raises(DeviceAbsentError, match="no device pcie:0000:07"):
            native.Device("pcie:0000:07:00.0", **options)
        with pytest.raises(InvalidModelError, match="hugetlbfs"):
            native.Device(board.address, **{**options, "pagemap": None})
        (folder / "pagemap").write_bytes(b"")
        with pytest.raises(StorageError, match="physical addresses"):
            native.Device(board.address, **options)
        os.truncate(folder / "pagemap", 1 << 38)
        with pytest.raises(StorageError, match="SYS_ADMIN"):
            native.Device(board.address, **options)
        resource = folder / f"sys/bus/pci/devices/{board.address.removeprefix('pcie:')}/resource"
        resource.write_text("0x0 0x0 0x0\n")
        with pytest.raises(DeviceFaultError, match="BAR 0"):
            native.Device(board.address, **options)


# ---- faults: each is reported, and afterwards the device gives the right bytes ----


@pytest.mark.parametrize(
    ("fault", "match", "load_fails"),
    [
        ({"hang_at_run": 2}, "it hung: request .* is not complete after 0.[23]", False),
        ({"flip_code_at_load": 1}, "checksum of a program's instructions is wrong", True),
        ({"flip_constants_at_load": 1}, "checksum of a program's constants is wrong", True),
    ],
    ids=["hang", "flip_code", "flip_constants"],
)
def test_fault(fault: dict[str, int], match: str, load_fails: bool, folder: Path) -> None:
    with (
        served(folder, **fault) as board,
        native.Device(board.address, runtime_folder=folder, timeout_ms=250) as dev,
    ):
        if load_fails:
            with pytest.raises(DeviceFaultError, match=match):
                dev.engine(program())
            engine = dev.engine(program())
        else:
            engine = dev.engine(program())
            assert right(engine.run(inputs(1)), 1)
            start = time.monotonic()
            with pytest.raises(DeviceFaultError, match=match):
                engine.run(inputs(2))
            assert time.monotonic() - start < 2
        for seed in range(3):
            assert right(engine.run(inputs(seed)), seed)


def test_hang_fails_all_requests_in_flight(folder: Path) -> None:
    with (
        served(folder, hang_at_run=3) as board,
        native.Device(board.address, runtime_folder=folder, timeout_ms=250) as dev,
    ):
        engine = dev.engine(program())
        requests = [engine.start(inputs(seed)) for seed in range(5)]
        for seed in range(2):
            assert right(requests[seed].wait(), seed)
        for request in requests[2:]:
            with pytest.raises(DeviceFaultError, match="hung"):
                request.wait()
        assert right(engine.run(inputs(4)), 4)


@pytest.mark.parametrize("every_run", [False, True])
def test_bit_flip_in_memory(every_run: bool, folder: Path) -> None:
    """Found by verify(), or by the run itself; the next run loads the program again."""
    with (
        served(folder, flip_memory_after_run=1) as board,
        native.Device(board.address, runtime_folder=folder, verify_runs=int(every_run)) as dev,
    ):
        engine = dev.engine(program())
        other = dev.engine(program("convolution"))
        assert right(engine.run(inputs(1)), 1)
        with pytest.raises(DeviceFaultError, match="checksum of a program's constants"):
            engine.run(inputs(1)) if every_run else dev.verify(engine.slot)
        assert right(other.run(inputs(2, "convolution")), 2, "convolution")
        assert right(engine.run(inputs(2)), 2)
        dev.verify(engine.slot)


def test_lost_interrupts_and_slow_devices(folder: Path) -> None:
    with served(folder, lose_interrupt=4, slow_ms=30) as board, native.Device(runtime_folder=folder) as dev:
        assert dev.address == board.address
        engine = dev.engine(program())
        for seed in range(6):
            start = time.monotonic()
            assert right(engine.run(inputs(seed)), seed)
            assert 0.03 <= time.monotonic() - start < 5


def test_garbage_identification(folder: Path) -> None:
    with served(folder, garbage=1) as board:
        (found,) = device.discover(runtime_folder=folder)
        assert found.state == "unidentified" and "MAGIC is 0x9e3779b9" in str(found.error)
        with pytest.raises(DeviceFaultError, match="identifies itself with nonsense: MAGIC is 0x"):
            native.Device(board.address, runtime_folder=folder)
    with served(folder) as board, native.Device(board.address, runtime_folder=folder) as dev:
        assert right(dev.engine(program()).run(inputs(1)), 1)


def test_out_of_device_memory(folder: Path) -> None:
    with (
        served(folder, memory_bytes=40 << 10, slots=3) as board,
        native.Device(board.address, runtime_folder=folder) as dev,
    ):
        engine = dev.engine(program())
        needed = r"needs \d+ bytes of device memory .* of its 40960 bytes \d+ are free"
        with pytest.raises(OutOfMemoryError, match=needed):
            dev.engine(program("convolution"))
        assert right(engine.run(inputs(1)), 1)
        others = [dev.engine(program()) for _ in range(2)]
        with pytest.raises(OutOfMemoryError, match="all of its 3 slots"):
            dev.engine(program())
        others.pop().unload()
        assert right(dev.engine(program()).run(inputs(2)), 2)


def test_too_little_dma_memory(folder: Path) -> None:
    with served(folder, dma_bytes=1 << 16) as board, native.Device(board.address, runtime_folder=folder) as dev:
        big = boards.dna.graph(boards.dna.convolution(h=64, w=64, ci=16, co=8)).compile(MACHINE)
        engine = dev.engine(big)
        with pytest.raises(OutOfMemoryError, match=r"98304 bytes of DMA memory at once, of 65536"):
            engine.run([np.zeros(1 << 16, np.int8)])
        assert right(dev.engine(program()).run(inputs(1)), 1)


def test_dies(folder: Path) -> None:
    """A process that dies as a crash does: reported at once, its folder cleaned up, and another can be started."""
    with device.start_emulated(MACHINE, runtime_folder=folder, die_at_run=2) as board:
        with native.Device(board.address, runtime_folder=folder) as dev:
            engine = dev.engine(program())
            assert right(engine.run(inputs(1)), 1)
            start = time.monotonic()
            for _ in range(2):
                with pytest.raises(DeviceFaultError, match="it is gone|is gone"):
                    engine.run(inputs(2))
            assert time.monotonic() - start < 5 and not dev.alive()
    assert sorted(p.name for p in folder.iterdir()) == ["board-0", "lock"]
    assert device.discover(runtime_folder=folder) == []
    assert sorted(p.name for p in folder.iterdir()) == ["lock"]
    with device.start_emulated(MACHINE, runtime_folder=folder) as board:
        assert board.address == "emulated:0"
        with native.Device(board.address, runtime_folder=folder) as dev:
            assert right(dev.engine(program()).run(inputs(2)), 2)


HOLD = """
import sys, mera_torch.native as native
device = native.Device("emulated:0", runtime_folder=sys.argv[1])
print("holds", flush=True)
sys.stdin.read()
"""


def test_in_use_by_another_process(folder: Path) -> None:
    with served(folder) as board:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "holds\n"
        with pytest.raises(DeviceBusyError, match=f"in use by process {holder.pid}"):
            native.Device(board.address, runtime_folder=folder)
        (found,) = device.discover(runtime_folder=folder)
        assert (found.state, found.holder) == ("busy", holder.pid)
        with pytest.raises(DeviceBusyError, match="no device is free: 1"):
            native.Device(runtime_folder=folder)
        holder.kill()  # gives the device up, whatever it was doing
        holder.wait()
        with native.Device(board.address, runtime_folder=folder) as dev:
            assert right(dev.engine(program()).run(inputs(1)), 1)
            with pytest.raises(DeviceBusyError, match="in use by this process"):
                native.Device(board.address, runtime_folder=folder)


def test_other_platform(folder: Path) -> None:
    with served(folder, OTHER) as board, native.Device(board.address, runtime_folder=folder) as dev:
        match = f"compiled for platform {MACHINE.name}, device {board.address} is {OTHER.name} .units: 1 and 2"
        with pytest.raises(InvalidModelError, match=match):
            dev.engine(program())
        assert right(dev.engine(program("residual", OTHER)).run(inputs(3)), 3)


def test_closed_or_forked(folder: Path) -> None:
    with served(folder) as board:
        dev = native.Device(board.address, runtime_folder=folder)
        engine = dev.engine(program())
        child = os.fork()
        if child == 0:
            status = 1
            try:
                engine.run(inputs(0))
            except StateError as error:
                status = 0 if "before a fork" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert right(engine.run(inputs(1)), 1)
        dev.close()
        dev.close()
        with pytest.raises(StateError, match="closed"):
            engine.run(inputs(1))
        native.Device(board.address, runtime_folder=folder).close()


# ---- registers with anything in them ----


def test_registers_may_hold_anything(folder: Path) -> None:
    """Written to at random while the driver works: an error of ours or the right bytes, and never for long."""
    rng = np.random.default_rng(5)
    with served(folder) as board:
        bar = np.memmap(folder / "board-0" / "bar", np.uint32, "r+", shape=1024)
        stop = threading.Event()

        def lie() -> None:
            while not stop.is_set():
                where = int(rng.integers(0x100 if rng.random() < 0.9 else 0, 0x200)) // 4
                was = bar[where]
                bar[where] = rng.choice([0, 1, 2, 7, 255, 1 << 16, 2**32 - 1, rng.integers(2**32)])
                time.sleep(rng.random() * 2e-3)
                bar[where] = was

        liar = threading.Thread(target=lie)
        liar.start()
        end, good, bad = time.monotonic() + 3, 0, 0
        while time.monotonic() < end:
            with (
                contextlib.suppress(MeraError),
                native.Device(board.address, runtime_folder=folder, timeout_ms=50) as dev,
            ):
                engine = dev.engine(program())
                for seed in range(50):
                    start = time.monotonic()
                    try:
                        assert right(engine.run(inputs(seed)), seed)
                        good += 1
                    except DeviceFaultError:
                        bad += 1
                    assert time.monotonic() - start < 5
        stop.set()
        liar.join()
        assert good and bad


# ---- several devices, threads, processes ----


def test_eight_threads_on_four_devices(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(device.start_emulated(MACHINE, runtime_folder=folder)) for _ in range(4)]
        addresses = [board.address for board in started]
        assert addresses == [f"emulated:{n}" for n in range(4)]
        engine = device.engine(program(), [0, 1, "emulated:2", "emulated:3"], runtime_folder=folder)
        assert engine.devices == addresses

        def work(thread: int) -> bool:
            return all(right(engine.run(inputs(s % 9)), s % 9) for s in range(thread, thread + 60))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))
        runs = [counters["runs"] for counters in engine.counters().values()]
        assert sum(runs) == 480 and min(runs) > 0
        for address in addresses:
            device.close_device(address)


RUN = """
import sys
sys.path.insert(0, sys.argv[2])
import boards
from mera_torch import native
device = native.Device(runtime_folder=sys.argv[1])
engine = device.engine(boards.program())
assert all(boards.right(engine.run(boards.inputs(seed % 5)), seed % 5) for seed in range(100))
print(device.address)
"""


def test_two_processes_have_a_device_each(folder: Path) -> None:
    with served(folder), served(folder):
        arguments = [sys.executable, "-c", RUN, folder, Path(__file__).parent]
        both = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        found = [process.communicate()[0].strip() for process in both]
        assert [process.returncode for process in both] == [0, 0]
        assert set(found) <= {"emulated:0", "emulated:1"}


# ---- mera_torch.device ----


def test_starts_one_where_there_is_none_and_says_so(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = device.engine(program())
    (message,) = [record.message for record in caplog.records]
    assert f"no free device for {MACHINE.name} was found: emulated:0, an emulated one, was started" in message
    again = device.engine(program("convolution"))
    assert len(caplog.records) == 1 and again.devices == engine.devices == ["emulated:0"]
    assert right(engine.run(inputs(1)), 1) and right(again.run(inputs(1, "convolution")), 1, "convolution")
    other = device.engine(program("residual", OTHER))
    assert len(caplog.records) == 2 and other.devices == ["emulated:1"]
    assert right(other.run(inputs(1)), 1)
    (started,) = [board for (_, address), board in device._opened.started.items() if address == "emulated:0"]
    os.kill(started.process.pid, 9)
    started.process.wait()
    with pytest.raises(DeviceFaultError, match="gone"):
        engine.run(inputs(2))
    assert right(engine.run(inputs(2)), 2) and right(again.run(inputs(2, "convolution")), 2, "convolution")
    assert len(caplog.records) == 3


@pytest.mark.parametrize(
    ("ids", "error", "match"),
    [
        ([], ConfigError, "empty"),
        ([0], DeviceAbsentError, "no device 0: 0 were found"),
        (["emulated:0"], DeviceAbsentError, "no device emulated:0; 'mera device' starts one"),
        (["emulated:x"], DeviceAbsentError, "no device emulated:x"),
        (["emulated"], InvalidModelError, "an address is"),
        (["usb:0"], InvalidModelError, "an address is"),
        (["emulated:0", "emulated:0"], ConfigError, "twice"),
        ([1.5], ConfigError, "addresses and indices"),
        ([True], ConfigError, "addresses and indices"),
    ],
)
def test_wrong_device_ids(ids: list[object], error: type[Exception], match: str, home: Path) -> None:
    with pytest.raises(error, match=match):
        device.engine(program(), ids)  # type: ignore[arg-type]


def test_pcie_board_of_another_platform_is_not_passed_over(folder: Path) -> None:
    with served(folder, OTHER, pcie_root=folder):
        with pytest.raises(InvalidModelError, match=f"platform {MACHINE.name}, no device is one: .*{OTHER.name}"):
            device.engine(program(), **pcie_options(folder), runtime_folder=folder)


def test_ends_with_its_parent(folder: Path) -> None:
    code = f"""
from mera_torch import device
import json
import os
device.start_emulated("DNAF132S0001", runtime_folder={str(folder)!r})
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    end = time.monotonic() + 10
    while device.discover(runtime_folder=folder) and time.monotonic() < end:
        time.sleep(0.05)
    assert device.discover(runtime_folder=folder) == []


def test_does_not_start(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(Exception, match="did not start: error: .*mode 0700"):
        device.start_emulated(MACHINE, runtime_folder=tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'slow_ms'"):
        native.Board(MACHINE, slow=3)
    with pytest.raises(InvalidModelError, match="at most 16 TiB"):
        native.Board(MACHINE, memory_bytes=-1)


def test_folder_of_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StorageError, match="mode 0700"):
        device.discover(runtime_folder=tmp_path)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_idle_devices_sleep(folder: Path) -> None:
    with device.start_emulated(MACHINE, runtime_folder=folder) as board:
        with native.Device(board.address, runtime_folder=folder) as dev:
            assert right(dev.engine(program()).run(inputs(1)), 1)
            before, own = cpu_seconds(board.process.pid), time.process_time()
            time.sleep(1)
            assert cpu_seconds(board.process.pid) - before <= 0.05
            assert time.process_time() - own < 0.1


def test_needs_no_torch() -> None:
    code = "import sys, mera_torch.device; assert not {'torch', 'typer', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_main_lists(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(folder):
        assert emulated.main(["--list", "--runtime-folder", str(folder)]) == 0
        assert '"emulated:0"' in capsys.readouterr().out
    assert emulated.main(["--platform", "SAKURA", "--runtime-folder", str(folder)]) == 1
    assert emulated.main(["--fault", "hang=1"]) == 1
    assert "did you mean 'SAKURA_I" in capsys.readouterr().err


def test_command_line(home: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mera_torch", "device"]
    serving = subprocess.Popen(
        [*command, "--platform", "DNAF132S0001", "--count", "2", "--memory-mib", "64", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert serving.stdout is not None
    assert json.loads("".join(iter(serving.stdout.readline, "}\n")) + "}")["devices"] == ["emulated:0", "emulated:1"]
    listed = subprocess.run([*command, "--list", "--json"], capture_output=True, text=True, check=True)
    assert [(b["state"], b["memory_bytes"]) for b in json.loads(listed.stdout)] == [("free", 64 << 20)] * 2
    with native.Device() as dev:
        assert dev.info().platform == find("DNAF132S0001")
        busy = subprocess.run([*command, "--list"], capture_output=True, text=True, check=True).stdout
        assert "DNAF132S0001" in busy and "busy" in busy and str(os.getpid()) in busy
    serving.send_signal(signal.SIGINT)
    assert serving.wait(10) == 0
    serving.stdout.close()
    wrong = subprocess.run([*command, "--fault", "hang"], capture_output=True, text=True, check=False)
    assert wrong.returncode != 0 and "did you mean 'hang_at_run'" in wrong.stderr


def test_no_room_for_dma_memory(folder: Path) -> None:
    with pytest.raises(StorageError, match=f"needs {(1 << 40) + 8192} bytes for DMA in .* are free"):
        native.Board(MACHINE, runtime_folder=folder, dma_bytes=1 << 40)
    assert sorted(p.name for p in folder.iterdir()) == ["lock"]


def test_at_most_64_boards(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(64):
            board = native.Board(MACHINE, runtime_folder=folder, dma_bytes=1 << 16, memory_bytes=1 << 20)
            stack.callback(board.close)
            assert board.address == f"emulated:{number}"
        with pytest.raises(InvalidModelError, match="64 emulated devices already"):
            native.Board(MACHINE, runtime_folder=folder)
        assert len(device.discover(runtime_folder=folder)) == 64
    assert device.discover(runtime_folder=folder) == []
