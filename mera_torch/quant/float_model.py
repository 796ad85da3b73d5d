"""Float models of every kind, as ModelQuantizer takes them, exported and with the user's layout of images."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from mera_torch.assemble import TO_NCHW, TO_NHWC, relaid
from mera_torch.converters import ImportedModel, ModelInfo, TensorInfo, format_of, from_pt2, info_of, load_model
from mera_torch.converters.exported import load_exported
from mera_torch.converters.files import read
from mera_torch.converters.graph import first_line
from mera_torch.errors import InvalidModelError, MeraError, ShapeNeededError, UnsupportedError
from mera_torch.input_desc import InputDescriptionContainer
from mera_torch.loader import MeraModel, ModelLoader
from mera_torch.pytrees import leaf_names
from mera_torch.targets import Layout

from .graphs.capture import export_float

Shapes = list[tuple[str, tuple[int, ...], torch.dtype]]
"""(name or "", shape, dtype) of each input."""
_ONE = "(1, 3, 224, 224)"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_FIXED = "every size must be a number above 0, the batch's too: the DNA computes networks of fixed shapes"


@dataclass(frozen=True)
class FloatModel:
    """original: the exported network; info: its inputs and outputs, in the user's layout; name: the file's stem."""

    original: GraphModule
    info: ModelInfo
    name: str

    def examples(self) -> tuple[torch.Tensor, ...]:
        """Zeros of the inputs' shapes and dtypes."""
        return tuple(torch.zeros(info.shape, dtype=info.dtype) for info in self.info.inputs)


def open_float(model: Any, input_shape: Any, layout: Layout | str | None, name: str | None = None) -> FloatModel:
    """The model exported; arguments and errors as of :class:`ModelQuantizer`."""
    wanted = None if layout is None else Layout(layout)
    shapes = None if input_shape is None else _shapes(input_shape)
    if isinstance(model, MeraModel):
        return _imported(model.module, shapes, wanted, name or model.model_name)
    if isinstance(model, ExportedProgram):
        return _program(model, shapes, wanted, name or "model")
    if isinstance(model, ImportedModel):
        return _imported(model, shapes, wanted, name or "model")
    if isinstance(model, str | os.PathLike | bytes):
        stem = "model" if isinstance(model, bytes) else Path(model).stem
        return _file(model, shapes, wanted, name or stem)
    if isinstance(model, torch.jit.ScriptModule):
        return _torchscript(model, shapes, wanted, name or "model")
    if isinstance(model, torch.nn.Module):
        return _module(model, shapes, wanted, name or "model")
    if type(model).__module__.partition(".")[0] in ("keras", "tensorflow", "tf_keras"):
        from mera_torch.converters import from_keras

        return _imported(from_keras(model, _batch(shapes)), shapes, wanted, name or "model")
    if hasattr(model, "SerializeToString"):  # onnx.ModelProto
        return _file(model.SerializeToString(), shapes, wanted, name or "model")
    raise InvalidModelError(
        "model must be a path, an nn.Module, a ScriptModule, an ExportedProgram or a model from ModelLoader, got "
        f"{type(model).__name__}"
    )


# ---- shapes ----


def _shapes(given: Any) -> Shapes:
    """One shape, a list of shapes or of (shape, dtype), or {name: shape or (shape, dtype)}."""
    if isinstance(given, list | tuple) and any(size is None or size == -1 for size in given if not _has_dtype(size)):
        raise InvalidModelError(f"input_shape {given!r:.80}: {_FIXED}")
    if isinstance(given, Mapping):
        rows = {name: value if _has_dtype(value) else (value, "float32") for name, value in given.items()}
    elif isinstance(given, list | tuple) and given and all(isinstance(size, Integral) for size in given):
        rows = {"0": (given, "float32")}
    elif isinstance(given, list | tuple) and given and _has_dtype(given):
        rows = {"0": given}
    elif isinstance(given, list | tuple | torch.Size) and given:
        rows = {str(i): row if _has_dtype(row) else (row, "float32") for i, row in enumerate(given)}
    else:
        raise InvalidModelError(f"input_shape must be a shape such as {_ONE}, or a list of them, got {given!r:.80}")
    try:
        desc = InputDescriptionContainer(rows)
    except InvalidModelError as error:
        raise InvalidModelError(f"input_shape must be a shape such as {_ONE}, or a list of them: {error}") from error
    if any(size == 0 for row in desc.values() for size in row.input_shape):
        raise InvalidModelError(f"input_shape {given!r:.80}: {_FIXED}")
    named = isinstance(given, Mapping)
    return [(key if named else "", row.input_shape, getattr(torch, row.input_type)) for key, row in desc.items()]


def _has_dtype(value: Any) -> bool:
    """Whether it is (shape, dtype)."""
    pair = isinstance(value, list | tuple) and len(value) == 2 and not isinstance(value[0], Integral)
    return pair and isinstance(value[1], str | torch.dtype | np.dtype | type)


def _batch(shapes: Shapes | None) -> int:
    return shapes[0][1][0] if shapes and shapes[0][1] else 1


# ---- files and imported models ----


def _file(source: Any, shapes: Shapes | None, layout: Layout | None, name: str) -> FloatModel:
    kind = format_of(source)
    if kind == "mera":
        raise InvalidModelError(f"{source!r:.100} is quantized already: QuantizedModel.load reads it")
    if kind == "torchscript":
        return _torchscript(source, shapes, layout, name)
    if kind == "pt2":
        return _program(load_exported(source), shapes, layout, name)
    options: dict[str, Any] = {}
    if shapes and kind == "keras":
        options["batch_num"] = _batch(shapes)
    if shapes and kind == "onnx":
        options["shape_mapping"] = _onnx_shapes(source, _as_nchw(shapes, layout))
    try:
        model = load_model(source, **options)
    except ShapeNeededError as error:
        raise InvalidModelError(f"{error.problem}: give input_shape, such as {_ONE}") from error
    return _imported(model, shapes, layout, name)


def _program(program: ExportedProgram, shapes: Shapes | None, layout: Layout | None, name: str) -> FloatModel:
    model = from_pt2(_fixed(program, _as_nchw(shapes, layout)))
    if layout is not None:  # PyTorch's images are N, C, H, W
        inputs, outputs = (
            tuple(replace(row, layout="NCHW") if len(row.shape) == 4 else row for row in rows)
            for rows in (model.info.inputs, model.info.outputs)
        )
        model.meta["mera_model"] = replace(model.info, inputs=inputs, outputs=outputs)
    return _imported(model, shapes, layout, name)


def _fixed(program: ExportedProgram, shapes: Shapes | None) -> ExportedProgram:
    """The program for these sizes of what it leaves open."""
    places = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in program.graph_signature.user_inputs]
    values = {place.name: place.meta["val"] for place in places if isinstance(place.meta["val"], torch.Tensor)}
    open_ones = [key for key, value in values.items() if not all(isinstance(size, int) for size in value.shape)]
    if not open_ones:
        return program
    if shapes is None:
        raise InvalidModelError(f"input {open_ones[0]!r} has a dynamic dimension: give input_shape, such as {_ONE}")
    given = {key or own: shape for own, (key, shape, _) in zip(values, shapes, strict=False)}
    if len(shapes) != len(values) or set(given) != set(values) or len(values) != len(places):
        raise InvalidModelError(f"input_shape has {len(shapes)} shapes, the model the inputs {', '.join(values)}")
    examples = tuple(torch.zeros(given[key], dtype=value.dtype) for key, value in values.items())
    try:
        return torch.export.export(program.module(), examples)
    except Exception as error:  # torch.export has no common base of its errors
        sizes = [list(x.shape) for x in examples]
        raise InvalidModelError(f"the model cannot take input_shape {sizes}: {first_line(error)}") from error


def _as_nchw(shapes: Shapes | None, layout: Layout | None) -> Any:
    """The shapes of a network that computes in NCHW."""
    if shapes is None or layout is not Layout.NHWC:
        return shapes
    return [(key, _moved(shape, TO_NCHW) if len(shape) == 4 else shape, dtype) for key, shape, dtype in shapes]


def _onnx_shapes(source: Any, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Each input's shape by its name in the file."""
    if all(name for name, *_ in shapes):
        return {name: shape for name, shape, _ in shapes}
    import onnx

    try:
        graph = onnx.load_model_from_string(read(source)).graph
    except Exception as error:  # load_model says what is wrong with the file
        load_model(source)
        raise InvalidModelError(f"{source!r:.100} cannot be read: {error}") from error
    constants = {tensor.name for tensor in graph.initializer}
    names = [tensor.name for tensor in graph.input if tensor.name not in constants]
    if len(names) != len(shapes):
        raise InvalidModelError(f"input_shape has {len(shapes)} shapes, the model {len(names)} inputs: {names}")
    return {name: shape for name, (_, shape, _) in zip(names, shapes, strict=True)}


def _imported(model: ImportedModel, shapes: Shapes | None, layout: Layout | None, name: str) -> FloatModel:
    if layout is not None:
        model = relaid(model, layout.value)
    _check_shapes(model.info.inputs, shapes)
    original = export_float(model, model.example_inputs())
    original.meta["mera_model"] = model.info
    return FloatModel(original, model.info, name)


def _check_shapes(infos: Sequence[TensorInfo], shapes: Shapes | None) -> None:
    if shapes is None:
        return
    wanted = {info.name: info.shape for info in infos}
    given = {key or name: shape for name, (key, shape, _) in zip(wanted, shapes, strict=False)}
    if len(shapes) != len(infos) or given != wanted:
        raise InvalidModelError(
            f"input_shape says {[list(shape) for _, shape, _ in shapes]}, but the model takes "
            f"{', '.join(f'{info.name!r} {list(info.shape)} {info.layout}'.rstrip() for info in infos)}"
        )


def _torchscript(source: Any, shapes: Shapes | None, layout: Layout | None, name: str) -> FloatModel:
    if shapes is None:
        raise InvalidModelError(f"TorchScript does not say the shapes of its inputs: give input_shape, such as {_ONE}")
    desc = {key or f"input{i}": (shape, dtype) for i, (key, shape, dtype) in enumerate(shapes)}

    def load(chosen: Layout) -> FloatModel:
        found = ModelLoader().from_pytorch(source, desc, model_name=name, layout=chosen)
        return _imported(found.module, None, None, name)

    return _in_layout(load, shapes, layout)


# ---- modules ----


def _module(model: torch.nn.Module, shapes: Shapes | None, layout: Layout | None, name: str) -> FloatModel:
    info = info_of(model)
    if shapes is None:
        if info is None:
            raise InvalidModelError(f"a module does not say the shapes of its inputs: give input_shape, such as {_ONE}")
        shapes = [(row.name, row.shape, row.dtype) for row in info.inputs]

    shapes = _in_order(shapes, model)

    def load(chosen: Layout) -> FloatModel:
        moved = [chosen is Layout.NHWC and len(shape) == 4 for _, shape, _ in shapes]
        examples = tuple(
            torch.zeros(_moved(shape, TO_NCHW) if move else shape, dtype=dtype)
            for (_, shape, dtype), move in zip(shapes, moved, strict=True)
        )
        original = export_float(model, examples)
        places = [node for node in original.graph.nodes if node.op == "placeholder"]
        names = [key or str(place.target) for (key, *_), place in zip(shapes, places, strict=True)]
        if chosen is Layout.NHWC:
            _permute(original, places, moved)
        described = _describe(original, places, names, chosen)
        original.meta["mera_model"] = described
        return FloatModel(original, described, name)

    return _in_layout(load, shapes, layout)


def _in_order(shapes: Shapes, model: torch.nn.Module) -> Shapes:
    """Named shapes in the order of the arguments of these names; other names are the user's own, by position."""
    taken = [name for name, each in inspect.signature(model.forward).parameters.items() if each.kind in _POSITIONAL]
    known = [name for name, *_ in shapes if name in taken]
    if not known:
        return shapes
    named = sorted(shapes, key=lambda row: taken.index(row[0]) if row[0] in taken else len(taken))
    if [name for name, *_ in named] != taken[: len(shapes)]:
        raise InvalidModelError(
            f"input_shape names {', '.join(name for name, *_ in shapes)}, but the model takes {', '.join(taken)}: name "
            "the first of these, or give a list of shapes"
        )
    return named


def _in_layout(load: Callable[[Layout], FloatModel], shapes: Shapes, layout: Layout | None) -> FloatModel:
    """What `load` makes for the layout; where none is said, for the one of the two whose shapes the network takes,
    PyTorch's own first."""
    if layout is not None or not any(len(shape) == 4 for _, shape, _ in shapes):
        return load(layout or Layout.NCHW)
    try:
        return load(Layout.NCHW)
    except UnsupportedError:
        raise
    except MeraError as error:
        try:
            return load(Layout.NHWC)
        except MeraError as other:
            if str(other) == str(error):  # nothing that a layout would change
                raise error from None
            raise type(error)(f"{error} (nor does it take these shapes as N, H, W, C)") from error


def _moved(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[d] for d in order)


def _permute(model: GraphModule, places: Sequence[Node], moved: Sequence[bool]) -> None:
    """Images come and go as N, H, W, C, while the network computes as it did."""
    permute = torch.ops.aten.permute.default
    for place, move in zip(places, moved, strict=True):
        if not move:
            continue
        value = place.meta["val"]
        with model.graph.inserting_after(place):
            image = model.graph.call_function(permute, (place, list(TO_NCHW)))
        place.replace_all_uses_with(image, lambda user, image=image: user is not image)  # type: ignore[misc]
        image.meta["val"] = value
        place.meta["val"] = value.new_empty(_moved(value.shape, TO_NHWC))
    output = next(node for node in model.graph.nodes if node.op == "output")

    def nhwc(node: Node) -> Node:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dim() != 4:
            return node
        with model.graph.inserting_before(output):
            result = model.graph.call_function(permute, (node, list(TO_NHWC)))
        result.meta["val"] = value.new_empty(_moved(value.shape, TO_NHWC))
        return result

    output.args = torch.fx.map_arg(output.args, nhwc)
    model.graph.lint()
    model.recompile()


def _describe(model: GraphModule, places: Sequence[Node], names: Sequence[str], layout: Layout) -> ModelInfo:
    def info(name: str, value: torch.Tensor) -> TensorInfo:
        return TensorInfo(name, tuple(value.shape), value.dtype, layout.value if value.dim() == 4 else "")

    output = next(node for node in model.graph.nodes if node.op == "output")
    leaves = pytree.tree_leaves(output.args[0])
    codegen: Any = model.graph._codegen
    named = leaf_names(codegen.pytree_info.out_spec)
    named = ["output"] if named == ["output_0"] else named
    results = [(name, leaf.meta["val"]) for name, leaf in zip(named, leaves, strict=True) if isinstance(leaf, Node)]
    inputs = tuple(info(name, place.meta["val"]) for name, place in zip(names, places, strict=True))
    outputs = tuple(info(name, value) for name, value in results)
    return ModelInfo("pytorch", inputs, outputs)
