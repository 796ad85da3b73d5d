"""Damages real model files and reads them: nothing but a MeraError may come out of a reader.

    python tools/fuzz_readers.py --format tflite --runs 100000
    python tools/fuzz_readers.py --format onnx --only 4711             # one run again, with the traceback

Run number N (--seed S and up) always damages the same file in the same way. The runs happen in worker processes with a
limit of memory and of processor time a run, so that one that crashes or hangs is recorded, by its number, and the rest
goes on.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import os
import random
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzz_corpus import MAKERS, Files, corpus  # type: ignore[import-not-found]  # noqa: E402

HOSTILE = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 4, 2**63 - 1, 2**63, 2**64 - 1)
SHOWN = 10
PATIENCE = 10  # seconds of the clock for one of processor time: the machine may be busy
STARTING_SECONDS = 300.0


# ---- damage ----


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The file with one to four alterations; of an archive, every other time those are within a member, and the archive
    is in order."""
    if zipfile.is_zipfile(io.BytesIO(data)) and rng.random() < 0.5:
        return _damaged_member(data, rng)
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        rng.choice(ALTERATIONS)(found, rng)
    return bytes(found)


def _damaged_member(data: bytes, rng: random.Random) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        members = source.infolist()
        chosen = rng.randrange(len(members))
        for index, info in enumerate(members):
            content = source.read(info)
            target.writestr(zipfile.ZipInfo(info.filename), damaged(content, rng) if index == chosen else content)
    return out.getvalue()


def _position(data: bytearray, rng: random.Random) -> int:
    return rng.randrange(len(data)) if data else 0


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[_position(data, rng) :]


def flip_bit(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_position(data, rng)] ^= 1 << rng.randrange(8)


def set_byte(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_position(data, rng)] = rng.choice((0, 0xFF, 0x80, 0x7F, rng.randrange(256)))


def set_field(data: bytearray, rng: random.Random) -> None:
    """An aligned field of 1, 2, 4 or 8 bytes becomes a number that readers get wrong."""
    width, code = rng.choice(((1, "<B"), (2, "<H"), (4, "<I"), (4, "<I"), (4, "<I"), (8, "<Q")))
    at = _position(data, rng) // width * width
    if at + width <= len(data):
        struct.pack_into(code, data, at, rng.choice(HOSTILE) & (1 << 8 * width) - 1)


def shift_field(data: bytearray, rng: random.Random) -> None:
    """An aligned field of 4 bytes, which may be an offset or a count, becomes a little larger or smaller."""
    at = _position(data, rng) // 4 * 4
    if at + 4 <= len(data):
        value = struct.unpack_from("<I", data, at)[0] + rng.choice((-8, -4, -1, 1, 2, 4, 8, 64))
        struct.pack_into("<I", data, at, value & 0xFFFFFFFF)


def _block(data: bytearray, rng: random.Random) -> bytes:
    at = _position(data, rng)
    return bytes(data[at : at + rng.choice((1, 2, 4, 8, 16, 64, 256))])


def copy_block(data: bytearray, rng: random.Random) -> None:
    block, at = _block(data, rng), _position(data, rng)
    data[at : at + len(block)] = block


def duplicate_block(data: bytearray, rng: random.Random) -> None:
    block, at = _block(data, rng), _position(data, rng)
    data[at:at] = block * rng.choice((1, 1, 2, 50))


def delete_block(data: bytearray, rng: random.Random) -> None:
    at = _position(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 8, 16, 64, 256))]


ALTERATIONS = (
    truncate, flip_bit, flip_bit, set_byte, set_byte, set_field, set_field, set_field, shift_field, shift_field,
    copy_block, duplicate_block, delete_block,
)  # fmt: skip


def file_of_run(number: int, files: Files) -> tuple[str, bytes, dict[str, Any]]:
    """(name, damaged bytes, the reader's keyword arguments) of one run."""
    rng = random.Random(number)
    name, data, options = files[rng.randrange(len(files))]
    return name, damaged(data, rng), options


# ---- one run ----


def outcome(data: bytes, options: dict[str, Any]) -> tuple[str, str]:
    """(what became of it, the error's message): "imported", "refused: <error>" or "escaped: <error>"."""
    from mera_torch import MeraError, load_model

    try:
        load_model(data, **options)
    except MeraError as error:
        return f"refused: {type(error).__name__}", str(error)
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in where if str(ROOT) in frame.filename] or where
        return f"escaped: {type(error).__name__}", f"{own[-1].filename}:{own[-1].lineno}: {error}"[:500]
    return "imported", ""


def work(format: str, folder: Path | None, seconds: float, megabytes: int) -> None:
    """A worker: reads numbers of runs, a line each, and answers each with a line of JSON."""
    import mera_torch.converters  # noqa: F401  # what is imported now counts for no run

    warnings.simplefilter("ignore")
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    files = corpus(format, folder)
    for _, data, options in corpus(format):
        found, message = outcome(data, options)
        if found != "imported":
            raise SystemExit(f"an undamaged file of {format} is not imported: {found}: {message}")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)
    for line in sys.stdin:
        _, data, options = file_of_run(int(line), files)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # of processor time; its signal ends the process
        began = time.process_time()
        answer = outcome(data, options)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps([*answer, time.process_time() - began]) + "\n")


# ---- many runs ----


@dataclass
class Outcomes:
    """counts by outcome; examples: (number of the run, message) of each, the first few; slowest: (seconds, number)."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    slowest: tuple[float, int] = (0.0, -1)

    def add(self, number: int, found: str, message: str, seconds: float = 0.0) -> None:
        self.counts[found] += 1
        self.slowest = max(self.slowest, (seconds, number))
        if len(self.examples[found]) < SHOWN or found in self.bad:
            self.examples[found].append((number, message))

    @property
    def bad(self) -> list[str]:
        """The outcomes that must not be."""
        return [found for found in self.counts if found != "imported" and not found.startswith("refused")]

    def __str__(self) -> str:
        total = sum(self.counts.values())
        lines = [f"{count:8d}  {count / total:7.2%}  {found}" for found, count in self.counts.most_common()]
        lines.append(f"{total:8d}  runs; the slowest took {self.slowest[0]:.2f} s (number {self.slowest[1]})")
        for found in self.bad:
            lines += [f"{found}: run {number}: {message}" for number, message in self.examples[found][:SHOWN]]
        return "\n".join(lines)


class Worker:
    """A process that does runs, begun again after a death."""

    def __init__(self, arguments: list[str], seconds: float, log: IO[bytes]) -> None:
        self._command = [sys.executable, __file__, "--work", *arguments]
        self._seconds, self._log = seconds, log
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, number: int) -> tuple[str, str, float]:
        if self._process is None:
            self._log.truncate(0)
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(f"{number}\n".encode())
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], PATIENCE * self._seconds + STARTING_SECONDS)
            answer = process.stdout.readline() if ready else b""
        except BrokenPipeError:
            answer = b""
        if answer:
            found, message, seconds = json.loads(answer)
            return found, message, seconds
        self.close()
        return (*self._death(process.returncode), self._seconds)

    def _death(self, code: int) -> tuple[str, str]:
        self._log.seek(0)
        said = self._log.read()[-1000:].decode(errors="replace").strip()
        if code in (-signal.SIGPROF, -signal.SIGKILL):
            return "timed out", f"no result within {self._seconds:g} s"
        if code < 0:
            return f"crashed: {signal.Signals(-code).name}", said
        raise SystemExit(f"a worker ended with exit code {code}: {said}")

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill() if self._process.poll() is None else None
            self._process.communicate()
            self._process = None


def fuzz(
    format: str, runs: int, seed: int = 0, *, seconds: float = 20.0, megabytes: int = 2048, folder: Path | None = None,
    workers: int = 1, progress: bool = False,
) -> Outcomes:  # fmt: skip
    """Runs number seed .. seed + runs - 1. seconds, megabytes: limits of a run. folder: more files to damage."""
    from concurrent.futures import ThreadPoolExecutor

    arguments = ["--format", format, "--time-limit", str(seconds), "--memory-limit", str(megabytes)]
    arguments += ["--folder", str(folder)] if folder else []
    outcomes = Outcomes()

    def share(index: int) -> None:
        with tempfile.TemporaryFile() as log:
            worker = Worker(arguments, seconds, log)
            try:
                for number in range(seed + index, seed + runs, workers):
                    outcomes.add(number, *worker.run(number))
                    if progress and index == 0 and number % 1000 < workers:
                        print(f"{format}: run {number - seed} of {runs}", file=sys.stderr, flush=True)
            finally:
                worker.close()

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(share, index) for index in range(workers)]:
            done.result()
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=[*MAKERS, "any"], default="any", help="any: one after the other")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first run")
    parser.add_argument("--only", type=int, help="do this run alone, in this process, and show what it raises")
    parser.add_argument("--save", type=Path, help="with --only: write the damaged file there")
    parser.add_argument("--time-limit", type=float, default=20.0, help="seconds of processor time that a run may take")
    parser.add_argument("--memory-limit", type=int, default=2048, help="MiB a run may take beyond the start")
    parser.add_argument("--folder", type=Path, help="damage the files in this folder too")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.format, options.folder, options.time_limit, options.memory_limit)
        return 0
    if options.only is not None:
        return _again(options.format, options.only, options.folder, options.save)
    bad = 0
    for format in MAKERS if options.format == "any" else [options.format]:
        try:
            corpus(format)
        except ModuleNotFoundError as error:
            print(f"{format}: skipped: {error}")
            continue
        outcomes = fuzz(
            format, options.runs, options.seed, seconds=options.time_limit, megabytes=options.memory_limit,
            folder=options.folder, workers=options.workers, progress=True,
        )  # fmt: skip
        print(f"{format}\n{outcomes}", flush=True)
        bad += len(outcomes.bad)
    return 1 if bad else 0


def _again(format: str, number: int, folder: Path | None, save: Path | None) -> int:
    from mera_torch import MeraError, load_model

    name, data, options = file_of_run(number, corpus(format, folder))
    print(f"{name}, damaged: {len(data)} bytes", flush=True)
    if save:
        save.write_bytes(data)
    try:
        load_model(data, **options)
        print("imported")
    except MeraError as error:
        print(f"{type(error).__name__}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
