"""What each DNA operator means in real numbers: torch in float64 on the dequantized inputs, before quantizing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from mera_torch import oracle

Attrs = Mapping[str, int]


def dequantize(tensor: oracle.Tensor, value: oracle.Array) -> torch.Tensor:
    """float64; a conv2d weight's scales belong to dimension 0; a constant without scale stays as it is."""
    real = torch.from_numpy(value).double()
    if not tensor.scale:
        return real
    scale, zero = torch.tensor(tensor.scale).double(), torch.tensor(tensor.zero_point)
    return (real - zero.view(-1, 1, 1, 1)) * scale.view(-1, 1, 1, 1)


def _nchw(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 3, 1, 2)


def _nhwc(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


def _padded(x: torch.Tensor, a: Attrs, value: float = 0.0) -> torch.Tensor:
    return F.pad(_nchw(x), [a["pad_left"], a["pad_right"], a["pad_top"], a["pad_bottom"]], value=value)


def _pair(a: Attrs, name: str) -> tuple[int, int]:
    return a[f"{name}_h"], a[f"{name}_w"]


def _conv2d(a: Attrs, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return _nhwc(F.conv2d(_padded(x, a), _nchw(w), b, _pair(a, "stride"), 0, _pair(a, "dilation"), a["groups"]))


def _extended(x: torch.Tensor, a: Attrs, shape: Sequence[int], value: float) -> torch.Tensor:
    """Padded NCHW x, and beyond the padding what the last windows still reach (ceil mode)."""
    reach = [
        (shape[1 + i] - 1) * a[f"stride_{d}"] + a.get(f"dilation_{d}", 1) * (a[f"kernel_{d}"] - 1) + 1
        for i, d in enumerate("hw")
    ]
    return F.pad(x, [0, max(0, reach[1] - x.shape[3]), 0, max(0, reach[0] - x.shape[2])], value=value)


def _max_pool2d(a: Attrs, x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    padded = _extended(_padded(x, a, -torch.inf), a, shape, -torch.inf)
    return _nhwc(F.max_pool2d(padded, _pair(a, "kernel"), _pair(a, "stride"), 0, _pair(a, "dilation")))


def _avg_pool2d(a: Attrs, x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    ones = _padded(torch.ones_like(x), a, float(a["count_include_pad"]))
    sums, counts = (
        F.avg_pool2d(_extended(v, a, shape, 0.0), _pair(a, "kernel"), _pair(a, "stride")) for v in (_padded(x, a), ones)
    )
    return _nhwc(sums / counts)


def _pad(a: Attrs, x: torch.Tensor, value: float) -> torch.Tensor:
    names = ("channel_before", "channel_after", "left", "right", "top", "bottom")
    return F.pad(x, [a[f"pad_{n}"] for n in names], value=value)


def _slice(a: Attrs, x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    for dim, (name, extent) in enumerate(zip("nhwc", shape, strict=True)):
        x = x.index_select(dim, a[f"begin_{name}"] + torch.arange(extent) * a[f"step_{name}"])
    return x


def _blend(positions: torch.Tensor, size: int) -> torch.Tensor:
    """[count, size]: the weight of each of `size` elements at each position, in elements."""
    return (1 - (positions.double()[:, None] - torch.arange(size)).abs()).clamp(min=0)


def real_value(graph: oracle.Graph, node: oracle.Node, inputs: Sequence[oracle.Array]) -> torch.Tensor:
    """The exact output of the node, float64 NHWC, unclamped; inputs are the quantized values."""
    a = node.attrs
    tensors = [graph.tensors[i] for i in node.inputs]
    x = [dequantize(t, v) for t, v in zip(tensors, inputs, strict=True)]
    out = graph.tensors[node.output]
    if node.op == "conv2d":
        bias = x[2].flatten() * torch.tensor(tensors[0].scale).double() * torch.tensor(tensors[1].scale).double()
        return _conv2d(a, x[0], x[1], bias)
    if node.op == "lut":
        table = torch.from_numpy(inputs[1]).flatten().long()
        return (table[torch.from_numpy(inputs[0]).long() + 128] - out.zero).double() * out.scales[0]
    if node.op == "softmax":
        powers = x[1].flatten()[(inputs[0].max(3, keepdims=True).astype(int) - inputs[0])]
        return powers / powers.sum(3, keepdim=True)
    if node.op == "pad":
        return _pad(a, x[0], (a["value"] - out.zero) * float(out.scales[0]))
    formulas: dict[str, Callable[[], torch.Tensor]] = {
        "add": lambda: x[0] + x[1],
        "sub": lambda: x[0] - x[1],
        "mul": lambda: x[0] * x[1],
        "max_pool2d": lambda: _max_pool2d(a, x[0], out.shape),
        "avg_pool2d": lambda: _avg_pool2d(a, x[0], out.shape),
        "mean": lambda: (torch.sum if a["sum"] else torch.mean)(x[0], (1, 2), keepdim=True),
        "concat": lambda: torch.cat(x, a["axis"]),
        "slice": lambda: _slice(a, x[0], out.shape),
        "reshape": lambda: x[0].reshape(out.shape),
        "transpose": lambda: x[0].permute([a[f"perm_{i}"] for i in range(4)]),
        "resize_nearest": lambda: x[0][:, x[1].flatten().long()][:, :, x[2].flatten().long()],
        "resize_bilinear": lambda: torch.einsum(
            "nhwc,ih,jw->nijc", x[0], *(_blend(x[i].flatten() / 1024, x[0].shape[i]) for i in (1, 2))
        ),
    }
    return formulas[node.op]()


def quantized(graph: oracle.Graph, node: oracle.Node, inputs: Sequence[oracle.Array]) -> torch.Tensor:
    """real_value, quantized and clamped as the node's output is, int64."""
    out = graph.tensors[node.output]
    q = torch.round(real_value(graph, node, inputs) / float(out.scales[0])) + out.zero
    return q.clamp(node.attrs.get("clamp_min", -128), node.attrs.get("clamp_max", 127)).long()
