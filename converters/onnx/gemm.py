"""Matrix products."""

from __future__ import annotations

from ..graph import Value, dtype, is_constant, shape
from ..registry import converts
from .context import OnnxBuilder, OnnxNode, aten
from .quantization import dequantized_constant, transposed_weight
from .values import broadcast, cast


@converts("onnx", "MatMul")
def matmul(g: OnnxBuilder, node: OnnxNode) -> Value:
    return product(g, node.require(0), node.require(1))


def product(g: OnnxBuilder, a: Value, b: Value) -> Value:
    """a @ b; linear if b is a weight."""
    if not shape(a) or not shape(b):
        raise g.invalid("its inputs must not be scalars")
    if _is_weight(b) and not is_constant(a) and shape(a)[-1] == shape(b)[0]:
        return g.call(aten.linear.default, a, transposed_weight(g, b))
    return g.call(aten.matmul.default, a, b)


def _is_weight(b: Value) -> bool:
    return len(shape(b)) == 2 and dtype(b).is_floating_point and (is_constant(b) or dequantized_constant(b) is not None)


@converts("onnx", "Gemm", since=7)
def gemm(g: OnnxBuilder, node: OnnxNode) -> Value:
    a, b, c = node.take(3)
    alpha, beta = node.float("alpha", 1.0), node.float("beta", 1.0)
    return general_product(g, a, node.require(1) if b is None else b, c, alpha, beta, bool(node.int("transA", 0)),
                           bool(node.int("transB", 0)))  # fmt: skip


def general_product(
    g: OnnxBuilder, a: Value, b: Value, c: Value | None, alpha: float, beta: float, trans_a: bool, trans_b: bool
) -> Value:
    """alpha * A @ B + beta * C, A and B transposed first if so asked; linear if B is a weight."""
    if len(shape(a)) != 2 or len(shape(b)) != 2:
        raise g.invalid(f"its inputs must be matrices, got shapes {list(shape(a))} and {list(shape(b))}")
    if trans_a:
        a = g.call(aten.permute.default, a, [1, 0])
    rows, columns = shape(a)[0], shape(b)[0 if trans_b else 1]
    if shape(a)[1] != shape(b)[1 if trans_b else 0]:
        raise g.invalid(f"matrices of shapes {list(shape(a))} and {list(shape(b))} cannot be multiplied")
    if c is not None and broadcast(g, shape(c), [rows, columns]) != [rows, columns]:
        raise g.invalid(f"its C of shape {list(shape(c))} does not broadcast to {[rows, columns]}")
    if beta == 0:
        c = None
    if c is not None and beta != 1:
        c = _scaled(g, c, beta)
    if not dtype(a).is_floating_point:
        y = g.call(aten.matmul.default, a, _transposed(g, b) if trans_b else b)
        return _plus(g, _scaled(g, y, alpha), c)
    if alpha != 1 and is_constant(b):
        b, alpha = _scaled(g, b, alpha), 1.0
    weight = b if trans_b else transposed_weight(g, b) if _is_weight(b) else _transposed(g, b)
    if c is not None and alpha == 1 and shape(c) in ((columns,), (1, columns)):
        bias = c if len(shape(c)) == 1 else g.call(aten.reshape.default, c, [columns])
        return g.call(aten.linear.default, a, weight, bias)
    return _plus(g, _scaled(g, g.call(aten.linear.default, a, weight), alpha), c)


def _transposed(g: OnnxBuilder, b: Value) -> Value:
    return g.call(aten.permute.default, b, [1, 0])


def _scaled(g: OnnxBuilder, x: Value, factor: float) -> Value:
    return x if factor == 1 else cast(g, g.call(aten.mul.Tensor, x, factor), dtype(x))


def _plus(g: OnnxBuilder, y: Value, c: Value | None) -> Value:
    return y if c is None else g.call(aten.add.Tensor, y, c)
