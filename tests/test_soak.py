"""Long use: eight threads on four emulated devices, and a thousand runs on one engine: no wrong byte, no leak."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest
from boards import MACHINE, inputs, program, right

from mera_torch import device

SECONDS = float(os.environ.get("MERA_SOAK_SECONDS", "300"))
WARM_UP = 0.2  # of the time: allocators, caches and stacks grow meanwhile
GROWTH = 1 << 20  # bytes that a process may grow by afterwards: noise of allocators


def resident(pid: int) -> int:
    """Bytes of a process that are its own in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.slow
def test_eight_threads_on_four_devices_for_five_minutes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    names, seeds = ("residual", "convolution"), range(16)
    assert all(right(device_free(name, seed), seed, name) for name in names for seed in seeds)  # computed beforehand
    with contextlib.ExitStack() as stack:
        boards = [stack.enter_context(device.start_emulated(MACHINE, runtime_folder=folder)) for _ in range(4)]
        addresses = [board.address for board in boards]
        engines = {name: device.engine(program(name), addresses, runtime_folder=folder) for name in names}
        end, wrong, counts = time.monotonic() + SECONDS, threading.Event(), [0] * 8

        def work(thread: int) -> None:
            while time.monotonic() < end and not wrong.is_set():
                name, seed = names[counts[thread] % 2], (thread + counts[thread]) % len(seeds)
                try:
                    if not right(engines[name].run(inputs(seed, name)), seed, name):
                        wrong.set()
                except BaseException:
                    wrong.set()
                    raise
                counts[thread] += 1

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        pids = [os.getpid(), *(board.process.pid for board in boards)]
        time.sleep(WARM_UP * SECONDS)
        before = [resident(pid) for pid in pids]
        for thread in threads:
            thread.join()
        after = [resident(pid) for pid in pids]
        assert not wrong.is_set(), "wrong bytes, or an error"
        runs = [counters["runs"] for counters in engines["residual"].counters().values()]
        assert sum(runs) == sum(counts) and min(counts) > 0
        grown = {pid: late - early for pid, early, late in zip(pids, before, after, strict=True)}
        print(f"{sum(counts)} runs in {SECONDS:g} s; bytes grown by process: {grown}")
        assert max(grown.values()) <= GROWTH, grown
        for address in addresses:
            device.close_device(address)


def device_free(name: str, seed: int) -> list:
    """The outputs without a device."""
    from mera_torch import native

    return native.Simulator(program(name)).run(inputs(seed, name))


def test_thousand_runs_on_one_engine(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with device.start_emulated(MACHINE, runtime_folder=tmp_path) as board:
        engine = device.engine(program(), [board.address], runtime_folder=tmp_path)
        for seed in range(300):
            assert right(engine.run(inputs(seed % 9)), seed % 9)
        before = [resident(pid) for pid in (os.getpid(), board.process.pid)]
        for seed in range(1000):
            assert right(engine.run(inputs(seed % 9)), seed % 9)
        after = [resident(pid) for pid in (os.getpid(), board.process.pid)]
        assert all(late - early <= GROWTH for early, late in zip(before, after, strict=True))
        device.close_device(board.address)
