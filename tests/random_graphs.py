"""Random DNA graphs for property tests: a seed gives a graph, the same everywhere.

Quantization is calibrated as PTQ would do it (ranges from a sample run of each node's real formula), so that outputs
use their range and do not saturate everywhere.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
from formulas import real_value
from fused import fuse
from hypothesis import strategies as st

from mera_torch import oracle
from mera_torch.bisect import build
from mera_torch.oracle import Graph, Int8, Node, Tensor

Shape = tuple[int, int, int, int]
Quantization = tuple[tuple[float, ...], tuple[int, ...]]  # scale, zero point
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 11, 13, 16, 17, 24, 31, 32, 33, 40, 47, 63, 64, 65, 72, 96, 129)


class GraphBuilder:
    """Grows a graph node by node; keeps a sample value of every tensor to calibrate the next one with."""

    def __init__(self, rng: random.Random, max_elements: int = 12_000, max_macs: int = 3_000_000) -> None:
        self.rng = rng
        self.numpy = np.random.default_rng(rng.getrandbits(32))
        self.max_elements, self.max_macs = max_elements, max_macs
        self.graph = Graph(name="random")
        self.samples: dict[int, oracle.Array] = {}
        self.used: set[int] = set()

    # ---- tensors ----

    def tensor(
        self, shape: Shape, scale: Sequence[float], zero: Sequence[int], data: oracle.Array | None = None
    ) -> int:
        index = len(self.graph.tensors)
        dtype = "int8" if data is None else str(data.dtype)
        self.graph.tensors.append(Tensor(f"t{index}", shape, dtype, tuple(scale), tuple(zero), data))
        if data is not None:
            self.samples[index] = data
        return index

    def input(self, shape: Shape) -> int:
        scale = float(np.float32(2.0 ** self.rng.uniform(-8, 0)))
        index = self.tensor(shape, [scale], [self.rng.choice([0, -128, 127, self.rng.randint(-128, 127)])])
        self.samples[index] = self.numpy.integers(-128, 128, shape).astype(np.int8)
        self.graph.inputs.append(index)
        return index

    def shape(self, index: int) -> Shape:
        return self.graph.tensors[index].shape

    def quantization(self, index: int) -> Quantization:
        return self.graph.tensors[index].scale, self.graph.tensors[index].zero_point

    def pick(self) -> int:
        """An int8 activation, rather a recent one."""
        candidates = [i for i in self.samples if self.graph.tensors[i].data is None]
        return self.rng.choice(candidates[-3:] if self.rng.random() < 0.8 else candidates)

    # ---- nodes ----

    def node(
        self,
        op: str,
        inputs: Sequence[int],
        shape: Shape,
        attrs: Mapping[str, int],
        quantization: Quantization | None = None,
    ) -> int:
        """A node whose output has the given quantization, or else a calibrated one."""
        output = self.tensor(shape, *(quantization or ((1.0,), (0,))))
        attributes = dict(attrs)
        node = Node(op, f"{op}_{len(self.graph.nodes)}", tuple(inputs), output, attributes)
        values = [self.samples[i] for i in inputs]
        if quantization is None:
            self.calibrate(node, values)
        if "clamp_min" in attributes:
            zero_point = self.graph.tensors[output].zero
            low, high = self.rng.choice(
                [(-128, 127), (-128, 127), (zero_point, 127), (zero_point, max(zero_point, 90)), (-100, 100)]
            )
            attributes.update(clamp_min=low, clamp_max=high)
        self.graph.nodes.append(node)
        self.samples[output] = oracle.run_node(self.graph, node, values)
        self.used.update(inputs)
        return output

    def calibrate(self, node: Node, values: Sequence[oracle.Array]) -> None:
        real = real_value(self.graph, node, values)
        low, high = min(0.0, float(real.min())), max(0.0, float(real.max()))
        scale = float(np.float32((high - low or 1.0) / 255 * self.rng.uniform(0.6, 1.4)))
        old = self.graph.tensors[node.output]
        zero = int(np.clip(round(-128 - low / scale), -128, 127))
        self.graph.tensors[node.output] = Tensor(old.name, old.shape, old.dtype, (scale,), (zero,))

    def clamps(self) -> dict[str, int]:
        return {"clamp_min": -128, "clamp_max": 127}

    def window(self, x: int, largest: int, dilation: bool, ceil: bool = False) -> tuple[dict[str, int], int, int]:
        """Attributes of a window that fits the tensor, and the output's height and width; ceil: perhaps rounded up."""
        a: dict[str, int] = {}
        extents = []
        for d, size, (before, after) in zip(
            "hw", self.shape(x)[1:3], (("top", "bottom"), ("left", "right")), strict=True
        ):
            kernel = self.rng.randint(1, largest)
            step = self.rng.choice([1, 1, 1, 2, 3]) if dilation else 1
            a[f"kernel_{d}"], a[f"stride_{d}"] = kernel, self.rng.choice([1, 1, 2, 3])
            pads = [self.rng.randint(0, kernel // 2) for _ in range(2)]
            while (step * (kernel - 1) + 1) > size + sum(pads):
                step, kernel = max(1, step - 1), max(1, kernel - 1)
                pads = [min(p, kernel // 2) for p in pads]
                a[f"kernel_{d}"] = kernel
            a[f"dilation_{d}"], a[f"pad_{before}"], a[f"pad_{after}"] = step, pads[0], pads[1]
            room, stride = size + sum(pads) - step * (kernel - 1) - 1, a[f"stride_{d}"]
            extents.append(room // stride + 1)
            if ceil and room % stride and extents[-1] * stride - pads[0] < size and self.rng.random() < 0.5:
                extents[-1] += 1
        if not dilation:
            del a["dilation_h"], a["dilation_w"]
        return a, extents[0], extents[1]

    def fits(self, shape: Shape) -> bool:
        return prod(shape) <= self.max_elements

    # ---- operators: each adds a node on tensor x and returns its output, or None if x does not suit ----

    def convolution(self, x: int, outputs: int | None = None, groups: int = 1, largest: int = 5) -> int | None:
        a, height, width = self.window(x, largest, dilation=True)
        batch, channels = self.shape(x)[0], self.shape(x)[3]
        outputs = outputs or self.rng.choice(CHANNELS) * groups
        depth = channels // groups
        weight_shape = (outputs, a.pop("kernel_h"), a.pop("kernel_w"), depth)
        shape = (batch, height, width, outputs)
        if (
            not self.fits(shape)
            or prod(shape) * prod(weight_shape[1:]) > self.max_macs
            or prod(weight_shape) > 5 * self.max_elements
        ):
            return None
        weight = np.clip(np.round(self.numpy.normal(0, 40, weight_shape)), -127, 127).astype(np.int8)
        count = self.rng.choice([1, outputs])
        scales = [float(np.float32(s)) for s in 2.0 ** self.numpy.uniform(-10, -7, count)]
        spread = int(40 * 74 * prod(weight_shape[1:]) ** 0.5) + 1
        bias = self.numpy.integers(-spread, spread, (1, 1, 1, outputs)).astype(np.int32)
        w = self.tensor(weight_shape, scales, [0] * count, weight)
        b = self.tensor((1, 1, 1, outputs), (), (), bias)
        a |= {"groups": groups, "float64_rescale": int(self.rng.random() < 0.3)}
        return self.node("conv2d", [x, w, b], shape, {**a, **self.clamps()})

    def grouped(self, x: int) -> int | None:
        divisors = [g for g in range(2, 9) if self.shape(x)[3] % g == 0]
        return self.convolution(x, groups=self.rng.choice(divisors)) if divisors else None

    def depthwise(self, x: int) -> int | None:
        channels = self.shape(x)[3]
        return self.convolution(x, channels * self.rng.choice([1, 1, 1, 2, 3]), channels) if channels > 1 else None

    def pointwise(self, x: int) -> int | None:
        return self.convolution(x, largest=1)

    def partner(self, x: int) -> int:
        """A second operand for x: an earlier tensor of its shape, or an input or constant, often broadcast."""
        shape = self.shape(x)
        same = [i for i in self.samples if i != x and self.graph.tensors[i].data is None and self.shape(i) == shape]
        if same and self.rng.random() < 0.7:
            return self.rng.choice(same)
        masks = [(1, 1, 1, 1), (1, 1, 1, 1), (1, 0, 0, 1), (0, 0, 0, 1), (0, 0, 0, 0), (1, 1, 1, 0)]
        extents = [n if keep else 1 for n, keep in zip(shape, self.rng.choice(masks), strict=True)]
        if self.rng.random() < 0.7:
            return self.input((extents[0], extents[1], extents[2], extents[3]))
        scale, zero = float(np.float32(2.0 ** self.rng.uniform(-8, 0))), self.rng.randint(-128, 127)
        data = self.numpy.integers(-128, 128, extents).astype(np.int8)
        return self.tensor((extents[0], extents[1], extents[2], extents[3]), [scale], [zero], data)

    def elementwise(self, x: int) -> int:
        operands = [x, self.partner(x)]
        if self.rng.random() < 0.3:
            operands.reverse()
        return self.node(self.rng.choice(["add", "sub", "mul"]), operands, self.shape(x), self.clamps())

    def table(self, x: int) -> int:
        tensor = self.graph.tensors[x]
        real = np.clip((np.arange(-128, 128) - tensor.zero) * tensor.scales[0], -500, 500)
        functions: list[Callable[[], np.ndarray]] = [
            lambda: 1 / (1 + np.exp(-real)),
            lambda: np.tanh(real),
            lambda: real / (1 + np.exp(-real)),
            lambda: np.where(real > 0, real, 0.1 * real),
            lambda: real * self.rng.uniform(0.5, 2.0),
            lambda: self.numpy.normal(0, 1, 256),
        ]
        y = self.rng.choice(functions)()
        span = max(0.0, y.max()) - min(0.0, y.min())
        scale = float(np.float32((span if span > 1e-30 else 1.0) / 255))
        zero = int(np.clip(round(-128 - min(0.0, y.min()) / scale), -128, 127))
        data = np.clip(np.round(y / scale) + zero, -128, 127).astype(np.int8).reshape(1, 1, 1, 256)
        index = self.tensor((1, 1, 1, 256), (), (), data)
        return self.node("lut", [x, index], self.shape(x), {}, quantization=((scale,), (zero,)))

    def pool(self, x: int) -> int | None:
        op = self.rng.choice(["max_pool2d", "avg_pool2d"])
        a, height, width = self.window(x, 5, dilation=op == "max_pool2d", ceil=True)
        if op == "avg_pool2d":
            a["count_include_pad"] = self.rng.randint(0, 1)
        for d, size, out, before in (("h", self.shape(x)[1], height, "top"), ("w", self.shape(x)[2], width, "left")):
            taps = np.arange(a[f"kernel_{d}"]) * a.get(f"dilation_{d}", 1) - a[f"pad_{before}"]
            reads = np.arange(out)[:, None] * a[f"stride_{d}"] + taps
            if not ((reads >= 0) & (reads < size)).any(1).all():
                return None  # a window of padding only
        shape = (self.shape(x)[0], height, width, self.shape(x)[3])
        if not self.fits(shape):
            return None
        return self.node(op, [x], shape, {**a, **self.clamps()}, quantization=self.quantization(x))

    def average(self, x: int) -> int:
        shape = self.shape(x)
        attrs = {"sum": int(self.rng.random() < 0.3), **self.clamps()}
        return self.node("mean", [x], (shape[0], 1, 1, shape[3]), attrs)

    def join(self, x: int) -> int | None:
        """Concatenates x with tensors of its quantization, made from x or given as inputs."""
        axis = self.rng.choice([0, 1, 2, 3, 3, 3])
        parts = [x]
        for _ in range(self.rng.randint(1, 3)):
            extents = list(self.shape(x))
            extents[axis] = self.rng.randint(1, 20)
            part = self.input(tuple(extents))  # type: ignore[arg-type]
            old, tensor = self.graph.tensors[part], self.graph.tensors[x]
            self.graph.tensors[part] = Tensor(old.name, old.shape, old.dtype, tensor.scale, tensor.zero_point)
            parts.append(part)
        if self.rng.random() < 0.3:
            parts.append(x)
        self.rng.shuffle(parts)
        shape = list(self.shape(x))
        shape[axis] = sum(self.shape(p)[axis] for p in parts)
        return self.node("concat", parts, tuple(shape), {"axis": axis}, quantization=self.quantization(x))  # type: ignore[arg-type]

    def pad(self, x: int) -> int | None:
        names = ("top", "bottom", "left", "right", "channel_before", "channel_after")
        a = {f"pad_{n}": self.rng.choice([0, 0, 1, 2, 5]) for n in names}
        n, h, w, c = self.shape(x)
        shape = (
            n,
            h + a["pad_top"] + a["pad_bottom"],
            w + a["pad_left"] + a["pad_right"],
            c + a["pad_channel_before"] + a["pad_channel_after"],
        )
        a["value"] = self.rng.choice([self.graph.tensors[x].zero, -128, 127, 3])
        return self.node("pad", [x], shape, a, quantization=self.quantization(x)) if self.fits(shape) else None

    def cut(self, x: int) -> int:
        a, shape = {}, []
        for d, size in zip("nhwc", self.shape(x), strict=True):
            begin = self.rng.randint(0, size - 1) if self.rng.random() < 0.5 else 0
            step = self.rng.choice([1, 1, 1, 2, 3])
            most = (size - 1 - begin) // step + 1
            a[f"begin_{d}"], a[f"step_{d}"] = begin, step
            shape.append(most if self.rng.random() < 0.6 else self.rng.randint(1, most))
        return self.node("slice", [x], tuple(shape), a, quantization=self.quantization(x))

    def reshape(self, x: int) -> int:
        n, h, w, c = self.shape(x)
        shapes: list[Shape] = [(n, 1, 1, h * w * c), (n, h * w, 1, c), (1, n * h, w, c), (n, 1, h, w * c), (n, w, h, c)]
        return self.node("reshape", [x], self.rng.choice(shapes), {}, quantization=self.quantization(x))

    def transpose(self, x: int) -> int:
        perm = self.rng.choice(
            [[0, 1, 2, 3], [0, 3, 1, 2], [0, 2, 3, 1], [0, 2, 1, 3], [0, 1, 3, 2], [3, 2, 1, 0], [1, 0, 2, 3]]
        )
        shape = self.shape(x)
        return self.node(
            "transpose",
            [x],
            tuple(shape[p] for p in perm),
            {f"perm_{i}": p for i, p in enumerate(perm)},
            quantization=self.quantization(x),
        )

    def positions(self, size: int, unit: int) -> np.ndarray:
        """A table for resizing an extent of `size`: by a whole factor, any ratio, with jitter, or at random."""
        count, factor = self.rng.randint(1, 2 * size + 3), self.rng.randint(1, 3)
        last = (size - 1) * unit
        tables: list[Callable[[], np.ndarray]] = [
            lambda: np.arange(size).repeat(factor) * unit,
            lambda: np.arange(count) * (size * unit) // count,
            lambda: ((2 * np.arange(count) + 1) * size * unit // count - unit) // 2,
            lambda: np.arange(count) * last // max(1, count - 1),
            lambda: np.arange(count) * (size * unit) // count + self.numpy.integers(-1, 2, count),
            lambda: self.numpy.integers(0, last + 1, count),
            lambda: np.arange(size)[::-1] * unit,
        ]
        return np.clip(self.rng.choice(tables)(), 0, last).astype(np.int32).reshape(1, 1, 1, -1)

    def resize(self, x: int) -> int | None:
        op, unit = self.rng.choice([("resize_nearest", 1), ("resize_bilinear", 1024)])
        n, h, w, c = self.shape(x)
        rows, columns = self.positions(h, unit), self.positions(w, unit)
        shape = (n, rows.size, columns.size, c)
        if not self.fits(shape):
            return None
        inputs = [x, self.tensor(rows.shape, (), (), rows), self.tensor(columns.shape, (), (), columns)]
        return self.node(op, inputs, shape, {}, quantization=self.quantization(x))

    def softmax(self, x: int) -> int:
        scale = self.graph.tensors[x].scales[0] * self.rng.choice([1, 1, 0.05, 1e-9])
        data = np.round(np.exp(-scale * np.arange(256)) * 2.0**31).clip(0, 2**31 - 1).astype(np.int32)
        table = self.tensor((1, 1, 1, 256), (), (), data.reshape(1, 1, 1, 256))
        return self.node("softmax", [x, table], self.shape(x), {}, quantization=((1 / 256,), (-128,)))

    # ---- blocks ----

    def residual(self, x: int) -> int | None:
        """x + conv(x), the convolution of x's own shape."""
        channels = self.shape(x)[3]
        y = self.convolution(x, channels, largest=1)
        if y is None or self.shape(y) != self.shape(x):
            return y
        return self.node(
            self.rng.choice(["add", "add", "sub"]), self.rng.sample([x, y], 2), self.shape(x), self.clamps()
        )

    def squeeze_excite(self, x: int) -> int | None:
        gate: int | None = self.average(x)
        for outputs in (max(1, self.shape(x)[3] // 4), self.shape(x)[3]):
            gate = self.convolution(gate, outputs, largest=1) if gate is not None else None
            gate = self.table(gate) if gate is not None else None
        return None if gate is None else self.node("mul", [x, gate], self.shape(x), self.clamps())

    def finish(self) -> Graph:
        """Whatever nobody reads becomes an output, and now and then something else too."""
        produced = [n.output for n in self.graph.nodes]
        self.graph.outputs = [i for i in produced if i not in self.used or self.rng.random() < 0.1]
        return self.graph


OPERATORS: dict[str, tuple[int, Callable[[GraphBuilder, int], int | None]]] = {
    "convolution": (4, GraphBuilder.convolution),
    "pointwise": (3, GraphBuilder.pointwise),
    "grouped": (2, GraphBuilder.grouped),
    "depthwise": (4, GraphBuilder.depthwise),
    "elementwise": (4, GraphBuilder.elementwise),
    "table": (2, GraphBuilder.table),
    "pool": (3, GraphBuilder.pool),
    "average": (1, GraphBuilder.average),
    "join": (2, GraphBuilder.join),
    "pad": (1, GraphBuilder.pad),
    "cut": (1, GraphBuilder.cut),
    "reshape": (1, GraphBuilder.reshape),
    "transpose": (1, GraphBuilder.transpose),
    "resize": (1, GraphBuilder.resize),
    "softmax": (1, GraphBuilder.softmax),
    "residual": (2, GraphBuilder.residual),
    "squeeze_excite": (1, GraphBuilder.squeeze_excite),
}


def random_graph(
    rng: random.Random, nodes: int, kinds: Sequence[str] = tuple(OPERATORS), max_elements: int = 12_000
) -> Graph:
    """A graph of about ``nodes`` nodes, at least one, of the given kinds."""
    builder = GraphBuilder(rng, max_elements)
    batch = rng.choice([1, 1, 1, 2, 3])
    channels = rng.choice(CHANNELS)
    side = int((max_elements / batch / channels) ** 0.5)
    builder.input((batch, rng.randint(1, max(1, min(side, 30))), rng.randint(1, max(1, min(side, 30))), channels))
    weights = [OPERATORS[k][0] for k in kinds]
    for _ in range(20 * nodes):
        if len(builder.graph.nodes) >= nodes:
            break
        OPERATORS[rng.choices(kinds, weights)[0]][1](builder, builder.pick())
    if not builder.graph.nodes:
        builder.table(builder.graph.inputs[0])
    return builder.finish()


def graphs(max_nodes: int = 12, max_elements: int = 12_000) -> st.SearchStrategy[Graph]:
    """Hypothesis strategy of random_graph."""
    return st.builds(
        random_graph,
        st.randoms(use_true_random=False),
        st.integers(1, max_nodes),
        max_elements=st.just(max_elements),
    )


def random_inputs(graph: Graph, seed: int = 0) -> list[Int8]:
    """Inputs over the whole int8 range."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-128, 128, graph.tensors[i].shape).astype(np.int8) for i in graph.inputs]


def write(folder: Path, count: int) -> None:
    """graph_NNN.dna.txt, small_NNN.dna.txt and pair_NNN.dna.txt, two small networks in one, for the drivers in C."""
    for seed in range(count):
        for name, nodes, elements in (("graph", 1 + seed % 12, 12_000), ("small", 1 + seed % 4, 400)):
            graph = random_graph(random.Random(f"{name} {seed}"), nodes, max_elements=elements)
            (folder / f"{name}_{seed:03}.dna.txt").write_text(build(graph).text())
        pair = [random_graph(random.Random(f"pair {seed} {k}"), 1 + seed % 2, max_elements=200) for k in range(2)]
        (folder / f"pair_{seed:03}.dna.txt").write_text(build(fuse(pair)).text())


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
