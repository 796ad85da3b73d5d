"""The differential ladder: one model, one input, and every way there is to run it.

    print(climb("digits.pt2").summary())

eager           the quantized model in PyTorch, which computes in float32 between dequantize and quantize
oracle          its DNA graph in NumPy, written independently of the C core
InterpreterHw   its DNA graph in the C core
Simulator       the compiled program, instruction by instruction
IP              the compiled program on a device

All but eager compute in integers: they must give the same bytes. Where one does not, its first differing region is
taken apart on the inputs that the oracle gives it, down to the node and the instruction.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from . import bisect, graph_text, lockstep, native, oracle
from .backend.region import DnaRegion
from .backend.runtime import last_uses, run_steps
from .errors import ConfigError, DeviceError, InvalidModelError, MeraError, UnsupportedError, nearest
from .execute import output_names
from .native import Array, Progress
from .platform import Platform
from .samples import Spec, random_inputs

if TYPE_CHECKING:
    from .backend.host import HostGraph

EAGER, ORACLE, INTERPRETER, SIMULATOR, IP = RUNGS = ("eager", "oracle", "InterpreterHw", "Simulator", "IP")
Engine = Callable[[Sequence[Array]], Sequence[Array]]


# ---- what comes of it ----


@dataclass(frozen=True)
class Agreement:
    """An output of a rung against the lowest integer rung's: how many elements differ, by how many steps of the output
    at most (in its own unit if it has no scale); psnr_db: against eager, None where equal or where there is none."""

    different: int
    largest_steps: float
    psnr_db: float | None

    @property
    def equal(self) -> bool:
        return self.different == 0


@dataclass(frozen=True)
class OutputResult:
    """step: the output's quantization scale, None if it is unknown (then largest_steps are of its own unit)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    step: float | None
    rungs: Mapping[str, Agreement]


@dataclass(frozen=True)
class Culprit:
    """Where a rung parts from the one below it. instructions: of the program, the first ones concerned."""

    region: str
    reference: str
    rung: str
    node: str
    op: str
    layer: str
    source: str
    instructions: tuple[str, ...]
    detail: str

    def __str__(self) -> str:
        where = (
            f" ({self.layer}{', ' if self.layer and self.source else ''}{self.source})"
            if self.layer or self.source
            else ""
        )
        lines = [
            f"{self.region}: {self.rung} parts from {self.reference} at {self.op} {self.node!r}{where}: {self.detail}"
        ]
        return "\n  ".join([*lines, *self.instructions])


@dataclass(frozen=True)
class Ladder:
    """rungs: those that ran; skipped: the others, with the reason."""

    model: str
    platform: str
    regions: int
    host: tuple[str, ...]
    rungs: tuple[str, ...]
    skipped: Mapping[str, str]
    outputs: tuple[OutputResult, ...]
    culprits: tuple[Culprit, ...] = field(default=())

    @property
    def equal(self) -> bool:
        """Whether all integer rungs gave the same bytes, in every region."""
        judged = [rung for rung in self.rungs if rung != EAGER]
        return not self.culprits and all(output.rungs[rung].equal for output in self.outputs for rung in judged)

    def to_dict(self) -> dict[str, Any]:
        """As JSON's types."""
        return {"equal": self.equal, **asdict(self)}

    def summary(self) -> str:
        """A sentence for what differs, or that nothing does; and one for each rung that did not run."""
        integer = [rung for rung in self.rungs if rung != EAGER]
        lines = [f"{rung}: not run: {reason}" for rung, reason in self.skipped.items()]
        if self.equal:
            lines.append(f"{', '.join(integer)}: every byte equal, in {len(self.outputs)} outputs")
        return "\n".join([*lines, *map(str, self.culprits)])

    def __rich__(self) -> Any:
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, title=f"{self.model} on {self.platform}", title_justify="left")
        for header in ("output", "rung", "bytes", "differ", "steps at most", "PSNR to eager"):
            table.add_column(header, justify="left" if header in ("output", "rung", "bytes") else "right")
        for output in self.outputs:
            for rung, found in output.rungs.items():
                words = "" if rung == EAGER else "equal" if found.equal else "different"
                table.add_row(
                    f"{output.name} {output.dtype}{list(output.shape)}" if rung == self.rungs[0] else "", rung, words,
                    f"{found.different:,}", f"{found.largest_steps:g}", _decibels(found.psnr_db, self.rungs, rung),
                )  # fmt: skip
        return Group(table, self.summary())


def _decibels(value: float | None, rungs: Sequence[str], rung: str) -> str:
    if EAGER not in rungs or rung == EAGER:
        return ""
    return "equal" if value is None else f"{value:.1f} dB"


def psnr(wanted: Sequence[Array], got: Sequence[Array]) -> float | None:
    """Peak signal-to-noise ratio in dB over all elements of pairs of arrays; the peak is the largest magnitude in them.
    None if nothing differs, or if something is NaN or infinite."""
    pairs = [(w.astype(np.float64), g.astype(np.float64)) for w, g in zip(wanted, got, strict=True)]
    noise = sum(float(np.square(w - g).sum()) for w, g in pairs)
    peak = max((float(np.abs(x).max()) for pair in pairs for x in pair if x.size), default=0.0)
    if noise == 0 or not math.isfinite(noise) or not math.isfinite(peak):
        return None
    return 10 * math.log10(peak**2 * sum(w.size for w, _ in pairs) / noise)


# ---- climbing ----


@dataclass
class _Subject:
    """What is to be run: host steps and regions, and the eager model if there is one."""

    name: str
    platform: Platform
    graph: HostGraph
    regions: list[DnaRegion]
    specs: list[Any]  # InputSpec of each flat input
    eager: Callable[[Sequence[torch.Tensor]], list[Any]] | None
    names: list[str]


def climb(
    model: Any,
    inputs: Sequence[Array] | None = None,
    *,
    platform: str | os.PathLike[str] | Platform | None = None,
    rungs: Sequence[str] | None = None,
    seed: int = 0,
    device_ids: Sequence[str] | None = None,
    progress: Progress | None = None,
    name: str | None = None,
) -> Ladder:
    """Runs a model, or a deployment, on every rung.

    model: a deployment's folder, the path of a quantized model, an imported or a converted PT2E model of which
    example inputs are known. inputs: an array for each input; default: random ones of `seed`. platform: of a model;
    default SAKURA_1 (a deployment has its own). rungs: of RUNGS; default: all, those that cannot run being skipped with
    the reason. device_ids: for IP. name: of the model, for the report.

    Raises InvalidModelError for inputs that do not fit, ConfigError for an unknown rung or a platform for a deployment,
    and what importing and compiling raise.
    """
    asked = _asked(rungs)
    tell = progress or (lambda stage, done, total: None)
    tell("reading", 0, len(asked) + 1)
    subject = _subject(model, platform)
    tensors = _inputs(subject, inputs, seed)
    found: dict[str, list[Any]] = {}
    raw: dict[str, dict[str, list[Array]]] = {}
    stored: dict[str, list[Array]] = {}
    skipped: dict[str, str] = {}
    for done, rung in enumerate(asked):
        tell(rung, done + 1, len(asked) + 1)
        try:
            if rung == EAGER:
                found[rung] = _eager(subject, tensors)
                continue
            seen: dict[str, tuple[list[Array], list[Array]]] = {}
            found[rung] = _integer(subject, tensors, rung, seen, device_ids, progress)
        except (DeviceError, UnsupportedError) as error:
            if rungs is not None:
                raise
            skipped[rung] = str(error)
            continue
        raw[rung] = {name: results for name, (_, results) in seen.items()}
        stored = stored or {name: given for name, (given, _) in seen.items()}
    integer = [rung for rung in asked if rung in raw]
    outputs = _outputs(subject, found, integer)
    culprits = _culprits(subject, raw, stored, device_ids, progress)
    host = tuple(str(step.target) for step in subject.graph.steps if step.region < 0)
    ran = tuple(rung for rung in asked if rung in found)
    return Ladder(
        name or subject.name,
        subject.platform.name,
        len(subject.regions),
        host,
        ran,
        skipped,
        tuple(outputs),
        tuple(culprits),
    )


def specs_of_model(path: str | os.PathLike[str], read: Callable[[], Any]) -> tuple[list[Spec], Any]:
    """The inputs of a deployment's folder, or of the model that `read` gives; and what climb() takes for it."""
    from .files import MANIFEST

    if (Path(path) / MANIFEST).is_file():
        from .project import load

        return specs_of(load(path)._inputs), path
    model = read()
    return [Spec(t.name, t.shape, str(t.dtype).removeprefix("torch.")) for t in model.info.inputs], model


def _asked(rungs: Sequence[str] | None) -> list[str]:
    for rung in rungs or ():
        if rung not in RUNGS:
            raise ConfigError(f"unknown rung {rung!r}: {nearest(rung, RUNGS)}")
    asked = [rung for rung in RUNGS if rungs is None or rung in rungs]
    if all(rung == EAGER for rung in asked):
        raise ConfigError(f"a ladder needs at least one of {', '.join(RUNGS[1:])}")
    return asked


def _subject(model: Any, platform: str | os.PathLike[str] | Platform | None) -> _Subject:
    from .files import MANIFEST

    if isinstance(model, str | os.PathLike) and (Path(model) / MANIFEST).is_file():
        from .project import load

        if platform is not None:
            raise ConfigError(
                f"{os.fspath(model)!r} is a deployment, compiled for its own platform; leave out platform"
            )
        held = load(model)
        names = output_names([str(row["name"]) for row in held.manifest.get("outputs", ())], len(held._graph.outputs))
        return _Subject(str(held.path), held.platform, held._graph, held.regions, held._inputs, None, names)
    from .backend.capture import capture
    from .compile import build, opened, settings_of
    from .converters.model import info_of

    settings = settings_of("SAKURA_1" if platform is None else platform, SIMULATOR, None)
    module, examples = opened(model, None)
    captured = capture(module, examples)
    built = build(captured, settings)
    if not built.regions:
        raise UnsupportedError(built.explanation.why_nothing_runs())

    def eager(tensors: Sequence[torch.Tensor]) -> list[Any]:
        args, kwargs = pytree.tree_unflatten(list(tensors), captured.in_spec)
        return pytree.tree_leaves(module(*args, **kwargs))

    info = info_of(module)
    names = output_names([t.name for t in info.outputs] if info else [], len(built.graph.outputs))
    name = Path(model).name if isinstance(model, str | os.PathLike) else type(model).__name__
    return _Subject(name, settings.platform, built.graph, built.regions, captured.inputs, eager, names)


def specs_of(specs: Sequence[Any]) -> list[Spec]:
    """Of InputSpecs, those of tensors."""
    return [Spec(s.name, s.shape, str(s.dtype).removeprefix("torch.")) for s in specs if s.dtype is not None]


def _inputs(subject: _Subject, given: Sequence[Array] | None, seed: int) -> list[Any]:
    specs = specs_of(subject.specs)
    arrays = random_inputs(specs, seed) if given is None else list(given)
    if len(arrays) != len(specs):
        raise InvalidModelError(
            f"the model takes {len(specs)} inputs ({', '.join(map(str, specs))}), got {len(arrays)}"
        )
    for spec, array in zip(specs, arrays, strict=True):
        if tuple(array.shape) != spec.shape or str(array.dtype) != spec.dtype:
            raise InvalidModelError(f"input {spec}: got {array.dtype}{list(array.shape)}")
    left = iter(arrays)
    return [
        s.constant if s.dtype is None else torch.from_numpy(np.ascontiguousarray(next(left))) for s in subject.specs
    ]


def _eager(subject: _Subject, tensors: Sequence[Any]) -> list[Any]:
    if subject.eager is None:
        raise UnsupportedError("a deployment does not hold the PyTorch model it was made from")
    with torch.no_grad():
        return subject.eager(tensors)


def engine_of(region: DnaRegion, rung: str, device_ids: Sequence[str] | None = None) -> Engine:
    """What runs a region's graph or program on int8 arrays. Raises DeviceError, UnsupportedError."""
    if rung == ORACLE:
        graph = graph_text.read(region.graph.text(), {name: info.attrs for name, info in native.OPS.items()})
        return lambda inputs: oracle.run(
            graph, [np.asarray(x).reshape(graph.tensors[i].shape) for x, i in zip(inputs, graph.inputs, strict=True)]
        )
    if rung == INTERPRETER:
        return native.Interpreter(region.graph).run
    return program_engine(rung, region.program, device_ids)


def program_engine(rung: str, program: native.Program, device_ids: Sequence[str] | None = None) -> Engine:
    """What runs a program on int8 arrays: the Simulator, or a device."""
    if rung == SIMULATOR:
        return native.Simulator(program).run
    try:
        from .device import engine
    except ModuleNotFoundError:
        raise UnsupportedError("this installation has no driver for devices") from None
    run: Engine = engine(program, device_ids).run
    return run


def _integer(
    subject: _Subject, tensors: Sequence[Any], rung: str, seen: dict[str, tuple[list[Array], list[Array]]],
    device_ids: Sequence[str] | None, progress: Progress | None,
) -> list[Any]:  # fmt: skip
    """The flat outputs of an integer rung; seen: by region, its int8 inputs and outputs."""
    if rung in (SIMULATOR, IP):
        for region in subject.regions:
            region.compile(progress)
    engines = {region.name: engine_of(region, rung, device_ids) for region in subject.regions}

    def run(region: DnaRegion, arrays: Sequence[Array]) -> list[Array]:
        stored = [port.store(x) for port, x in zip(region.inputs, arrays, strict=True)]
        results = [np.asarray(result).reshape(-1) for result in engines[region.name](stored)]
        seen[region.name] = stored, results
        return [port.fetch(results[i]) for port, i in zip(region.outputs, region.output_index, strict=True)]

    with torch.no_grad():
        return run_steps(subject.graph, subject.regions, run, tensors, last_uses(subject.graph, subject.regions))


# ---- comparing ----


def _outputs(subject: _Subject, found: Mapping[str, list[Any]], integer: Sequence[str]) -> list[OutputResult]:
    from .backend.host import Ref

    steps = {port.value: port.scale for region in subject.regions for port in region.outputs if port.real}
    results = []
    for index, (name, source) in enumerate(zip(subject.names, subject.graph.outputs, strict=True)):
        values = {rung: _array(flat[index]) for rung, flat in found.items()}
        reference = values[integer[0]] if integer else next(iter(values.values()))
        step = steps.get(source.name) if isinstance(source, Ref) else None
        agreements = {
            rung: _agreement(reference, value, step, values.get(EAGER) if rung != EAGER else None)
            for rung, value in values.items()
        }
        results.append(OutputResult(name, reference.shape, str(reference.dtype), step, agreements))
    return results


def _array(value: Any) -> Array:
    return value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _agreement(reference: Array, value: Array, step: float | None, eager: Array | None) -> Agreement:
    different = reference != value
    if reference.dtype.kind == "f":
        different &= ~(np.isnan(reference) & np.isnan(value))
    apart = np.abs(reference.astype(np.float64) - value.astype(np.float64))
    most = float(np.finfo(np.float64).max)
    largest = float(np.nan_to_num(apart, nan=most).max()) if apart.size else 0.0
    ratio = None if eager is None else psnr([eager], [value])
    return Agreement(int(different.sum()), min(most, largest / step) if step else largest, ratio)


def _same(a: Sequence[Array], b: Sequence[Array]) -> bool:
    return all(np.array_equal(np.asarray(x).reshape(-1), np.asarray(y).reshape(-1)) for x, y in zip(a, b, strict=True))


def _culprits(
    subject: _Subject, raw: Mapping[str, Mapping[str, list[Array]]], stored: Mapping[str, list[Array]],
    device_ids: Sequence[str] | None, progress: Progress | None,
) -> list[Culprit]:  # fmt: skip
    """For every rung but the lowest, its first region that differs from the rung below on the same inputs."""
    culprits = []
    integer = list(raw)
    for below, rung in zip(integer, integer[1:], strict=False):
        for region in subject.regions:
            if _same(raw[below][region.name], raw[rung][region.name]):
                continue
            given = stored[region.name]
            wanted, got = (engine_of(region, each, device_ids)(given) for each in (below, rung))
            if not _same(wanted, got):
                culprits.append(locate(region, below, rung, given, device_ids, progress))
                break
    return culprits


# ---- finding what differs ----


def locate(
    region: DnaRegion, below: str, rung: str, inputs: Sequence[Array], device_ids: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Culprit:  # fmt: skip
    """Where two rungs part that differ in a region's outputs, for its int8 inputs."""
    shaped = [np.asarray(x).reshape(info.shape) for x, info in zip(inputs, region.graph.inputs, strict=True)]
    tell = (lambda done, total: progress("bisect", done, total)) if progress else None
    if below in (SIMULATOR, IP):
        return _between_engines(region, (below, region.program), (rung, region.program), shaped, device_ids, progress)
    if rung in (SIMULATOR, IP):
        fresh = region.graph.compile(region.platform, dict(region.options))
        reference = native.Interpreter(region.graph).run(shaped)
        if _same(reference, native.Simulator(fresh).run(shaped)):
            return _against_fresh(region, below, rung, fresh, shaped, device_ids, progress)
    found = bisect.bisect(
        region.graph, shaped, region.platform if rung in (SIMULATOR, IP) else None, region.options, tell
    )
    if found is None:
        raise MeraError(f"{region.name}: {rung} differs from {below}, but no node alone does: please report it")
    node = found.node
    return Culprit(
        region.name, found.reference, found.rung, node.name, node.op, node.layer, node.source, found.instructions,
        f"{found.count} of {found.elements} elements, first at {list(found.position)} (NHWC): {found.got} instead of "
        f"{found.wanted}",
    )  # fmt: skip


def _against_fresh(
    region: DnaRegion, below: str, rung: str, fresh: native.Program, inputs: Sequence[Array],
    device_ids: Sequence[str] | None, progress: Progress | None,
) -> Culprit:  # fmt: skip
    """The program differs from what the compiler makes of its graph, or the engine does."""
    programs = (lockstep.instructions(fresh), lockstep.instructions(region.program))
    if not lockstep.same_shape(*programs):
        return Culprit(
            region.name, below, rung, "", "program", "", "", (),
            f"its {len(programs[1])} instructions are not those that this compiler makes of its graph "
            f"({len(programs[0])}); compile the model again",
        )  # fmt: skip
    return _between_engines(region, (SIMULATOR, fresh), (rung, region.program), inputs, device_ids, progress, below)


def _between_engines(
    region: DnaRegion, a: tuple[str, native.Program], b: tuple[str, native.Program], inputs: Sequence[Array],
    device_ids: Sequence[str] | None, progress: Progress | None, below: str = "",
) -> Culprit:  # fmt: skip
    def runner(rung: str) -> lockstep.Run:
        return lambda program, given: program_engine(rung, program, device_ids)(given)

    found = lockstep.first_divergence((a[1], runner(a[0])), (b[1], runner(b[0])), inputs, progress)
    if found is None:
        raise MeraError(f"{region.name}: {b[0]} differs from {a[0]}, but not when run again: its results change")
    rows = {name: (op, layer, source) for name, op, layer, source in b[1].nodes}
    op, layer, source = rows.get(found.node, ("", "", ""))
    what = "is not what the compiler makes of the graph; it " if a[1] is not b[1] else ""
    return Culprit(
        region.name, below or a[0], b[0], found.node, op, layer, source, (str(found),),
        f"this instruction {what}changes {found.count} bytes of memory",
    )  # fmt: skip
