"""How a PyTorch tensor of any rank lies in the DNA's memory.

The DNA holds images as NHWC, PyTorch speaks of them as NCHW. Each tensor of a region therefore carries a Layout: its
elements as a row-major array of `sizes` (the storage axes, slowest first), and for each of PyTorch's dimensions the
storage axes that it is the product of. Permuting PyTorch's dimensions changes the second only, so it moves no byte, and
the same goes for most reshapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """sizes: the storage axes, slowest first, none of size 1; dims[d]: those of PyTorch's dimension d, likewise."""

    sizes: tuple[int, ...]
    dims: tuple[Axes, ...]

    @staticmethod
    def of(shape: tuple[int, ...], order: tuple[int, ...] | None = None) -> Layout:
        """A tensor of `shape` whose dimensions lie in memory in `order` (slowest first; default: as in PyTorch)."""
        order = tuple(range(len(shape))) if order is None else order
        stored = [d for d in order if shape[d] != 1]
        position = {d: i for i, d in enumerate(stored)}
        dims = tuple((position[d],) if d in position else () for d in range(len(shape)))
        return Layout(tuple(shape[d] for d in stored), dims)

    @staticmethod
    def image(shape: tuple[int, ...]) -> Layout:
        """NHWC storage of PyTorch's [N,C,H,W]; other ranks as in PyTorch."""
        return Layout.of(shape, (0, 2, 3, 1) if len(shape) == 4 else None)

    @property
    def shape(self) -> tuple[int, ...]:
        """PyTorch's shape."""
        return tuple(self.extent(axes) for axes in self.dims)

    def extent(self, axes: Axes) -> int:
        return math.prod(self.sizes[a] for a in axes)

    def permuted(self, order: Axes) -> Layout:
        """After tensor.permute(order): the same memory."""
        return Layout(self.sizes, tuple(self.dims[d] for d in order))

    def reordered(self, order: Axes) -> Layout:
        """The layout of a copy whose storage axes stand in `order`."""
        position = {axis: i for i, axis in enumerate(order)}
        return Layout(
            tuple(self.sizes[a] for a in order), tuple(tuple(position[a] for a in axes) for axes in self.dims)
        )

    def reshaped(self, shape: tuple[int, ...]) -> Layout | None:
        """After tensor.reshape(shape), if that needs no copy; else None."""
        old = [(axis, self.sizes[axis]) for axes in self.dims for axis in axes]  # in PyTorch's order
        parts: dict[int, list[int]] = {axis: [] for axis, _ in old}  # how each axis splits, slowest first
        dims: list[list[tuple[int, int]]] = []  # (axis, index of its part)
        queue = [*reversed(old)]
        for size in shape:
            mine: list[tuple[int, int]] = []
            while size > 1:
                if not queue:
                    return None
                axis, extent = queue.pop()
                if size % extent == 0:
                    part, size = extent, size // extent
                elif extent % size == 0:
                    part = size
                    queue.append((axis, extent // size))
                    size = 1
                else:
                    return None
                mine.append((axis, len(parts[axis])))
                parts[axis].append(part)
            dims.append(mine)
        first: dict[int, int] = {}
        sizes: list[int] = []
        for axis in range(len(self.sizes)):
            first[axis] = len(sizes)
            sizes.extend(parts[axis])
        return Layout(tuple(sizes), tuple(tuple(first[a] + i for a, i in mine) for mine in dims))

    def fast_dims(self) -> tuple[int, ...] | None:
        """PyTorch's dimensions of size above 1 in order of storage, or None if one of them is scattered."""
        order: list[tuple[int, int]] = []
        for d, axes in enumerate(self.dims):
            if axes and list(axes) != list(range(axes[0], axes[0] + len(axes))):
                return None
            if axes:
                order.append((axes[0], d))
        return tuple(d for _, d in sorted(order))


def moves(order: Axes) -> list[tuple[int, int, int]]:
    """How to bring axes 0..n-1 into `order` by exchanging two neighbouring blocks at a time.

    Each move (begin, middle, end) exchanges the blocks begin..middle and middle..end: one transpose of rank 4.
    """
    current = list(range(len(order)))
    result = []
    target = 0
    while target < len(order):
        if current[target] == order[target]:
            target += 1
            continue
        start = current.index(order[target])
        end = start + 1
        while end < len(order) and target + end - start < len(order) and current[end] == order[target + end - start]:
            end += 1
        result.append((target, start, end))
        current[target:end] = current[start:end] + current[target:start]
    return result
