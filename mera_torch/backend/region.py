"""One region of a deployment: its DNA graph, its program, its borders. Needs numpy alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import cache, native
from ..errors import ConfigError, nearest
from ..platform import Platform
from .layout import Layout

TARGETS = ("InterpreterHw", "Simulator", "IP")
COMPILED_TARGETS = ("Simulator", "IP")  # they run the program; a deployment for them holds it
DeviceIds = Sequence["int | str"]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Port:
    """A border of a region.

    value: the name in the host graph; shape: PyTorch's; sizes, dims: its Layout; dna: the DNA shape; scale, zero_point:
    its quantization; real: whether the host's value is float32 (the port quantizes or dequantizes) or int8.
    """

    value: str
    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    dims: tuple[tuple[int, ...], ...]
    dna: tuple[int, int, int, int]
    scale: float
    zero_point: int
    real: bool

    @cached_property
    def _image(self) -> bool:
        if len(self.shape) != 4:
            return False
        n, c, h, w = self.shape
        return self.dna == (n, h, w, c) and Layout(self.sizes, self.dims) == Layout.image(self.shape)

    @cached_property
    def _order(self) -> tuple[int, ...]:
        """The storage axes in PyTorch's order."""
        return tuple(axis for axes in self.dims for axis in axes)

    def store(self, x: Array) -> Array:
        """PyTorch's value -> int8 in the DNA's shape."""
        if self.real and self._image:
            n, c, h, w = x.strides
            rows = x.shape[3] * w
            if c == x.itemsize and w == c * x.shape[1] and h == rows and n == h * x.shape[2]:  # channels_last already
                return native.quantize_f32(x.transpose(0, 2, 3, 1), self.scale, self.zero_point, channels_last=True)
            return native.quantize_f32(x, self.scale, self.zero_point)
        axes = x.reshape([self.sizes[a] for a in self._order])
        stored = np.ascontiguousarray(axes.transpose(np.argsort(self._order)) if self._order else axes)
        if self.real:
            flat = stored.reshape(1, 1, 1, -1)
            stored = native.quantize_f32(flat, self.scale, self.zero_point, channels_last=True)
        return stored.reshape(self.dna)

    def fetch(self, q: Array) -> Array:
        """int8 in the DNA's shape -> PyTorch's value."""
        if self.real and self._image:
            return native.dequantize_i8(q.reshape(self.dna), self.scale, self.zero_point)
        stored: Array = q
        if self.real:
            flat = native.dequantize_i8(q.reshape(1, 1, 1, -1), self.scale, self.zero_point, channels_last=True)
            stored = flat
        return np.ascontiguousarray(stored.reshape(self.sizes).transpose(self._order)).reshape(self.shape)


@dataclass
class DnaRegion:
    """graph: finished. inputs[i] feeds the graph's input i; outputs[i] reads the graph's output tensor[i].

    rows: for each DNA node name, the operator as captured (op, module path, source line). cached: whether its program
    may come from the compile cache; compiled: how compile() came by it, None for a program that was read from a file.
    """

    name: str
    graph: native.Graph
    inputs: list[Port]
    outputs: list[Port]
    output_index: list[int]
    platform: Platform
    options: Mapping[str, int]
    rows: dict[str, tuple[str, str, str]]
    lower_bound: dict[str, int]
    cached: bool = True
    compiled: cache.Compiled | None = None
    _program: native.Program | None = None
    _engines: dict[tuple[str, DeviceIds | None], Any] = field(default_factory=dict)

    def compile(self, progress: native.Progress | None = None) -> native.Program:
        """The program, compiled if it is not yet. Raises DoesNotFitError, UnsupportedError."""
        if self._program is None:
            self.compiled = cache.compile(
                self.graph, self.platform, self.options, progress,
                saved=lambda: self.graph_bytes, name=self.name, cached=self.cached,
            )  # fmt: skip
            self._program = self.compiled.program
        return self._program

    @cached_property
    def graph_bytes(self) -> bytes:
        """graph.save(): what identifies the region, and a deployment holds of it."""
        return self.graph.save()

    @property
    def program_bytes(self) -> bytes:
        """program.save(), which the compile cache may have at hand."""
        program, compiled = self.compile(), self.compiled
        return compiled.data if compiled is not None and compiled.data is not None else program.save()

    def forget_bytes(self) -> None:
        """Frees graph_bytes and program_bytes; they are made again when they are needed."""
        self.__dict__.pop("graph_bytes", None)
        if self.compiled is not None:
            self.compiled = replace(self.compiled, data=None)

    @property
    def program(self) -> native.Program:
        """compile()'s."""
        if self._program is None:
            self.compile()
            self.forget_bytes()
        return self.compile()

    def adopt(self, program: native.Program) -> None:
        """A program that was compiled before."""
        self._program = program

    def engine(self, target: str, device_ids: DeviceIds | None = None) -> Any:
        """What runs the region on a target. device_ids: for IP, see mera_torch.device.engine."""
        key = (target, None if device_ids is None else tuple(device_ids))
        if key not in self._engines:
            self._engines.setdefault(key, self._make_engine(check_target(target), device_ids))
        return self._engines[key]

    def _make_engine(self, target: str, device_ids: DeviceIds | None) -> Any:
        if target == "InterpreterHw":
            return native.Interpreter(self.graph)
        if target == "Simulator":
            return native.Simulator(self.program)
        from .. import device

        return device.engine(self.program, device_ids)

    def run(self, target: str, inputs: Sequence[Array], device_ids: DeviceIds | None = None) -> list[Array]:
        """PyTorch's values of the inputs -> those of the outputs."""
        stored = [port.store(x) for port, x in zip(self.inputs, inputs, strict=True)]
        results = self.engine(target, device_ids).run(stored)
        return [port.fetch(results[i]) for port, i in zip(self.outputs, self.output_index, strict=True)]

    @property
    def simulator(self) -> native.Simulator:
        engine: native.Simulator = self.engine("Simulator")
        return engine

    @property
    def macs(self) -> int:
        return sum(node.macs for node in self.graph.nodes)

    def layers(self) -> list[dict[str, Any]]:
        """One row a DNA node that ran, in the order of the program."""
        program = self.program
        peak = program.platform.macs_per_cycle
        rows = []
        for stats in self.simulator.layers():
            name, op, layer, source = program.nodes[stats["node"]]
            cycles = stats["end_cycle"] - stats["start_cycle"]
            rows.append({
                "region": self.name, "node": name, "op": op, "aten": self.rows.get(name, ("", "", ""))[0],
                "module": layer, "source": source, "start_cycle": stats["start_cycle"], "cycles": cycles,
                "macs": stats["macs"], "utilization": stats["macs"] / (cycles * peak) if cycles else 0.0,
                "array_cycles": stats["array_cycles"], "window_cycles": stats["window_cycles"],
                "vector_cycles": stats["vector_cycles"], "dram_bytes_read": stats["dram_bytes_read"],
                "dram_bytes_written": stats["dram_bytes_written"],
            })  # fmt: skip
        return rows

    def describe(self) -> dict[str, Any]:
        """What a deployment's JSON holds of the region."""
        return {
            "name": self.name, "inputs": [asdict(p) for p in self.inputs], "outputs": [asdict(p) for p in self.outputs],
            "output_index": self.output_index, "options": dict(self.options), "rows": self.rows,
            "lower_bound": self.lower_bound,
        }  # fmt: skip


def metrics(
    regions: Sequence[DnaRegion], platform: Platform, target: str, lower_bound: int, device_ids: DeviceIds | None = None
) -> dict[str, Any]:
    """What one inference costs; see Runner.metrics. For IP the totals are from the device's counters, the layers, which
    a device does not tell apart, from the Simulator."""
    total: dict[str, Any] = {}
    for region in regions:
        counted = region.engine("IP", device_ids) if target == "IP" else region.simulator
        for key, value in counted.stats().items():
            total[key] = max(total.get(key, 0), value) if key == "sram_peak_bytes" else total.get(key, 0) + value
    cycles, peak = total["cycles"], platform.macs_per_cycle
    return {
        "platform": platform.name,
        "target": target,
        "regions": len(regions),
        **total,
        "latency_ms": cycles / (platform.clock_mhz * 1e3),
        "utilization": total["macs"] / (cycles * peak) if cycles else 0.0,
        "lower_bound_cycles": lower_bound,
        "layers": [row for region in regions for row in region.layers()],
    }


def port_from(values: Mapping[str, Any]) -> Port:
    """A Port from describe()'s JSON."""
    ints = {key: tuple(int(i) for i in values[key]) for key in ("shape", "sizes", "dna")}
    dims = tuple(tuple(int(a) for a in axes) for axes in values["dims"])
    axes = sorted(a for group in dims for a in group)
    if axes != list(range(len(ints["sizes"]))) or math.prod(ints["sizes"]) != math.prod(ints["dna"]):
        raise ValueError("a port's layout does not match its shape")
    if tuple(math.prod(ints["sizes"][a] for a in group) for group in dims) != ints["shape"] or len(ints["dna"]) != 4:
        raise ValueError("a port's layout does not match its shape")
    return Port(
        str(values["value"]), ints["shape"], ints["sizes"], dims, ints["dna"], float(values["scale"]),
        int(values["zero_point"]), bool(values["real"]),
    )  # fmt: skip


def check_target(target: str) -> str:
    """The target itself; ConfigError naming what there is if it is unknown."""
    if target not in TARGETS:
        raise ConfigError(f"unknown target {target!r}: {nearest(str(target), TARGETS)}; there are {', '.join(TARGETS)}")
    return target
