"""The whole flow, from a model to something that runs on the DNA: read `build` from top to bottom.

capture -> passes -> partition -> lower each region (to_dna) -> host graph -> Deployment | torch.compile
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from . import native, passes, platform
from .backend.capture import Captured, capture, check_input_dtypes
from .backend.explain import Explanation, explain_nodes
from .backend.host import HostGraph, Ref, Step, names, refs
from .backend.partition import Partition, Region, partition
from .backend.region import COMPILED_TARGETS, DnaRegion, Port, check_target
from .backend.to_dna import Border, Lowering
from .config import BuildConfig, build_config
from .converters import example_inputs_of, from_pt2, info_of, load_model, unwrapped
from .errors import InternalError, UnsupportedError
from .lower_bound import work
from .ops.common import DEQUANTIZE, QUANTIZE, Rejected, args_of, constant, is_call, kwargs_of, origins, target_of
from .platform import Platform
from .progress import AFTER_SECONDS, progress_bar

if TYPE_CHECKING:
    from .project import Deployment


@dataclass
class Built:
    """A model divided into host steps and DNA regions.

    transposes: how many transpose nodes the regions hold.
    """

    graph: HostGraph
    regions: list[DnaRegion]
    explanation: Explanation
    captured: Captured
    platform: Platform
    transposes: int


def export(
    model: torch.nn.Module | torch.export.ExportedProgram | str | os.PathLike[str],
    example_inputs: Sequence[Any] | None,
    output_dir: str | os.PathLike[str],
    *,
    platform: str | os.PathLike[str] | Platform = "SAKURA_1",
    target: str = "Simulator",
    build_config: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: native.Progress | None = None,
) -> Deployment:
    """Compiles a quantized model and writes a deployment.

    model: a converted PT2E module (see mera_torch.quantize), a QuantizedModel, an imported model, an ExportedProgram,
    or the path of a .mera, .pt2, TFLite, ONNX or Keras file.
    example_inputs: a tuple of tensors of the shapes and dtypes to compile for (None for all but the first).
    output_dir: the deployment's folder; if it holds one already, overwrite=True replaces it, as one step.
    platform: a name or alias, a Platform, or a TOML file. target: "Simulator", "InterpreterHw" or
    "IP" (a device; the same program as for the Simulator).
    build_config: see mera_torch.config. progress: called with (stage, done, total), total 0 where that is unknown;
    without, a bar on a terminal for what takes longer than a second.

    What the DNA cannot run stays on the host: see Deployment.explanation. Raises InvalidModelError, UnsupportedError
    (nothing in the model is quantized, dynamic shapes, ...), DoesNotFitError, ConfigError; nothing is written then.
    """
    from .project import Deployment, check_output

    settings = settings_of(platform, target, build_config)
    check_output(output_dir, overwrite)
    after = 0.0 if settings.config.scheduler["progress_bars"] else AFTER_SECONDS
    with progress_bar(progress is None, after=after) as bar:
        tell = progress or bar or _nobody
        tell("import, capture", 0, 0)
        model, inputs = opened(model, example_inputs)
        captured = replace(capture(model, inputs), info=info_of(model))
        check_input_dtypes(captured)
        tell("passes, partition", 0, 0)
        built = build(captured, settings)
        if not built.regions:
            raise UnsupportedError(built.explanation.why_nothing_runs())
        if target in COMPILED_TARGETS:
            for region in built.regions:
                region.compile(tell)
        tell("golden pair, writing", 0, 0)
        return Deployment.create(output_dir, built, target, settings.config, overwrite)


def _nobody(stage: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def opened(model: Any, example_inputs: Sequence[Any] | None) -> tuple[Any, Sequence[Any] | None]:
    """Model and inputs for capture(), of whatever export() takes: files are imported, and imported models know what
    their inputs are like."""
    if isinstance(model, str | os.PathLike):
        model = load_model(model)
    elif isinstance(model, torch.export.ExportedProgram):
        model = from_pt2(model)
    model = unwrapped(model)
    return model, example_inputs_of(model) if example_inputs is None else example_inputs


@dataclass(frozen=True)
class Settings:
    """What a build is for."""

    platform: Platform
    target: str
    config: BuildConfig


def settings_of(machine: str | os.PathLike[str] | Platform, target: str, config: Mapping[str, Any] | None) -> Settings:
    """Checked. Raises ConfigError naming the nearest platform, target or key."""
    found, checked = platform.find(machine), build_config(config)
    if checked["sim_freq_mhz"]:
        found = replace(found, clock_mhz=checked["sim_freq_mhz"], dram_latency_cycles=-1)
    return Settings(found, check_target(target), checked)


def build(captured: Captured, settings: Settings) -> Built:
    """Everything but writing. If lowering finds that nodes cannot run after all, they are left to the host, and the
    build begins again without them."""
    excluded: dict[str, str] = {}
    while True:
        gm = _copy(captured.gm)
        gm.meta["mera_excluded"] = excluded
        passes.run(gm)
        parts = partition(gm)
        lowered: list[Lowering] = []
        rejections: list[Rejected] = []
        for region in parts.regions:
            low = Lowering(f"region_{region.index}", gm)
            lowered.append(low)
            rejections += low.run(region.inputs, region.nodes, region.outputs)
        if not rejections:
            break
        _exclude(excluded, rejections)
    on_dna = {node for region in parts.regions for node in region.nodes}
    regions = [_region(region, low, on_dna, settings) for region, low in zip(parts.regions, lowered, strict=True)]
    graph = _host_graph(gm, parts, regions, on_dna)
    transposes = sum(low.counts["transpose"] for low in lowered)
    explanation = explain_nodes(gm, parts, captured.gm, settings.platform)
    return Built(graph, regions, explanation, captured, settings.platform, transposes)


def _copy(gm: fx.GraphModule) -> fx.GraphModule:
    new = fx.GraphModule(gm, copy.deepcopy(gm.graph))
    for name, buffer in gm.named_buffers():  # those that no node names
        if not hasattr(new, name):
            new.register_buffer(name, buffer, persistent=False)
    return new


def _exclude(excluded: dict[str, str], rejections: list[Rejected]) -> None:
    """Adds the rejected operators to those left to the host: at least one more each time, so that it ends."""
    for rejection in rejections:
        found = [o.name for o in origins(rejection.node)]
        fresh = [name for name in found if name not in excluded]
        if fresh:
            excluded[fresh[0]] = rejection.reason
        elif rejection is rejections[0]:
            raise InternalError(f"node {rejection.node.name} can neither be lowered nor left out: {rejection.reason}")


# ---- regions and their borders ----


def _region(region: Region, low: Lowering, on_dna: set[fx.Node], settings: Settings) -> DnaRegion:
    inside = set(region.nodes)
    inputs = [_input_port(border, on_dna) for border in low.inputs]
    outputs: list[Port] = []
    index: list[int] = []
    order = list(dict.fromkeys(border.tensor for border in low.outputs))
    for border in low.outputs:
        for port in _output_ports(border, inside):
            outputs.append(port)
            index.append(order.index(border.tensor))
    rows = {o.name: (o.op, o.module, o.source) for node in region.nodes for o in origins(node)}
    return DnaRegion(
        f"region_{region.index}", low.graph, inputs, outputs, index,
        settings.platform, settings.config.compiler_options(), rows, work(region.nodes, region.inputs, region.outputs),
        settings.config["cache"],
    )  # fmt: skip


def _port(border: Border, value: str, real: bool) -> Port:
    layout = border.form.layout
    return Port(value, layout.shape, layout.sizes, layout.dims, border.form.shape, *border.q, real)


def absorbed_quantize(node: fx.Node, on_dna: set[fx.Node]) -> bool:
    """Whether the ports of regions do what this node does: all that read it are regions."""
    if not is_call(node, QUANTIZE) or args_of(node)[3:6] != (-128, 127, torch.int8):
        return False
    source = args_of(node)[0]
    is_float = isinstance(source, fx.Node) and source.meta["val"].dtype is torch.float32
    return is_float and all(user in on_dna for user in node.users)


def absorbed_dequantize(node: fx.Node, on_dna: set[fx.Node]) -> bool:
    """Whether the port of a region does what this node does."""
    return is_call(node, DEQUANTIZE) and args_of(node)[0] in on_dna and node.meta["val"].dtype is torch.float32


def _input_port(border: Border, on_dna: set[fx.Node]) -> Port:
    node = border.node
    if absorbed_quantize(node, on_dna):
        return _port(border, args_of(node)[0].name, real=True)
    return _port(border, node.name, real=False)


def _output_ports(border: Border, inside: set[fx.Node]) -> list[Port]:
    """One in int8 if anything reads that, one in float32 if anything dequantizes it."""
    readers = [user for user in border.node.users if user not in inside]
    real = [user for user in readers if absorbed_dequantize(user, inside)]
    ports = [_port(border, border.node.name, real=False)] if len(real) < len(readers) else []
    return ports + ([_port(border, real[0].name, real=True)] if real else [])


# ---- the host ----


def _host_graph(gm: fx.GraphModule, parts: Partition, regions: list[DnaRegion], on_dna: set[fx.Node]) -> HostGraph:
    steps: list[Step] = []
    same: dict[str, str] = {}  # a second dequantize of one output -> the first
    given = {port.value for region in regions for port in region.outputs}
    for region in parts.regions:
        for node in region.outputs:
            real = [user for user in node.users if absorbed_dequantize(user, set(region.nodes))]
            same.update({user.name: real[0].name for user in real})
    for index, nodes in enumerate(parts.host):
        for node in nodes:
            if node.name in given or node.name in same or (node.users and absorbed_quantize(node, on_dna)):
                continue
            args, kwargs = _renamed(args_of(node), same), _renamed(kwargs_of(node), same)
            source = next((origin.source for origin in origins(node) if origin.source), "")
            steps.append(Step(node.name, target_of(node), args, kwargs, source=source))
        if index < len(regions):
            steps.append(Step(regions[index].name, region=index))
    output = next(node for node in gm.graph.nodes if node.op == "output")
    outputs = list(_renamed(args_of(output)[0], same))
    read = _foundread(steps, outputs, regions)
    constants = {
        node.name: held for node in gm.graph.nodes if node.name in read and (held := constant(gm, node)) is not None
    }
    inputs = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
    return HostGraph(inputs, steps, outputs, constants)


def _renamed(args: Any, same: dict[str, str]) -> Any:
    return fx.node.map_aggregate(
        refs(args), lambda a: Ref(same[a.name]) if isinstance(a, Ref) and a.name in same else a
    )


def _foundread(steps: list[Step], outputs: list[Any], regions: list[DnaRegion]) -> set[str]:
    found = names(outputs) | {port.value for region in regions for port in region.inputs}
    return found.union(*(names((step.args, step.kwargs)) for step in steps))
