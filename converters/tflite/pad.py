"""Padding, and the exchange of space for depth or batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..graph import Value
from ..registry import converts
from .context import Op, aten


def _pads(op: Op) -> list[tuple[int, int]]:
    """(before, after) of each dimension."""
    held = op.constant(1, "its paddings")
    if tuple(held.shape) != (op.rank(0), 2) or held.is_floating_point() or int(held.min() if held.numel() else 0) < 0:
        raise op.b.invalid(f"its paddings must be {op.rank(0)} pairs of integers, none below 0, got {held.tolist()}")
    return [(int(before), int(after)) for before, after in held]


def _flat_pads(pads: Sequence[tuple[int, int]], first: bool) -> list[int]:
    """As aten wants them: the last dimension first, no zeros at the end."""
    if first:
        pads = [pads[a] for a in (0, 3, 1, 2)]
    flat = [side for pair in reversed(pads) for side in pair]
    while flat and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    return flat


@converts("tflite", "PAD", "PADV2")
def pad(op: Op) -> None:
    """With zeros, or the number that is PADV2's third input."""
    value: Any = 0
    if op.has(2):
        held = op.constant(2, "its padding value")
        if held.numel() != 1:
            raise op.b.invalid(f"its padding value must be one number, got shape {list(held.shape)}")
        value = held.item()
        if op.c.is_quantized(op.tensor(2)):
            q = op.c.qparams(op.tensor(2))
            value = (value - q.zero_point) * q.scale
    first = op.is_first(0)
    flat = _flat_pads(_pads(op), first)
    x = op.real(0, first)
    op.give_moved(op.b.call(aten.constant_pad_nd.default, x, flat, value) if flat else x, first)


@converts("tflite", "MIRROR_PAD")
def mirror_pad(op: Op) -> None:
    """REFLECT leaves the edge out of the mirror image, SYMMETRIC has it twice."""
    symmetric = op.option("MirrorPadOptions", "Mode") == 1
    sizes, pads = op.shape(0), _pads(op)
    op.listable(*sizes)
    first = op.is_first(0)
    x = op.real(0, first)
    for axis, ((before, after), size) in enumerate(zip(pads, sizes, strict=True)):
        if (before, after) == (0, 0):
            continue
        if max(before, after) > size - (not symmetric):
            raise op.b.invalid(f"paddings {pads} are larger than {list(sizes)} can mirror")
        edge = 0 if symmetric else 1
        order = [
            *range(before - 1 + edge, edge - 1, -1),
            *range(size),
            *range(size - 1 - edge, size - 1 - edge - after, -1),
        ]
        x = op.b.call(aten.index_select.default, x, op.dim(axis, first), torch.tensor(order, dtype=torch.int64))
    op.give_moved(x, first)


# ---- space, depth, batch ----


def _blocks(op: Op, x: Value, split_: Sequence[int], order: Sequence[int], sizes: Sequence[int]) -> Value:
    """Reshape, permutation, reshape."""
    x = op.b.call(aten.permute.default, op.b.call(aten.reshape.default, x, list(split_)), list(order))
    return op.b.call(aten.reshape.default, x, list(sizes))


@converts("tflite", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE")
def space_depth(op: Op) -> None:
    """The block's position is the slower part of the channel. Channels first: [N, C, H, W]."""
    down = op.code == "SPACE_TO_DEPTH"
    b = int(op.option("SpaceToDepthOptions" if down else "DepthToSpaceOptions", "BlockSize"))
    if op.rank(0) != 4:
        raise op.b.invalid(f"its input must be images (rank 4), got {list(op.shape(0))}")
    n, h, w, c = op.shape(0)
    if b < 1 or (h % b or w % b if down else c % (b * b)):
        raise op.b.invalid(f"block size {b} does not divide {[n, h, w, c]}")
    first = op.is_first(0)
    x = op.real(0, first)
    if down and first:
        y = _blocks(op, x, [n, c, h // b, b, w // b, b], [0, 3, 5, 1, 2, 4], [n, c * b * b, h // b, w // b])
    elif down:
        y = _blocks(op, x, [n, h // b, b, w // b, b, c], [0, 1, 3, 2, 4, 5], [n, h // b, w // b, c * b * b])
    elif first:
        y = _blocks(op, x, [n, b, b, c // b // b, h, w], [0, 3, 4, 1, 5, 2], [n, c // b // b, h * b, w * b])
    else:
        y = _blocks(op, x, [n, h, w, b, b, c // b // b], [0, 1, 3, 2, 4, 5], [n, h * b, w * b, c // b // b])
    op.give_moved(y, first)


@converts("tflite", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND")
def space_batch(op: Op) -> None:
    """Blocks of the dimensions behind the first become batches, or the reverse."""
    blocks = op.ints(1, "its block shape")
    held = op.constant(2, "its paddings or crops")
    sizes, m = list(op.shape(0)), len(blocks)
    if m == 0 or m > len(sizes) - 1 or tuple(held.shape) != (m, 2) or min(blocks) < 1 or bool((held < 0).any()):
        raise op.b.invalid(f"block shape {blocks} and {held.tolist()} do not fit {sizes}")
    edges = [(int(before), int(after)) for before, after in held]
    rest = sizes[m + 1 :]
    x = op.real(0)
    dims = range(m)
    if op.code == "SPACE_TO_BATCH_ND":
        flat = _flat_pads([(0, 0), *edges, *[(0, 0)] * len(rest)], False)
        x = op.b.call(aten.constant_pad_nd.default, x, flat, 0) if flat else x
        space = [size + sum(edge) for size, edge in zip(sizes[1:], edges, strict=False)]
        if any(size % block for size, block in zip(space, blocks, strict=True)):
            raise op.b.invalid(f"block shape {blocks} does not divide the padded size {space}")
        parts = [size // block for size, block in zip(space, blocks, strict=True)]
        split_ = [sizes[0], *(s for pair in zip(parts, blocks, strict=True) for s in pair), *rest]
        order = [*(2 + 2 * d for d in dims), 0, *(1 + 2 * d for d in dims), *range(2 * m + 1, 2 * m + 1 + len(rest))]
        op.give_moved(_blocks(op, x, split_, order, [sizes[0] * math.prod(blocks), *parts, *rest]))
        return
    if sizes[0] % math.prod(blocks):
        raise op.b.invalid(f"batch {sizes[0]} is no multiple of the block shape {blocks}")
    batch = sizes[0] // math.prod(blocks)
    order = [m, *(axis for d in dims for axis in (m + 1 + d, d)), *range(2 * m + 1, 2 * m + 1 + len(rest))]
    space = [size * block for size, block in zip(sizes[1:], blocks, strict=False)]
    y = _blocks(op, x, [*blocks, batch, *sizes[1 : m + 1], *rest], order, [batch, *space, *rest])
    for d, ((before, after), size) in enumerate(zip(edges, space, strict=True), 1):
        if before + after > size:
            raise op.b.invalid(f"crops {edges} are larger than {space}")
        if before or after:
            y = op.b.call(aten.slice.Tensor, y, d, before, size - after)
    op.give_moved(y)
