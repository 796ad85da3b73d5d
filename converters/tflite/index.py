"""Reading and writing at indices: GATHER and kin, ONE_HOT, SCATTER_ND."""

from __future__ import annotations

import math

import torch

from ..graph import Value, dtype, shape
from ..registry import converts
from .context import Op, aten


def _indices(op: Op, i: int) -> Value:
    """Input i as int64. Negative ones, which TFLite does not check, count from the end as in PyTorch."""
    value = op.raw(i)
    if dtype(value) not in (torch.int16, torch.int32, torch.int64):
        raise op.b.invalid(f"input {i} must hold integer indices, got {op.tensor(i).dtype}")
    return value if dtype(value) is torch.int64 else op.b.call(aten._to_copy.default, value, dtype=torch.int64)


@converts("tflite", "GATHER")
def gather(op: Op) -> None:
    kind = "GatherOptions"
    sizes, rank = op.shape(0), op.rank(0)
    axis = op.axis(int(op.option(kind, "Axis")), rank)
    index = _indices(op, 1)
    batch = int(op.option(kind, "BatchDims"))
    batch += len(shape(index)) if batch < 0 else 0
    if not 0 <= batch <= min(axis, len(shape(index))):
        raise op.b.invalid(f"batch_dims {batch} must be from 0 to its axis {axis}")
    x = op.real(0)
    if batch == 0:
        flat = op.b.call(aten.reshape.default, index, [-1])
        y = op.b.call(aten.index_select.default, x, axis, flat)
        op.give_moved(op.b.call(aten.reshape.default, y, [*sizes[:axis], *shape(index), *sizes[axis + 1 :]]))
        return
    lead, inner = sizes[:batch], sizes[batch:axis]
    own = shape(index)[batch:]
    if shape(index)[:batch] != lead:
        raise op.b.invalid(f"indices {list(shape(index))} must begin with the sizes {list(lead)}")
    n, m = math.prod(lead), math.prod(inner)
    op.listable(n, m)
    x = op.b.call(aten.reshape.default, x, [n, m, sizes[axis], *sizes[axis + 1 :]])
    where = torch.arange(n).reshape(n, 1, 1), torch.arange(m).reshape(1, m, 1)
    flat = op.b.call(aten.reshape.default, index, [n, 1, -1])
    y = op.b.call(aten.index.Tensor, x, [*where, flat])
    op.give_moved(op.b.call(aten.reshape.default, y, [*lead, *inner, *own, *sizes[axis + 1 :]]))


@converts("tflite", "GATHER_ND")
def gather_nd(op: Op) -> None:
    """The last dimension of the indices names an element, or a part, of the first input."""
    index = _indices(op, 1)
    depth = shape(index)[-1] if shape(index) else 0
    if not 0 < depth <= op.rank(0):
        raise op.b.invalid(f"indices {list(shape(index))} must end with 1 to {op.rank(0)}")
    parts = [op.b.call(aten.select.int, index, -1, d) for d in range(depth)]
    op.give_moved(op.b.call(aten.index.Tensor, op.real(0), parts))


@converts("tflite", "EMBEDDING_LOOKUP")
def embedding_lookup(op: Op) -> None:
    """Inputs: indices, table."""
    op.give_moved(op.b.call(aten.index_select.default, op.real(1), 0, _indices(op, 0)), i=1)


@converts("tflite", "ONE_HOT")
def one_hot(op: Op) -> None:
    depth = op.ints(1, "its depth")
    op.listable(*depth)
    if len(depth) != 1 or depth[0] < 0 or op.rank(2) or op.rank(3):
        raise op.b.invalid(f"depth {depth}, on and off must be single numbers")
    index = _indices(op, 0)
    rank = len(shape(index)) + 1
    axis = int(op.option("OneHotOptions", "Axis"))
    axis = rank - 1 if axis == -1 else op.axis(axis, rank)
    places = torch.arange(depth[0]).reshape([-1 if d == axis else 1 for d in range(rank)])
    equal = op.b.call(aten.eq.Tensor, op.b.call(aten.unsqueeze.default, index, axis), places)
    op.give_moved(op.b.call(aten.where.self, equal, op.real(2), op.real(3)), i=2)


@converts("tflite", "SCATTER_ND")
def scatter_nd(op: Op) -> None:
    """Inputs: indices, updates, shape of the result; updates of one place are added."""
    sizes = op.ints(2, "its shape")
    index = _indices(op, 0)
    depth = shape(index)[-1] if shape(index) else 0
    if min(sizes, default=0) < 0 or not 0 < depth <= len(sizes):
        raise op.b.invalid(f"indices {list(shape(index))} do not fit its shape {sizes}")
    updates = op.real(1)
    zeros = op.b.call(aten.full.default, sizes, 0, dtype=dtype(updates))
    parts = [op.b.call(aten.select.int, index, -1, d) for d in range(depth)]
    op.give_moved(op.b.call(aten.index_put.default, zeros, parts, updates, True), i=1)


@converts("tflite", "DYNAMIC_UPDATE_SLICE")
def dynamic_update_slice(op: Op) -> None:
    """Inputs: operand, update, start. Starts are moved so that the update lies within."""
    starts, sizes, extents = op.ints(2, "its start"), op.shape(0), op.shape(1)
    if not len(starts) == len(sizes) == len(extents) or any(e > s for e, s in zip(extents, sizes, strict=True)):
        raise op.b.invalid(f"an update {list(extents)} at {starts} does not fit {list(sizes)}")
    op.listable(*extents)
    places = []
    for d, (start, extent, size) in enumerate(zip(starts, extents, sizes, strict=True)):
        begin = min(max(start, 0), size - extent)
        places.append(torch.arange(begin, begin + extent).reshape([-1 if i == d else 1 for i in range(len(sizes))]))
    op.give_moved(op.b.call(aten.index_put.default, op.real(0), places, op.real(1)))


@converts("tflite", "SPARSE_TO_DENSE")
def sparse_to_dense(op: Op) -> None:
    """Inputs: indices (one, a vector, or a row for each element), shape of the result, values, value elsewhere."""
    sizes, index = op.ints(1, "its shape"), _indices(op, 0)
    rank = len(shape(index))
    if rank > 2 or min(sizes, default=0) < 0 or op.rank(3) or (rank == 2 and shape(index)[1] != len(sizes)):
        raise op.b.invalid(f"indices {list(shape(index))} do not fit its shape {sizes}")
    if rank < 2:
        index = op.b.call(aten.reshape.default, index, [-1, 1])
    parts = [op.b.call(aten.select.int, index, -1, d) for d in range(len(sizes))]
    rest = op.b.call(aten.expand.default, op.real(3), sizes)
    op.give_moved(op.b.call(aten.index_put.default, rest, parts, op.real(2)), i=2)


@converts("tflite", "REVERSE_SEQUENCE")
def reverse_sequence(op: Op) -> None:
    """The first lengths[i] elements of row i are reversed."""
    kind, sizes = "ReverseSequenceOptions", op.shape(0)
    rank = len(sizes)
    sequence, batch = (op.axis(int(op.option(kind, name)), rank) for name in ("SeqDim", "BatchDim"))
    lengths = op.ints(1, "its lengths")
    if sequence == batch or len(lengths) != sizes[batch] or not all(0 <= n <= sizes[sequence] for n in lengths):
        raise op.b.invalid(f"lengths {lengths[:8]} do not fit dimensions {batch} and {sequence} of {list(sizes)}")
    op.listable(sizes[batch] * sizes[sequence])
    place, length = torch.arange(sizes[sequence])[None], torch.tensor(lengths, dtype=torch.int64)[:, None]
    source = torch.where(place < length, length - 1 - place, place)
    order = [batch, sequence, *(d for d in range(rank) if d not in (batch, sequence))]
    back = sorted(range(rank), key=order.__getitem__)
    x = op.b.call(aten.permute.default, op.real(0), order)
    x = op.b.call(aten.index.Tensor, x, [torch.arange(sizes[batch])[:, None], source])
    op.give_moved(op.b.call(aten.permute.default, x, back))


@converts("tflite", "MATRIX_DIAG")
def matrix_diag(op: Op) -> None:
    """Around the diagonal of a quantized tensor stands the integer 0, whatever the zero point."""
    sizes, tensor = op.shape(0), op.tensor(0)
    if not sizes:
        raise op.b.invalid("its input must have rank 1 or more")
    op.listable(sizes[-1] * sizes[-1])
    x = op.b.call(aten.unsqueeze.default, op.real(0), -2)
    rest = torch.zeros((), dtype=dtype(x))
    if op.c.is_quantized(tensor):
        q = op.c.qparams(tensor)
        rest += ((-128 if tensor.dtype == "UINT8" else 0) - q.zero_point) * q.scale
    op.give_moved(op.b.call(aten.where.self, torch.eye(sizes[-1], dtype=torch.bool), x, rest))


@converts("tflite", "MATRIX_SET_DIAG")
def matrix_set_diag(op: Op) -> None:
    """Inputs: matrices, their new diagonals."""
    sizes, own = op.shape(0), op.shape(1)
    if len(sizes) < 2 or own != (*sizes[:-2], min(sizes[-2:])):
        raise op.b.invalid(f"diagonals {list(own)} do not fit matrices {list(sizes)}")
    op.listable(sizes[-2] * sizes[-1])
    row = op.b.call(aten.constant_pad_nd.default, op.real(1), [0, sizes[-1] - own[-1]], 0)
    row = op.b.call(aten.unsqueeze.default, row, -2)
    op.give_moved(op.b.call(aten.where.self, torch.eye(*sizes[-2:], dtype=torch.bool), row, op.real(0)))
