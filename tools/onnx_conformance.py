"""Runs ONNX's own backend node tests through mera_torch.from_onnx and keeps the verdicts.

    python tools/onnx_conformance.py                 runs every case; writes docs/onnx_operators.{json,md}
    python tools/onnx_conformance.py --check         runs every case; fails if a verdict is another than the stored one
    python tools/onnx_conformance.py --check --every 5    the same for every fifth case and the first of each operator,
                                                     where a refusal may be in other words
    python tools/onnx_conformance.py --only cast     runs the cases with "cast" in their names and shows the verdicts
    python tools/onnx_conformance.py --onnx2torch    also runs onnx2torch on every case (takes minutes)

A verdict is "pass" (with notes), "refused: why" (UnsupportedError or InvalidModelError), or what must not be:
"wrong: ...", "crash: ..." (another exception, or a dead process) and "hang: ..." (no result in time). In ONNX's files
every operand of an operator is an input of the model, also a shape. Where the importer says that it must know an input,
the case runs again with that input given by from_onnx(constants=...), and its verdict is "pass, given NAMES". See also
ROUNDING.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import importlib.metadata
import io
import json
import multiprocessing
import multiprocessing.connection
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "docs" / "onnx_operators.json"
PAGE = ROOT / "docs" / "onnx_operators.md"

SECONDS = 60.0
"""How long one case may take before it counts as hung."""

BFLOAT16_RTOL = 2.0**-6
"""Two units in the last place, as in onnx.backend.test.runner."""

ROUNDING = "within rounding"
"""The note on a result that differs by more than ONNX's tolerance, yet by less than its type's rounding at its largest
value: some expected values are the rounding errors of NumPy where 0 is exact."""

NO_TORCHVISION = ": torchvision has no compiled operators here"

Run = Callable[[Any], str]


# ---- the cases ----


def collect() -> dict[str, Any]:
    """onnx.backend.test.case.test_case.TestCase by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return {case.name: case for case in collect_testcases(None)}


def operator_of(case: Any, cases: dict[str, Any]) -> str:
    """The operator that a case is about; the expansion of a function operator counts as that operator."""
    base = cases.get(re.sub(r"_expanded(_ver\d+)?$", "", case.name), case)
    return str(base.model.graph.node[-1].op_type)


def tensor_of(value: Any) -> torch.Tensor:
    """An input or expected output of a case."""
    from mera_torch.converters.onnx.tensors import to_tensor

    tensor: torch.Tensor = to_tensor(proto_of(value), "test data")
    return tensor


def proto_of(value: Any) -> onnx.TensorProto:
    return value if isinstance(value, onnx.TensorProto) else onnx.numpy_helper.from_array(np.asarray(value))


# ---- one case ----


def run_mera(case: Any) -> str:
    """The verdict on from_onnx."""
    from mera_torch.converters import from_onnx
    from mera_torch.converters.onnx.context import UnknownInput
    from mera_torch.errors import InvalidModelError, UnsupportedError

    (inputs, expected) = case.data_sets[0]
    names = [value.name for value in case.model.graph.input]
    given: dict[str, Any] = {}
    while True:
        try:
            model = from_onnx(case.model, constants=given)
            break
        except (InvalidModelError, UnsupportedError) as error:
            needed = set(error.inputs) - set(given) if isinstance(error, UnknownInput) else set()
            if not needed:
                return f"refused: {error}"
            given |= {n: tensor_of(v) for n, v in zip(names, inputs, strict=False) if n in needed}
            if not needed <= set(given):
                return f"refused: {error}"
    free = [tensor_of(v) for n, v in zip(names, inputs, strict=False) if n not in given]
    with torch.no_grad():
        results = model(*free)
    results = results if isinstance(results, tuple) else (results,)
    difference = compare(results, expected, case)
    if difference and difference != ROUNDING:
        return f"wrong: {difference}"
    notes = [difference] if difference else []
    notes += [f"given {', '.join(sorted(given))}"] if given else []
    return ", ".join(["pass", *notes])


def run_onnx2torch(case: Any) -> str:
    """The verdict on onnx2torch, which gets the same chance: operands that must be constants become initializers."""
    convert = importlib.import_module("onnx2torch").convert
    (inputs, expected) = case.data_sets[0]
    verdict = ""
    for frozen in (False, True):
        model, free = _frozen(case.model, inputs) if frozen else (case.model, list(inputs))
        try:
            module = convert(model)
        except Exception as error:
            verdict = verdict or f"refused: {type(error).__name__}: {error}"
            continue
        try:
            with torch.no_grad():
                results = module(*[tensor_of(v) if not isinstance(v, list) else [*map(tensor_of, v)] for v in free])
        except Exception as error:
            verdict = f"crash: {type(error).__name__}: {error}"
            continue
        results = results if isinstance(results, tuple | list) else (results,)
        difference = compare(results, expected, case)
        if difference in ("", ROUNDING):
            return "pass, given operands" if frozen else "pass"
        verdict = f"wrong: {difference}"
    return verdict


def _frozen(model: Any, inputs: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The model with every input but the first as an initializer, and the value of the first."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if not inputs:
        return copy, []
    for info, value in list(zip(copy.graph.input, inputs, strict=False))[1:]:
        copy.graph.initializer.add().CopyFrom(proto_of(value))
        copy.graph.initializer[-1].name = info.name
    del copy.graph.input[1:]
    return copy, list(inputs[:1])


def compare(results: Sequence[Any], expected: Sequence[Any], case: Any) -> str:
    """How results differ from what ONNX expects, by the rules of onnx.backend.test.runner: "" if they do not, ROUNDING
    if by less than the type's rounding at the largest expected value."""
    if len(results) != len(expected):
        return f"{len(results)} results instead of {len(expected)}"
    found = ""
    for index, (result, want) in enumerate(zip(results, expected, strict=True)):
        if not isinstance(result, torch.Tensor):
            return f"result {index} is a {type(result).__name__}"
        want = tensor_of(want)
        if result.dtype != want.dtype or result.shape != want.shape:
            return f"result {index} is {result.dtype} {list(result.shape)} instead of {want.dtype} {list(want.shape)}"
        a, b = (np.atleast_1d(_as_numpy(t)) for t in (result, want))
        rtol, atol = tolerance(want.dtype, case)
        if np.allclose(a, b, rtol, atol, equal_nan=True):
            continue
        largest = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
        if rtol and np.allclose(a, b, rtol, torch.finfo(want.dtype).eps * largest, equal_nan=True):
            found = ROUNDING
            continue
        place = tuple(int(i) for i in np.argwhere(~np.isclose(a, b, rtol, atol, equal_nan=True))[0])
        return f"result {index} has {a[place]:g} instead of {b[place]:g} at {list(place)}"
    return found


def tolerance(dtype: torch.dtype, case: Any) -> tuple[float, float]:
    """Relative and absolute; integers and 8-bit floats must be equal."""
    if not dtype.is_floating_point or dtype.itemsize == 1:
        return 0.0, 0.0
    return BFLOAT16_RTOL if dtype == torch.bfloat16 else case.rtol, case.atol


def _as_numpy(tensor: torch.Tensor) -> Any:
    if tensor.dtype.is_floating_point:
        return tensor.to(torch.float64).numpy()
    return tensor.numpy()


# ---- all of them, guarded ----


def run_all(cases: Sequence[Any], run: Run) -> Iterator[tuple[str, str]]:
    """(name, verdict) of each case. The cases run in a process of their own, which is replaced if it dies or hangs."""
    context = multiprocessing.get_context("fork")
    waiting = collections.deque(cases)
    while waiting:
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(list(waiting), run, theirs), daemon=True)
        worker.start()
        theirs.close()
        while waiting:
            case = waiting.popleft()
            verdict = _receive(ours)
            yield case.name, verdict
            if verdict.startswith(("hang:", "crash: the process")):
                break
        worker.kill()
        worker.join()
        ours.close()


def _receive(connection: multiprocessing.connection.Connection) -> str:
    if not connection.poll(SECONDS):
        return f"hang: no result in {SECONDS:g} s"
    try:
        return str(connection.recv())
    except EOFError:
        return "crash: the process ended"


def _work(cases: Sequence[Any], run: Run, connection: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with redirect_stderr(io.StringIO()):
        for case in cases:
            try:
                verdict = run(case)
            except Exception as error:
                verdict = f"crash: {type(error).__name__}: {error}"
            connection.send(" ".join(verdict.split())[:400])


# ---- the stored verdicts and the page ----


def kind(verdict: str) -> str:
    """ "pass", "refused", "wrong", "crash" or "hang"."""
    return re.split(r"[:,]", verdict, maxsplit=1)[0]


def page(stored: dict[str, Any]) -> str:
    """The Markdown page of the stored verdicts."""
    cases = list(stored["cases"].values())
    total, theirs = (collections.Counter(kind(case[who]) for case in cases) for who in ("mera_torch", "onnx2torch"))
    passed = [case["mera_torch"] for case in cases if kind(case["mera_torch"]) == "pass"]
    about = f"""
        ONNX {stored["onnx"]} holds {len(cases)} backend node tests, each a model with inputs and expected outputs.
        Through `mera_torch.from_onnx`, {len(passed)} of them give the expected outputs: equal shapes and dtypes, and
        values within ONNX's own tolerance (relative 1e-3, absolute 1e-7). {sum("given" in v for v in passed)} of these
        are given operands that decide on shapes by `constants`, since the test files make every operand an input.
        {sum(ROUNDING in v for v in passed)} of them exceed the tolerance by less than their type's rounding at their
        largest value: NumPy's rounding errors are expected there. The other {total["refused"]} are refused with an
        error that names operator, opset and reason; none gives a wrong result, crashes or hangs."""
    beside = f"""
        onnx2torch {stored["onnx2torch"]} on the same cases: {theirs["pass"]} pass, {theirs["refused"]} are refused,
        {theirs["crash"]} fail when run ({sum(NO_TORCHVISION in case["onnx2torch"] for case in cases)} of them for want
        of torchvision's compiled operators), {theirs["wrong"]} give a wrong result, {theirs["hang"]} hang. Where it
        fails, it gets a second chance with all operands but the first as initializers."""
    lines = [
        "# ONNX operators",
        "",
        "Written by `python tools/onnx_conformance.py`; do not edit.",
        "",
        textwrap.fill(" ".join(about.split()), 120),
        "",
        textwrap.fill(" ".join(beside.split()), 120),
        "",
        "| operator | cases | pass | refused | onnx2torch: pass | wrong | why refused |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for operator in sorted({case["operator"] for case in cases}):
        lines.append(_row(operator, [case for case in cases if case["operator"] == operator]))
    return "\n".join(lines) + "\n"


def _row(operator: str, cases: Sequence[dict[str, str]]) -> str:
    ours, others = (collections.Counter(kind(case[who]) for case in cases) for who in ("mera_torch", "onnx2torch"))
    reasons = sorted({reason(case["mera_torch"]) for case in cases if kind(case["mera_torch"]) == "refused"})
    counts = [len(cases), ours["pass"], ours["refused"], others["pass"], others["wrong"]]
    cells = [operator, *counts, "; ".join(reasons)]
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def reason(verdict: str) -> str:
    """What a refusal says, without the place."""
    found = re.sub(r"^refused: onnx operator .*? '.*?': (onnx input '[^']*': )?", "", verdict)
    return re.sub(r"^(onnx input|model output) '[^']*'", r"an \1", found).replace("an model", "a model")


def verdicts_of(cases: dict[str, Any], run: Run, names: Sequence[str]) -> dict[str, str]:
    found = {}
    for number, (name, verdict) in enumerate(run_all([cases[name] for name in names], run)):
        found[name] = verdict
        if number % 200 == 199:
            print(f"{number + 1} of {len(names)}: {dict(collections.Counter(map(kind, found.values())))}", flush=True)
    return found


def with_nms() -> None:
    """onnx2torch imports torchvision, which needs its compiled operators even where nothing uses them."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


_KEPT: list[Any] = []


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if a verdict is another than the stored one")
    parser.add_argument("--only", metavar="PATTERN", help="show the verdicts of cases whose names match")
    parser.add_argument("--onnx2torch", action="store_true", help="run onnx2torch too")
    parser.add_argument("--every", metavar="N", type=int, default=1, help="with --check: only every Nth case")
    options = parser.parse_args(argv)
    cases = collect()
    if options.only:
        names = [name for name in cases if re.search(options.only, name)]
        run = run_onnx2torch if options.onnx2torch else run_mera
        if options.onnx2torch:
            with_nms()
        for name, verdict in verdicts_of(cases, run, names).items():
            print(name, verdict)
        return 0
    stored = load()
    found = verdicts_of(cases, run_mera, sample(cases, options.every) if options.check else sorted(cases))
    bad = {name: verdict for name, verdict in found.items() if kind(verdict) not in ("pass", "refused")}
    for name, verdict in bad.items():
        print(name, verdict)
    print(dict(collections.Counter(map(kind, found.values()))))
    if options.check:
        changed = different(stored, found, options.every == 1)
        print(*changed, sep="\n")
        return 1 if bad or changed else 0
    for name, verdict in found.items():
        case = stored["cases"].setdefault(name, {"onnx2torch": "refused"})
        case |= {"operator": operator_of(cases[name], cases), "mera_torch": verdict}
    stored["onnx"] = importlib.metadata.version("onnx")
    stored["cases"] = {name: stored["cases"][name] for name in sorted(found)}
    if options.onnx2torch:
        with_nms()
        stored["onnx2torch"] = importlib.metadata.version("onnx2torch")
        for name, verdict in verdicts_of(cases, run_onnx2torch, sorted(cases)).items():
            stored["cases"][name]["onnx2torch"] = kind(verdict) + (NO_TORCHVISION if "C++ ops" in verdict else "")
    save(stored)
    return 1 if bad else 0


def load() -> dict[str, Any]:
    """The stored verdicts: {"onnx": version, "onnx2torch": version, "cases": {name: {"operator", "mera_torch",
    "onnx2torch"}}}."""
    if not STORED.exists():
        return {"onnx": "", "onnx2torch": "", "cases": {}}
    stored: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
    return stored


def save(stored: dict[str, Any]) -> None:
    """Writes the verdicts, a line each, and the page."""
    lines = [f"{json.dumps(name)}: {json.dumps(case, sort_keys=True)}" for name, case in stored["cases"].items()]
    head = ", ".join(f'"{key}": {json.dumps(stored[key])}' for key in ("onnx", "onnx2torch"))
    STORED.write_text("{" + head + ', "cases": {\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")
    PAGE.write_text(page(stored), encoding="utf-8")


def sample(cases: dict[str, Any], every: int) -> list[str]:
    """The names of every Nth case and of the first of each operator."""
    firsts = {operator_of(case, cases): name for name, case in sorted(cases.items(), reverse=True)}
    return sorted({*sorted(cases)[::every], *firsts.values()})


def different(stored: dict[str, Any], found: dict[str, str], whole: bool) -> list[str]:
    """The cases whose verdict is another than the stored one. whole: also refusals in other words, and cases that are
    stored but were not run."""
    known = {name: case["mera_torch"] for name, case in stored["cases"].items()}
    names = sorted(known | found) if whole else sorted(found)
    changed = []
    for name in names:
        before, now = known.get(name, ""), found.get(name, "")
        if not whole and kind(before) == kind(now) == "refused":
            continue
        if before != now:
            changed.append(f"{name}: {now}; stored is: {before}")
    return changed


if __name__ == "__main__":
    sys.exit(main())
