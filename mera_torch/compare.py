"""A TFLite model, tensor by tensor, against TFLite's own reference kernels.

    print(compare_tflite("model.tflite"))

Five rungs are held against them. "FX": the imported graph in PyTorch, which computes in float32 between dequantize and
quantize, so that a step here and there is to be expected, and more after many operators. "Alone": each operator of the
graph for itself, given TFLite's own values of its inputs, at most one step off. "InterpreterHw" and "Simulator": what
the accelerator computes, with every tensor as an output. "Deployment": the Simulator again, for the model as it is
deployed, in which operators are fused; it has the file's own outputs only. The last three must be equal, byte for byte.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from .backend.capture import capture
from .backend.runtime import last_uses, on, run_steps
from .compile import Built, build, settings_of
from .errors import InvalidModelError
from .platform import Platform
from .tflite_reference import Array, Progress, first_operators, reference

if TYPE_CHECKING:
    from .converters import TensorInfo
    from .converters.files import Source
    from .converters.tflite.reader import Model, Operator

FX, ALONE, INTERPRETER, SIMULATOR, DEPLOYMENT = RUNGS = ("FX", "Alone", "InterpreterHw", "Simulator", "Deployment")
FLOAT_TOLERANCE = 1e-4
"""Floats differ if they are farther apart than this, absolute and relative."""


@dataclass(frozen=True)
class Difference:
    """Where a rung differs from TFLite in one tensor: `count` elements, by at most `largest` (steps of an integer
    tensor), first at `position`."""

    count: int
    largest: float
    position: tuple[int, ...]
    wanted: float
    got: float

    def __str__(self) -> str:
        return (
            f"{self.count} elements by up to {self.largest:g}, first at {list(self.position)}: "
            f"{self.got:g} instead of {self.wanted:g}"
        )


@dataclass(frozen=True)
class TensorResult:
    """One tensor that an operator of the file computes.

    operator: TFLite's name and the operator's number; place: "DNA", "host", "border" (the runner quantizes or
    dequantizes there) or "folded" (constant, or part of another operator); quantized: whether it has a scale.
    differences: by rung, None where it is equal.
    """

    index: int
    name: str
    operator: str
    number: int
    place: str
    shape: tuple[int, ...]
    dtype: str
    quantized: bool
    differences: Mapping[str, Difference | None]

    def wrong(self, rung: str) -> Difference | None:
        """The difference, if it is one that should not be: PyTorch may be one step off in quantized tensors."""
        found = self.differences.get(rung)
        allowed = rung in (FX, ALONE) and self.quantized and found is not None and found.largest <= 1
        return None if allowed else found


@dataclass(frozen=True)
class Comparison:
    """Every tensor, in the order of the operators.

    regions, host, transposes: of the model as deployed: its DNA regions, the operators left on the host, and how many
    transpositions the regions hold. stopped: why TFLite did not run all operators; only those before are compared then.
    missing: how many tensors TFLite gave no values for.
    """

    rungs: tuple[str, ...]
    tensors: tuple[TensorResult, ...]
    platform: str
    regions: int
    host: tuple[str, ...]
    transposes: int
    stopped: str = ""
    missing: int = 0

    @property
    def judged(self) -> tuple[str, ...]:
        """The rungs that must be equal; FX is one of them if nothing runs on the accelerator."""
        return tuple(rung for rung in self.rungs if rung != FX or INTERPRETER not in self.rungs)

    def first(self, rung: str) -> TensorResult | None:
        """The first tensor in which a rung differs from TFLite as it should not; None if there is none."""
        return next((tensor for tensor in self.tensors if tensor.wrong(rung)), None)

    @property
    def equal(self) -> bool:
        """Whether there is no difference that should not be, in any rung that is judged."""
        return all(self.first(rung) is None for rung in self.judged)

    def to_dict(self) -> dict[str, Any]:
        """As JSON's types."""
        return {"equal": self.equal, **asdict(self)}

    def summary(self) -> str:
        """A sentence for the places, and one for each rung."""
        where = f"{self.regions} DNA region{'s'[: self.regions != 1]} ({self.platform})"
        on_host = ", ".join(f"{count} x {op}" for op, count in Counter(self.host).items())
        lines = [f"{where}, {self.transposes} transpositions; on the host: {on_host or 'nothing'}"]
        lines += [self.stopped] if self.stopped else []
        lines += [f"{self.missing} tensors are not compared: TFLite gives no values for them"] if self.missing else []
        return "\n".join([*lines, *map(self._sentence, self.rungs)])

    def _sentence(self, rung: str) -> str:
        compared = [tensor for tensor in self.tensors if rung in tensor.differences]
        found = self.first(rung)
        if found is not None and rung in self.judged:
            return (
                f"{rung}: differs first in tensor {found.index} ({found.name!r}) of {found.operator} {found.number}, "
                f"on {found.place}: {found.differences[rung]}"
            )
        apart = [difference for tensor in compared if (difference := tensor.differences[rung])]
        if not apart:
            return f"{rung}: equal to TFLite's reference kernels in {_all(len(compared))}"
        largest = max(difference.largest for difference in apart)
        return f"{rung}: up to {largest:g} from TFLite's reference kernels in {len(apart)} of {_all(len(compared))}"

    def __str__(self) -> str:
        """One row a tensor, and the summary."""
        rows = [["tensor", "operator", "name", "shape", "dtype", "place", *self.rungs], *map(self._row, self.tensors)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "", self.summary()])

    def _row(self, tensor: TensorResult) -> list[str]:
        shape = "x".join(map(str, tensor.shape))
        return [
            str(tensor.index), f"{tensor.operator} {tensor.number}", _short(tensor.name), shape, tensor.dtype,
            tensor.place, *(_cell(tensor, rung) for rung in self.rungs),
        ]  # fmt: skip

    def table(self, every: bool = False) -> Any:
        """For rich.print: one row an operator of TFLite's; every: one row a tensor."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD)
        if every:
            for name in ("tensor", "operator", "name", "shape", "dtype", "place", *self.rungs):
                table.add_column(name, overflow="fold")
            for tensor in self.tensors:
                table.add_row(*self._row(tensor))
            return table
        for name in ("operator", "tensors", "place", *self.rungs):
            table.add_column(name, justify="right" if name == "tensors" else "left")
        for operator in dict.fromkeys(tensor.operator for tensor in self.tensors):
            rows = [tensor for tensor in self.tensors if tensor.operator == operator]
            places = [f"{count} {place}" for place, count in Counter(tensor.place for tensor in rows).items()]
            table.add_row(operator, str(len(rows)), ", ".join(places), *(_cell_of(rows, rung) for rung in self.rungs))
        return table

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(self.table(), self.summary())


def _all(tensors: int) -> str:
    return "1 tensor" if tensors == 1 else f"{tensors} tensors"


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:14]}...{name[-23:]}"


def _cell(tensor: TensorResult, rung: str) -> str:
    if rung not in tensor.differences:
        return ""
    found = tensor.differences[rung]
    return "equal" if found is None else f"{found.count} by {found.largest:g}"


def _cell_of(tensors: Sequence[TensorResult], rung: str) -> str:
    compared = [tensor.differences[rung] for tensor in tensors if rung in tensor.differences]
    found = [difference for difference in compared if difference]
    if not found:
        return "equal" if compared else ""
    return f"{len(found)} differ by up to {max(d.largest for d in found):g}"


def compare_tflite(
    source: Source,
    inputs: Sequence[Array] | None = None,
    *,
    platform: str | os.PathLike[str] | Platform = "SAKURA_1",
    simulator: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Runs a TFLite file by TFLite's reference kernels, in a process of its own, and by all of our rungs.

    source: its path or bytes. inputs: an array for each of the model's inputs, in the file's order, shapes, layout and
    element types; default: random ones made from `seed`. platform: what is compiled for. simulator=False: only FX and
    InterpreterHw. progress: called with (stage, done, total).

    If TFLite dies of an operator or refuses it (it aborts on some models), the file up to there is compared, and the
    result says so. Raises ReferenceFailedError if TFLite computes nothing of the model; what from_tflite raises; and
    DoesNotFitError.
    """
    from .converters.files import read
    from .converters.tflite import computed, from_model, load

    tell = progress or (lambda stage, done, total: None)
    data = read(source)
    file = load(data)
    model = from_model(file, source, every_tensor=True)
    given = model.example_inputs(seed) if inputs is None else _checked(inputs, model.info.inputs)
    tell("TFLite's reference kernels", 0, 4)
    truth = reference(data, [x.numpy() for x in given], _labels(file), progress=progress)
    if truth.failure:
        file = load(first_operators(data, truth.operators))
        model = from_model(file, source, every_tensor=True)
    tell(FX, 1, 4)
    with torch.no_grad():
        found: dict[str, dict[int, Array]] = {FX: _by_index(computed(file), pytree.tree_leaves(model(*given)))}
        found[ALONE] = _alone(file, source, truth.tensors)
    settings = settings_of(platform, "Simulator", None)
    every = build(capture(model, given), settings)
    whole = build(capture(from_model(file, source), given), settings)
    if every.regions:
        tell(INTERPRETER, 2, 4)
        found[INTERPRETER] = _by_index(computed(file), _run(every, "InterpreterHw", given))
    if every.regions and simulator:
        tell(SIMULATOR, 3, 4)
        found[SIMULATOR] = _by_index(computed(file), _run(every, "Simulator", given, progress))
        outputs = [file.tensors[i] for i in file.outputs]
        found[DEPLOYMENT] = _by_index(outputs, _run(whole, "Simulator", given, progress))
    rows = tuple(_results(file, truth.tensors, found, _places(whole)))
    stopped = f"compared up to operator {truth.operators}: {truth.failure}" if truth.failure else ""
    return Comparison(
        tuple(found), rows, settings.platform.name, len(whole.regions), _on_host(file, whole), whole.transposes,
        stopped, len(computed(file)) - len(rows),
    )  # fmt: skip


def _alone(file: Model, source: Source, values: Mapping[int, Array]) -> dict[int, Array]:
    """What each operator computes from TFLite's values of its inputs, as a model of its own."""
    from .converters.tflite import from_model

    found: dict[int, Array] = {}
    computed = _computed_from_inputs(file)
    for operator in file.operators:
        given = list(dict.fromkeys(i for i in operator.inputs if i in computed))
        outputs = [i for i in operator.outputs if i in values]
        if not outputs or any(i not in values for i in operator.inputs if i != -1 and file.tensors[i].data is None):
            continue
        known = {i for i in operator.inputs if i != -1 and i not in given and file.tensors[i].data is None}
        tensors = [replace(t, data=values[t.index]) if t.index in known else t for t in file.tensors]
        names = [str(i) for i in given], [str(i) for i in outputs]
        model = from_model(replace(
            file, tensors=tensors, operators=[operator], inputs=given, outputs=outputs, input_names=names[0],
            output_names=names[1],
        ), source)  # fmt: skip
        results = pytree.tree_leaves(model(*(torch.from_numpy(values[i].copy()) for i in given)))
        found.update(_by_index([file.tensors[i] for i in outputs], results))
    return found


def _computed_from_inputs(file: Model) -> set[int]:
    """The tensors that depend on the values of the model's inputs, not on their shapes alone."""
    found = set(file.inputs)
    for operator in file.operators:
        if operator.code not in ("SHAPE", "RANK") and found.intersection(operator.inputs):
            found.update(operator.outputs)
    return found


def _checked(inputs: Sequence[Array], infos: Sequence[TensorInfo]) -> tuple[torch.Tensor, ...]:
    if len(inputs) != len(infos):
        raise InvalidModelError(f"the model has {len(infos)} inputs, got {len(inputs)}")
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs)
    for x, info in zip(tensors, infos, strict=True):
        if tuple(x.shape) != info.shape or x.dtype != info.dtype:
            raise InvalidModelError(
                f"input {info.name!r} must be {info.dtype} of shape {list(info.shape)}, got {x.dtype} {list(x.shape)}"
            )
    return tensors


def _labels(file: Model) -> list[str]:
    return [f"{operator.code} {_name(file, operator)!r}" for operator in file.operators]


def _name(file: Model, operator: Operator) -> str:
    """The name that the importer gives an operator: that of the first tensor it computes."""
    return next((file.tensors[i].name for i in operator.outputs if i != -1), f"operator_{operator.index}")


def _by_index(tensors: Sequence[Any], values: Sequence[torch.Tensor]) -> dict[int, Array]:
    return {tensor.index: value.numpy() for tensor, value in zip(tensors, values, strict=True)}


def _run(
    built: Built, target: str, inputs: Sequence[torch.Tensor], progress: Progress | None = None
) -> Sequence[torch.Tensor]:
    if target == "Simulator":
        for region in built.regions:
            region.compile(progress)
    with torch.no_grad():
        return run_steps(built.graph, built.regions, on(target), inputs, last_uses(built.graph, built.regions))


def _places(built: Built) -> dict[str, str]:
    """Where the operators run, by the file's names (of their first outputs)."""
    places: dict[str, set[str]] = {}
    for row in built.explanation.rows:
        places.setdefault(row.module, set()).add(row.where.partition(" ")[0])
    return {name: next(p for p in ("host", "DNA", "border") if p in found) for name, found in places.items()}


def _on_host(file: Model, built: Built) -> tuple[str, ...]:
    """TFLite's names of the operators that run on the host, and PyTorch's of those that are no operator's of the file:
    uint8 inputs and outputs become int8 there."""
    places, names = _places(built), {_name(file, operator) for operator in file.operators}
    own = [operator.code for operator in file.operators if places.get(_name(file, operator)) == "host"]
    return (*own, *(row.op for row in built.explanation.rows if row.where == "host" and row.module not in names))


def _results(
    file: Model, wanted: Mapping[int, Array], found: Mapping[str, Mapping[int, Array]], places: Mapping[str, str]
) -> Sequence[TensorResult]:
    rows = []
    for operator in file.operators:
        place = places.get(_name(file, operator), "folded")
        for tensor in (file.tensors[i] for i in operator.outputs if i in wanted):
            truth = wanted[tensor.index]
            differences = {
                rung: _difference(str(tensor), truth, values[tensor.index])
                for rung, values in found.items()
                if tensor.index in values
            }
            quantized = tensor.quantization is not None and truth.dtype.kind in "iu"
            rows.append(
                TensorResult(
                    tensor.index, tensor.name, operator.code, operator.index, place, truth.shape, str(truth.dtype),
                    quantized, differences,
                )
            )  # fmt: skip
    return rows


def _difference(where: str, wanted: Array, got: Array) -> Difference | None:
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        raise InvalidModelError(
            f"{where}: TFLite computes {wanted.dtype}{list(wanted.shape)}, the imported graph {got.dtype}"
            f"{list(got.shape)}; give the model fixed shapes"
        )
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    different = wanted != got
    if wanted.dtype.kind == "f":
        different = ~np.isclose(b, a, rtol=FLOAT_TOLERANCE, atol=FLOAT_TOLERANCE, equal_nan=True)
    if not different.any():
        return None
    at = tuple(int(i) for i in np.argwhere(different)[0])
    with np.errstate(invalid="ignore"):
        largest = float(np.nan_to_num(np.abs(a - b)[different], nan=math.inf, posinf=math.inf).max())
    return Difference(int(different.sum()), largest, at, float(a[at]), float(b[at]))
