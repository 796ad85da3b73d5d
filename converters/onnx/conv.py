"""Convolution and transposed convolution."""

from __future__ import annotations

from ..graph import Value, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .windows import Window, crop, halves, kernel_of, numbers, pad, window_of


@converts("onnx", "Conv")
def conv(g: OnnxBuilder, node: OnnxNode) -> Value:
    x, weight, bias = node.take(3)
    return convolution(g, node, x, node.require(1) if weight is None else weight, bias)


def convolution(g: OnnxBuilder, node: OnnxNode, x: Value, weight: Value, bias: Value | None) -> Value:
    """The convolution that the node's attributes describe, of values that may be dequantized ones."""
    w = window_of(g, node, x, kernel_of(g, node, weight))
    if w.rank > 3:
        raise g.unsupported(f"convolution over {w.rank} dimensions has no operator; at most 3 are supported")
    groups = _groups(g, node, x, weight, transposed=False)
    if not w.symmetric:
        x = pad(g, x, w.begin, w.end)
    padding = w.begin if w.symmetric else [0] * w.rank
    zeros = [0] * w.rank
    return g.call(aten.convolution.default, x, weight, bias, w.stride, padding, w.dilation, False, zeros, groups)


def _groups(g: OnnxBuilder, node: OnnxNode, x: Value, weight: Value, transposed: bool) -> int:
    groups: int = node.int("group", 1)
    channels, sizes = shape(x)[1], list(shape(weight))
    expected = sizes[0] if transposed else sizes[1] * groups
    if groups < 1 or channels != expected or sizes[0] % groups:
        raise g.invalid(f"its input of {channels} channels, weight {sizes} and group {groups} do not fit each other")
    return groups


@converts("onnx", "ConvTranspose")
def conv_transpose(g: OnnxBuilder, node: OnnxNode) -> Value:
    """PyTorch's own operator where it has one; else the whole result, cut to size."""
    x, weight, bias = node.take(3)
    weight = node.require(1) if weight is None else weight
    w, extra = transposed_window(g, node, x, kernel_of(g, node, weight))
    if w.rank > 3:
        raise g.unsupported(f"convolution over {w.rank} dimensions has no operator; at most 3 are supported")
    groups = _groups(g, node, x, weight, transposed=True)
    # An end that is less padded is what PyTorch calls output padding.
    output_padding = [e + b - a for e, b, a in zip(extra, w.begin, w.end, strict=True)]
    limits = [max(s, d) for s, d in zip(w.stride, w.dilation, strict=True)]
    if all(0 <= o < limit for o, limit in zip(output_padding, limits, strict=True)) and min(w.begin) >= 0:
        args = (w.stride, w.begin, w.dilation, True, output_padding, groups)
        return g.call(aten.convolution.default, x, weight, bias, *args)
    zeros = [0] * w.rank
    y = g.call(aten.convolution.default, x, weight, None, w.stride, zeros, w.dilation, True, zeros, groups)
    y = _fit(g, y, w)
    if bias is None:
        return y
    return g.call(aten.add.Tensor, y, g.call(aten.reshape.default, bias, [-1, *[1] * w.rank]))


def _fit(g: OnnxBuilder, y: Value, w: Window) -> Value:
    """Cuts w.begin off in front (a negative one pads), and brings the result to w.output."""
    front = [max(0, -b) for b in w.begin]
    sizes = shape(y)[2:]
    behind = [max(0, b + o - size) for b, o, size in zip(w.begin, w.output, sizes, strict=True)]
    y = pad(g, y, front, behind)
    for i in range(w.rank):
        y = crop(g, y, 2 + i, max(0, w.begin[i]), w.output[i])
    return y


def transposed_window(g: OnnxBuilder, node: OnnxNode, x: Value, kernel: list[int]) -> tuple[Window, list[int]]:
    """The window of a transposed convolution, and its output padding."""
    rank, sizes = len(kernel), shape(x)[2:]
    if len(sizes) != rank:
        raise g.invalid(f"its input must be of rank {rank + 2}, as its weight is, got {len(sizes) + 2}")
    stride, dilation = numbers(g, node, "strides", [1] * rank, 1), numbers(g, node, "dilations", [1] * rank, 1)
    extra = numbers(g, node, "output_padding", [0] * rank, 0)
    auto = node.string("auto_pad", "NOTSET")
    whole = [
        s * (size - 1) + d * (k - 1) + 1 + e
        for s, size, d, k, e in zip(stride, sizes, dilation, kernel, extra, strict=True)
    ]
    output = node.ints("output_shape", None)
    if output:
        output = list(output)[-rank:]  # some writers state N and C too
        if len(output) != rank or any(o < 1 for o in output):
            raise g.invalid(f"its output_shape must be {rank} sizes, got {output}")
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        output = [size * s for size, s in zip(sizes, stride, strict=True)]
    if output:
        begin, end = halves([max(0, t - o) for t, o in zip(whole, output, strict=True)], upper=auto == "SAME_UPPER")
        end = [e - max(0, o - t) for e, t, o in zip(end, whole, output, strict=True)]  # what is missing comes last
    else:
        if auto not in ("NOTSET", "VALID", ""):
            raise g.invalid(f"its auto_pad must be NOTSET, SAME_UPPER, SAME_LOWER or VALID, got {auto!r}")
        pads = [0] * 2 * rank if auto == "VALID" else numbers(g, node, "pads", [0] * 2 * rank, 0)
        begin, end = pads[:rank], pads[rank:]
        output = [t - b - e for t, b, e in zip(whole, begin, end, strict=True)]
        if any(o < 1 for o in output):
            raise g.invalid(f"its padding {pads} leaves nothing of its result of {whole}")
    return Window(kernel, stride, dilation, begin, end, output), extra
