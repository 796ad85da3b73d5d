"""Damaged model files: nothing but a MeraError comes out of a reader. The long form is tools/fuzz_readers.py."""

from __future__ import annotations

import io
import random
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))

import fuzz_readers  # noqa: E402
from fuzz_corpus import corpus  # noqa: E402
from fuzz_readers import Outcomes, Worker, damaged, file_of_run, fuzz, outcome  # noqa: E402

import mera_torch  # noqa: E402

NEEDS = {"tflite": ("tflite", "ai_edge_litert"), "onnx": ("onnx",), "keras": ("tensorflow",)}
RUNS = {"tflite": 250, "onnx": 250, "torchscript": 250}


def needed(format: str) -> None:
    for package in NEEDS.get(format, ()):
        pytest.importorskip(package)


@pytest.mark.parametrize("format", RUNS)
def test_damaged_files_are_imported_or_refused(format: str) -> None:
    needed(format)
    found = fuzz(format, RUNS[format], seconds=10, megabytes=1024)
    assert not found.bad, found
    assert sum(found.counts.values()) == RUNS[format]
    assert found.counts["imported"] > 0 and found.counts["refused: CorruptFileError"] > 0, found


@pytest.mark.slow
@pytest.mark.parametrize("format", ["pt2", "keras", "mera"])
def test_damaged_archives_are_imported_or_refused(format: str) -> None:
    needed(format)
    found = fuzz(format, 100, seconds=20)
    assert not found.bad, found
    assert found.counts["refused: CorruptFileError"] > 0, found


# ---- what the long form has found ----


def hard_swish(scale: float) -> bytes:
    from tflite_models import Builder

    m = Builder()
    x, y = (m.tensor(name, (1, 4), "int8", scale=s, zero_point=0) for name, s in (("x", 0.1), ("y", scale)))
    m.op("HARD_SWISH", [x], [y], "HardSwishOptions")
    return m.build([x], [y])


def test_hard_swish_with_an_output_much_finer_than_its_input_is_refused() -> None:
    needed("tflite")
    with pytest.raises(mera_torch.InvalidModelError, match="HARD_SWISH 'y'.*must be above 1/128 of its input's"):
        mera_torch.load_model(hard_swish(2.0**-20))


def test_scales_without_a_multiplier_are_refused() -> None:
    needed("tflite")
    for scale in (5e-41, 2.7e36):
        with pytest.raises(mera_torch.InvalidModelError, match="HARD_SWISH 'y'.*scale"):
            mera_torch.load_model(hard_swish(scale))


def test_a_constant_that_is_no_image_is_refused_where_an_image_must_be() -> None:
    needed("tflite")
    from tflite_models import Builder

    m = Builder()
    x = m.tensor("x", (1, 4), "float32")
    flat = m.constant("flat", np.ones((4, 4), np.float32))
    y = m.tensor("y", (1, 2, 2, 1), "float32")
    m.op(
        "MAX_POOL_2D",
        [flat],
        [y],
        "Pool2DOptions",
        padding="VALID",
        filterHeight=1,
        filterWidth=1,
        strideH=1,
        strideW=1,
    )
    with pytest.raises(mera_torch.InvalidModelError, match="MAX_POOL_2D 'y'"):
        mera_torch.load_model(m.build([x], [y]))


# ---- the fuzzer itself ----


def test_a_run_is_the_same_every_time() -> None:
    files = [("a", bytes(range(256)) * 4, {}), ("b", b"abc", {})]
    first = [file_of_run(number, files)[:2] for number in range(200)]
    assert first == [file_of_run(number, files)[:2] for number in range(200)]
    assert len(set(first)) > 150
    assert {len(data) for _, data in first} > {1024}  # some are shorter or longer, some are not


def test_every_alteration_alters() -> None:
    for alter in set(fuzz_readers.ALTERATIONS):
        changed = 0
        for seed in range(20):
            data = bytearray(bytes(range(256)) * 2)
            alter(data, random.Random(seed))
            changed += bytes(data) != bytes(range(256)) * 2
            alter(bytearray(), random.Random(seed))  # nothing to alter is no error
        assert changed >= 15, alter.__name__


def test_members_of_archives_are_damaged_within_an_archive_in_order() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data", bytes(1000))
    whole = 0
    for seed in range(60):
        try:
            with zipfile.ZipFile(io.BytesIO(damaged(buffer.getvalue(), random.Random(seed)))) as archive:
                whole += archive.testzip() is None and archive.read("data") != bytes(1000)
        except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, ValueError, RuntimeError):
            continue
    assert whole >= 15


def test_what_escapes_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise KeyError("missing")

    monkeypatch.setattr(mera_torch, "load_model", wrong, raising=False)
    found, message = outcome(b"", {})
    assert found == "escaped: KeyError" and "missing" in message and ":" in message
    outcomes = Outcomes()
    outcomes.add(7, found, message)
    outcomes.add(8, "refused: CorruptFileError", "")
    assert outcomes.bad == ["escaped: KeyError"]
    assert "run 7: " in str(outcomes) and "50.00%  refused: CorruptFileError" in str(outcomes)


@pytest.fixture
def worker() -> Iterator[Worker]:
    with tempfile.TemporaryFile() as log:
        made = Worker([], 0.5, log)
        yield made
        made.close()


def test_a_crash_is_recorded_and_the_next_run_has_a_new_process(worker: Worker) -> None:
    answer = 'print(\'["imported", "", 0.1]\', flush=True)'
    code = f"import os, sys\nfor line in sys.stdin:\n  os.abort() if int(line) == 1 else {answer}"
    worker._command = [sys.executable, "-c", code]
    assert [worker.run(number)[0] for number in (0, 1, 2)] == ["imported", "crashed: SIGABRT", "imported"]


def test_a_run_without_end_is_recorded(worker: Worker) -> None:
    code = "import signal\ninput()\nsignal.setitimer(signal.ITIMER_PROF, 0.1)\nwhile True: pass"
    worker._command = [sys.executable, "-c", code]
    assert worker.run(0)[0] == "timed out"


def test_a_worker_that_cannot_start_is_no_result(worker: Worker) -> None:
    worker._command = [sys.executable, "-c", "raise SystemExit('no such corpus')"]
    with pytest.raises(SystemExit, match="no such corpus"):
        worker.run(0)


def test_files_of_a_folder_are_damaged_too(tmp_path: Path) -> None:
    needed("onnx")
    (tmp_path / "own.onnx").write_bytes(b"own")
    names = [name for name, _, _ in corpus("onnx", tmp_path)]
    assert names[-1] == "own.onnx" and len(names) == len(corpus("onnx")) + 1
