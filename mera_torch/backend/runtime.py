"""The runner: a torch.nn.Module that computes what the original module computes, its regions on a DNA target."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from .. import pytrees
from ..errors import InvalidModelError
from ..platform import Platform
from .capture import InputSpec
from .host import HostGraph, Ref, names
from .region import Array, DeviceIds, DnaRegion, check_target, metrics

RunRegion = Callable[[DnaRegion, Sequence[Array]], list[Array]]


def on(target: str, device_ids: DeviceIds | None = None) -> RunRegion:
    """Runs regions on a target; device_ids: for IP."""
    return lambda region, arrays: region.run(target, arrays, device_ids)


def run_steps(
    graph: HostGraph, regions: Sequence[DnaRegion], run: RunRegion, inputs: Sequence[Any], dead: list[set[str]],
    seconds: dict[str, float] | None = None,
) -> list[Any]:  # fmt: skip
    """The flat outputs for flat inputs. run: on(target), or anything else that runs a region; dead: last_uses();
    seconds: is given the time that each host step took, by its name."""
    values: dict[str, Any] = dict(graph.constants)
    values.update(zip(graph.inputs, inputs, strict=True))
    for step, unneeded in zip(graph.steps, dead, strict=True):
        if step.region >= 0:
            region = regions[step.region]
            arrays = [values[port.value].detach().numpy() for port in region.inputs]
            for port, array in zip(region.outputs, run(region, arrays), strict=True):
                values[port.value] = torch.from_numpy(array)
        elif step.target is not None:
            begin = time.perf_counter()
            values[step.name] = step.target(*_resolve(step.args, values), **_resolve(dict(step.kwargs), values))
            if seconds is not None:
                seconds[step.name] = time.perf_counter() - begin
        for name in unneeded:
            values.pop(name, None)
    return [_resolve(o, values) for o in graph.outputs]


def _resolve(args: Any, values: dict[str, Any]) -> Any:
    if isinstance(args, Ref):
        return values[args.name]
    if isinstance(args, list):
        return [_resolve(a, values) for a in args]
    if isinstance(args, tuple):
        return tuple(_resolve(a, values) for a in args)
    if isinstance(args, dict):
        return {key: _resolve(a, values) for key, a in args.items()}
    return args


def last_uses(graph: HostGraph, regions: Sequence[DnaRegion]) -> list[set[str]]:
    """For each step, the values that nothing reads after it."""
    needed = names(graph.outputs) | set(graph.constants)
    dead: list[set[str]] = []
    for step in reversed(graph.steps):
        read = {p.value for p in regions[step.region].inputs} if step.region >= 0 else names((step.args, step.kwargs))
        dead.append(read - needed)
        needed |= read
    return dead[::-1]


class Runner(torch.nn.Module):
    """Runs a deployment: runner(*inputs) gives what the original module gives.

    target: "InterpreterHw" (node by node, the accelerator's arithmetic), "Simulator" (the compiled program, bits and
    cycles) or "IP" (a device: see mera_torch.device.engine for device_ids and what is raised); all give the same bytes.
    """

    def __init__(
        self, graph: HostGraph, regions: Sequence[DnaRegion], inputs: Sequence[InputSpec], in_spec: pytree.TreeSpec,
        out_spec: pytree.TreeSpec, platform: Platform, target: str, lower_bound_cycles: int,
        device_ids: DeviceIds | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.target = check_target(target)
        self.platform, self.device_ids = platform, device_ids
        self.regions = list(regions)
        self._graph, self._inputs = graph, list(inputs)
        self._in_spec, self._out_spec = in_spec, out_spec
        self._lower_bound = lower_bound_cycles
        self._dead = last_uses(graph, self.regions)
        if target == "IP":
            for region in self.regions:  # what is wrong with the devices is known at once
                region.engine(target, device_ids)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original module's call. Raises InvalidModelError for inputs of another count, shape or dtype."""
        with torch.no_grad():
            given = self._flatten(args, kwargs)
            flat = run_steps(self._graph, self.regions, on(self.target, self.device_ids), given, self._dead)
        return pytree.tree_unflatten(flat, self._out_spec)

    def run_flat(self, *arrays: Array) -> list[Array]:
        """The flat outputs, as arrays, for the tensors among the flat inputs, as arrays; constants are filled in."""
        given = iter(arrays)
        flat = [spec.constant if spec.dtype is None else torch.from_numpy(next(given)) for spec in self._inputs]
        args, kwargs = pytree.tree_unflatten(flat, self._in_spec)
        leaves = pytree.tree_leaves(self(*args, **kwargs))
        return [leaf.detach().numpy() if isinstance(leaf, torch.Tensor) else np.asarray(leaf) for leaf in leaves]

    def _flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        flat, spec = pytree.tree_flatten((args, kwargs))
        if not pytrees.equal(spec, self._in_spec) or len(flat) != len(self._inputs):
            wanted = ", ".join(_describe(s) for s in self._inputs)
            raise InvalidModelError(
                f"the model takes {len(self._inputs)} inputs ({wanted}), got {len(flat)} or another structure"
            )
        for index, (value, wanted_input) in enumerate(zip(flat, self._inputs, strict=True)):
            _check_input(index, value, wanted_input)
        return flat

    def metrics(self) -> dict[str, Any]:
        """What one inference costs on the platform, summed over regions; timing does not depend on data.

        cycles, latency_ms, macs, utilization (of the peak MACs, 0 to 1), dram_bytes_read, dram_bytes_written,
        sram_peak_bytes, lower_bound_cycles, instructions, busy and conflict cycles; "layers": one dict a DNA node with
        node, op, aten, module, source, start_cycle, cycles, macs, utilization, dram bytes.
        """
        return metrics(self.regions, self.platform, self.target, self._lower_bound, self.device_ids)

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Writes what every engine did in every cycle as a trace that ui.perfetto.dev and chrome://tracing open."""
        from ..trace import write_trace

        write_trace(path, self.regions, self.platform)

    def extra_repr(self) -> str:
        return f"target={self.target}, platform={self.platform.name}, regions={len(self.regions)}"


def _describe(spec: InputSpec) -> str:
    if spec.dtype is None:
        return f"{spec.name}={spec.constant!r}"
    return f"{spec.name}: {str(spec.dtype).removeprefix('torch.')}{list(spec.shape)}"


def _check_input(index: int, value: Any, spec: InputSpec) -> None:
    if spec.dtype is None:
        if value != spec.constant:
            raise InvalidModelError(f"input {index} ({spec.name}) was {spec.constant!r} at compile time, got {value!r}")
        return
    if not isinstance(value, torch.Tensor):
        raise InvalidModelError(f"input {index} ({_describe(spec)}) must be a tensor, got {type(value).__name__}")
    if tuple(value.shape) != spec.shape:
        raise InvalidModelError(
            f"input {index} ({_describe(spec)}) must have shape {list(spec.shape)}, got {list(value.shape)}"
        )
    if value.dtype != spec.dtype:
        raise InvalidModelError(f"input {index} ({_describe(spec)}) must have dtype {spec.dtype}, got {value.dtype}")
    if value.device.type != "cpu":
        raise InvalidModelError(f"input {index} ({_describe(spec)}) must be on the CPU, got {value.device}")
