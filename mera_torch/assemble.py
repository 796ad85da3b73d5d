"""New models made of imported ones, operator by operator: the same operators, so the same bits.

relaid: images as the user's arrays hold them (NHWC or NCHW); prequantized: inputs that come already quantized;
joined: several models as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from .converters import ImportedModel, TensorInfo
from .converters.graph import identifier
from .errors import InvalidModelError, UnsupportedError
from .ops.common import QUANTIZE, args_of

TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def relaid(model: ImportedModel, layout: str) -> ImportedModel:
    """The model with its images as `layout` ("NHWC" or "NCHW"): inputs and outputs of four dimensions whose layout is
    known to be the other one. The model itself where there is none."""
    order, back = (TO_NHWC, TO_NCHW) if layout == "NHWC" else (TO_NCHW, TO_NHWC)
    if not any(_differs(info, layout) for info in (*model.info.inputs, *model.info.outputs)):
        return model
    new = _Assembly()
    inputs = [_moved(info, order, layout) if _differs(info, layout) else info for info in model.info.inputs]
    given = [new.placeholder(info) for info in inputs]
    values = [
        new.contiguous(new.permute(node, back)) if _differs(info, layout) else node
        for node, info in zip(given, model.info.inputs, strict=True)
    ]
    found, outputs = new.add(model, values)
    results = []
    for index, (node, info) in enumerate(zip(found, outputs, strict=True)):
        if _differs(info, layout):
            outputs[index] = _moved(info, order, layout)
            node = new.permute(node, order)
        results.append(node)
    return new.finish(model.info.format, inputs, results, outputs)


def prequantized(model: ImportedModel) -> ImportedModel:
    """The model with the quantization of its float inputs left to the caller: such an input has the dtype, scale and
    zero point of the quantize operator that reads it. Inputs of integers stay as they are.

    Raises UnsupportedError if a float input is read by anything but one way of quantizing it.
    """
    new = _Assembly()
    infos, skipped = [], {}
    places = [node for node in model.graph.nodes if node.op == "placeholder"]
    for node, info in zip(places, model.info.inputs, strict=True):
        if info.dtype.is_floating_point:
            scale, zero_point, dtype = _quantization(node, info.name)
            info = replace(info, dtype=dtype, scale=scale, zero_point=zero_point)
            skipped[node] = _quantizers(node)
        infos.append(info)
    given = [new.placeholder(info) for info in infos]
    values = dict(zip(places, given, strict=True))
    same = {reader: values[place] for place, readers in skipped.items() for reader in readers}
    found, outputs = new.add(model, given, same)
    return new.finish(model.info.format, infos, found, outputs)


def joined(models: Sequence[ImportedModel], names: Sequence[str], share_input: bool) -> ImportedModel:
    """All models as one: inputs `<name>_<index of the model>`, outputs in the order of the models (`<name>_<index>`).

    share_input: every model has one input, of equal dtype and, but for the layout, shape; the first one's layout is
    taken. Raises InvalidModelError if they differ.
    """
    new = _Assembly()
    inputs: list[TensorInfo] = []
    given: list[fx.Node] = []
    if share_input:
        check_shareable([(name, model.info.inputs) for name, model in zip(names, models, strict=True)])
    results: list[fx.Node] = []
    outputs: list[TensorInfo] = []
    for index, (model, name) in enumerate(zip(models, names, strict=True)):
        if index == 0 or not share_input:
            infos = [replace(info, name=f"{info.name}_{index}") for info in model.info.inputs]
            given = [new.placeholder(info) for info in infos]
            inputs += infos
        values = [_as(new, node, inputs[0], model.info.inputs[0]) for node in given] if share_input else given
        found, described = new.add(model, values, label=f"{name}_{index}")
        results += found
        outputs += [replace(info, name=f"{info.name}_{index}") for info in described]
    return new.finish("fused", inputs, results, outputs)


def check_shareable(models: Sequence[tuple[str, Sequence[TensorInfo]]]) -> None:
    """Raises InvalidModelError if models (name, inputs) cannot share one input."""
    for name, inputs in models:
        if len(inputs) != 1:
            listed = ", ".join(info.name for info in inputs)
            raise InvalidModelError(
                f"share_input: each model must have exactly one input, {name!r} has {len(inputs)} ({listed})"
            )
    first_name, (first,) = models[0]
    for name, (info,) in models[1:]:
        if not (_same(info, first) or _image(info) == _image(first)) or info.dtype != first.dtype:
            raise InvalidModelError(
                f"share_input: all inputs must have one shape and dtype, {name!r} takes {_described(info)} and "
                f"{first_name!r} takes {_described(first)}"
            )
        if (info.scale, info.zero_point) != (first.scale, first.zero_point):
            raise InvalidModelError(
                f"share_input: {name!r} takes integers of scale {info.scale} and zero point {info.zero_point}, "
                f"{first_name!r} of {first.scale} and {first.zero_point}: give each its own input"
            )


def _as(new: _Assembly, node: fx.Node, given: TensorInfo, wanted: TensorInfo) -> fx.Node:
    """The shared input as a model wants it."""
    if _same(given, wanted) or given.layout == wanted.layout:
        return node
    return new.permute(node, TO_NHWC if wanted.layout == "NHWC" else TO_NCHW)


def _same(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether an array of the one is an array of the other as it is."""
    return one.shape == other.shape and (one.layout == other.layout or not one.layout or not other.layout)


def _image(info: TensorInfo) -> tuple[int, ...]:
    """The shape, of images in the order NCHW."""
    return tuple(info.shape[d] for d in TO_NCHW) if info.layout == "NHWC" and len(info.shape) == 4 else info.shape


def _described(info: TensorInfo) -> str:
    layout = f" {info.layout}" if info.layout else ""
    return f"{str(info.dtype).removeprefix('torch.')}{list(info.shape)}{layout}"


def _differs(info: TensorInfo, layout: str) -> bool:
    return len(info.shape) == 4 and info.layout not in ("", layout)


def _moved(info: TensorInfo, order: Sequence[int], layout: str) -> TensorInfo:
    return replace(info, shape=tuple(info.shape[d] for d in order), layout=layout)


def _quantizers(node: fx.Node) -> list[fx.Node]:
    """The quantize operators that read the node."""
    return [user for user in node.users if user.target is QUANTIZE]


def _quantization(node: fx.Node, name: str) -> tuple[float, int, torch.dtype]:
    readers = _quantizers(node)
    ways = {args_of(reader)[1:6] for reader in readers}
    if len(readers) != len(node.users) or len(ways) != 1:
        raise UnsupportedError(
            f"use_prequantize_input: the float input {name!r} must be read by one quantize operator alone; "
            + ("the model is not quantized" if not readers else "something else reads it, too")
        )
    scale, zero_point, _, _, dtype = ways.pop()
    return float(scale), int(zero_point), dtype


class _Assembly:
    """A graph that grows by whole models."""

    def __init__(self) -> None:
        self.root, self.graph = torch.nn.Module(), fx.Graph()
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def placeholder(self, info: TensorInfo) -> fx.Node:
        return self._of_shape(self.graph.placeholder(identifier(info.name)), info.shape, info.dtype)

    def permute(self, node: fx.Node, order: Sequence[int]) -> fx.Node:
        val = node.meta["val"]
        new = self.graph.call_function(torch.ops.aten.permute.default, (node, list(order)))
        return self._of_shape(new, [val.shape[d] for d in order], val.dtype)

    def contiguous(self, node: fx.Node) -> fx.Node:
        """The value in the order of memory that the model's views were exported for."""
        val = node.meta["val"]
        clone = torch.ops.aten.clone.default
        new = self.graph.call_function(clone, (node,), {"memory_format": torch.contiguous_format})
        return self._of_shape(new, val.shape, val.dtype)

    def add(
        self, model: ImportedModel, inputs: Sequence[fx.Node], known: dict[fx.Node, fx.Node] | None = None,
        label: str = "",
    ) -> tuple[list[fx.Node], list[TensorInfo]]:  # fmt: skip
        """The model's operators, applied to inputs; its flat outputs and what they are.

        known: nodes of the model that need no copy, with what stands for them. label: goes before the operators' names.
        """
        values: dict[fx.Node, fx.Node] = dict(known or {})
        given = iter(inputs)
        for node in model.graph.nodes:
            if node in values:
                continue
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = self._constant(model, node)
            elif node.op == "call_function":
                values[node] = self.graph.node_copy(node, values.__getitem__)
                _relabel(values[node], label)
            elif node.op == "output":
                flat = [leaf for leaf in pytree.tree_leaves(args_of(node)[0]) if isinstance(leaf, fx.Node)]
                return [values[leaf] for leaf in flat], _outputs(model, flat)
            else:
                raise UnsupportedError(f"node {node.name} ({node.op}) is no operator: import or export the model first")
        raise InvalidModelError("the graph has no output")

    def finish(
        self, format: str, inputs: Sequence[TensorInfo], results: Sequence[fx.Node], outputs: Sequence[TensorInfo]
    ) -> ImportedModel:
        self.graph.output(tuple(results))
        return ImportedModel.of(self.root, self.graph, format, inputs, outputs)

    def _constant(self, model: ImportedModel, node: fx.Node) -> fx.Node:
        held = fx.graph_module._get_attr(model, str(node.target))
        wanted = name = identifier(str(node.target))
        count = 0
        while hasattr(self.root, name):
            count += 1
            name = f"{wanted}_{count}"
        if isinstance(held, torch.nn.Parameter):
            self.root.register_parameter(name, held)
        else:
            self.root.register_buffer(name, held)
        new = self.graph.get_attr(name)
        new.meta = dict(node.meta)
        return new

    def _of_shape(self, node: fx.Node, shape: Sequence[int], dtype: torch.dtype) -> fx.Node:
        with self._mode:
            node.meta["val"] = torch.empty(tuple(shape), dtype=dtype)
        return node


def _relabel(node: fx.Node, label: str) -> None:
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    if label and stack:
        node.meta["nn_module_stack"] = {
            f"{label}.{key}": (f"{label}.{name}", kind) for key, (name, kind) in stack.items()
        }


def _outputs(model: ImportedModel, flat: Sequence[fx.Node]) -> list[TensorInfo]:
    known = model.info.outputs
    if len(known) == len(flat):
        return list(known)
    return [TensorInfo(node.name, tuple(node.meta["val"].shape), node.meta["val"].dtype) for node in flat]
