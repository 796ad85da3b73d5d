"""Windows of convolutions and pools: kernel, strides, dilations, and padding however the file states it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..graph import Value, shape
from .context import OnnxBuilder, OnnxNode, aten


@dataclass(frozen=True)
class Window:
    """One entry for each spatial dimension. begin, end: padding in front of and behind the data; output: its sizes."""

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    begin: list[int]
    end: list[int]
    output: list[int]

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def extents(self) -> list[int]:
        """Elements that a window spans."""
        return [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]

    @property
    def symmetric(self) -> bool:
        return self.begin == self.end


def numbers(g: OnnxBuilder, node: OnnxNode, name: str, default: Sequence[int], least: int) -> list[int]:
    """An attribute with one number for each entry of `default`, each at least `least`."""
    found: list[int] = node.ints(name, list(default)) or list(default)
    if len(found) != len(default) or any(not least <= i < 2**31 for i in found):
        raise g.invalid(f"its {name} must be {len(default)} numbers from {least} on, got {found[:8]}")
    return found


def window_of(g: OnnxBuilder, node: OnnxNode, x: Value, kernel: Sequence[int]) -> Window:
    """The window of a convolution or pool over x, [N, C, spatial...]."""
    sizes, rank = list(shape(x)[2:]), len(kernel)
    if len(shape(x)) != rank + 2:
        raise g.invalid(f"its kernel has {rank} dimensions, so its input must have {rank + 2}, got {len(shape(x))}")
    if any(k < 1 for k in kernel):
        raise g.invalid(f"its kernel {list(kernel)} must not be empty")
    stride, dilation = numbers(g, node, "strides", [1] * rank, 1), numbers(g, node, "dilations", [1] * rank, 1)
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    auto = node.string("auto_pad", "NOTSET")
    ceil = bool(node.int("ceil_mode", 0))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        output = [-(-size // s) for size, s in zip(sizes, stride, strict=True)]
        total = [max(0, (o - 1) * s + e - size) for o, s, e, size in zip(output, stride, extents, sizes, strict=True)]
        begin, end = halves(total, upper=auto == "SAME_UPPER")
        return Window(list(kernel), stride, dilation, begin, end, output)
    if auto not in ("NOTSET", "VALID", ""):
        raise g.invalid(f"its auto_pad must be NOTSET, SAME_UPPER, SAME_LOWER or VALID, got {auto!r}")
    pads = [0] * 2 * rank if auto == "VALID" else numbers(g, node, "pads", [0] * 2 * rank, 0)
    begin, end = pads[:rank], pads[rank:]
    output = [_steps(*args, ceil) for args in zip(sizes, extents, stride, begin, end, strict=True)]
    if any(o < 1 for o in output) and 0 not in sizes:
        raise g.invalid(f"its window of {extents} is larger than its input of {sizes} with padding {pads}")
    return Window(list(kernel), stride, dilation, begin, end, output)


def halves(total: Sequence[int], upper: bool) -> tuple[list[int], list[int]]:
    """Padding divided over both sides; the odd element goes to the end if upper, else to the beginning."""
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (small, large) if upper else (large, small)


def _steps(size: int, extent: int, stride: int, begin: int, end: int, ceil: bool) -> int:
    """Windows along one dimension. With ceil the last one may pass the end, but must begin before the end's padding."""
    span = size + begin + end - extent
    steps = span // stride + 1
    if ceil and span % stride and steps * stride < size + begin:
        steps += 1
    return steps


def pad(g: OnnxBuilder, x: Value, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> Value:
    """x padded over its last dimensions; nothing if there is nothing to pad."""
    if not any(begin) and not any(end):
        return x
    amounts = [n for b, e in zip(reversed(begin), reversed(end), strict=True) for n in (b, e)]
    return g.call(aten.constant_pad_nd.default, x, amounts, value)


def crop(g: OnnxBuilder, x: Value, dim: int, begin: int, size: int) -> Value:
    """x[begin : begin + size] along a dimension."""
    if begin == 0 and size == shape(x)[dim]:
        return x
    return g.call(aten.slice.Tensor, x, dim, begin, begin + size)


def kernel_of(g: OnnxBuilder, node: OnnxNode, weight: Any) -> list[int]:
    """The kernel of a convolution: its weight's, [Co, Ci, spatial...], with which the attribute must agree."""
    sizes = list(shape(weight))
    if len(sizes) < 3:
        raise g.invalid(f"its weight must be of rank 3 or more, got shape {sizes}")
    stated = node.ints("kernel_shape", None)
    if stated and list(stated) != sizes[2:]:
        raise g.invalid(f"its kernel_shape {list(stated)} differs from its weight's {sizes[2:]}")
    return sizes[2:]
