"""What deployments cost: reports and profiles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..files import MANIFEST
from .app import DeploymentFolder, InputOption, JsonOption, OwnPlatformOption, app, emit, imported, working

if TYPE_CHECKING:
    from ..profile import HostStep, Profile

TraceOption = Annotated[Path | None, typer.Option(help="Also write a trace that Perfetto opens (ui.perfetto.dev).")]
HIDDEN = 0.0005
"""Layers of a smaller share than this are left out of the table (not of the JSON)."""


@app.command()
def report(deployment: DeploymentFolder, trace: TraceOption = None, as_json: JsonOption = False) -> None:
    """Simulated cycles, traffic and utilization of a deployment, layer by layer."""
    from ..backend.region import metrics
    from ..lite import load
    from ..tables import layers, machine
    from ..trace import write_trace

    with working(as_json, "simulate"):
        held = load(deployment)
        found = metrics(held.regions, held.platform, "Simulator", held.lower_bound_cycles)
        if trace is not None:
            write_trace(trace, held.regions, held.platform)
    written = [] if trace is None else [f"{trace}: open it at ui.perfetto.dev"]
    emit(as_json, {**found, "trace": None if trace is None else str(trace)}, layers(found), machine(found), *written)


@app.command()
def profile(
    model: Annotated[Path, typer.Argument(help="A deployment, or a quantized model.")],
    platform: OwnPlatformOption = None,
    input: InputOption = None,
    trace: TraceOption = None,
    html: Annotated[Path | None, typer.Option(help="Also write the tables as a page of HTML.")] = None,
    host: Annotated[bool, typer.Option(help="Measure the operators on the host.")] = True,
    every: Annotated[bool, typer.Option("--all", help="Also the layers that take no time of their own.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Where the time of an inference goes: layers, units, reasons of stalls, roofline, energy (estimated)."""
    from ..atomic import atomic_file
    from ..profile import profile as profiled
    from ..profile_page import page
    from ..trace import write_trace

    with working(as_json, "profile") as tell:
        regions, machine, bound, steps = _opened(model, platform, input, host, tell)
        found = profiled(regions, machine, "Simulator", bound, steps)
        if trace is not None:
            write_trace(trace, regions, machine)
        if html is not None:
            with atomic_file(html) as path:
                path.write_text(page(found, str(model)), encoding="utf-8")
    files = {key: None if path is None else str(path) for key, path in (("trace", trace), ("html", html))}
    written = [f"{path}: written" for path in files.values() if path]
    emit(as_json, {"model": str(model), **found.to_dict(), **files}, *tables(found, every), *written)


def _opened(
    model: Path, platform: str | None, input: list[str] | None, host: bool, tell: Any
) -> tuple[list[Any], Any, int, list[HostStep]]:
    """Regions, platform, lower bound and host times of a deployment, or of a model compiled for the platform."""
    from ..errors import ConfigError

    if (model / MANIFEST).is_file():
        if platform is not None:
            raise ConfigError(f"{str(model)!r} is a deployment, compiled for its own platform; leave out --platform")
        from ..lite import load

        held = load(model)
        has_host = any("region" not in step for step in held.manifest["host"]["steps"])
        steps = _host(*_deployed(model)) if host and has_host else []
        return held.regions, held.platform, held.lower_bound_cycles, steps
    from ..backend.capture import capture
    from ..compile import build, opened, settings_of
    from ..errors import UnsupportedError
    from ..lower_bound import lower_bound_cycles

    settings = settings_of(platform or "SAKURA_1", "Simulator", None)
    captured = capture(*opened(imported(model, input), None))
    built = build(captured, settings)
    if not built.regions:
        raise UnsupportedError(built.explanation.why_nothing_runs())
    for region in built.regions:
        region.compile(tell)
    bound = sum(lower_bound_cycles(region.lower_bound, settings.platform) for region in built.regions)
    has_host = any(step.region < 0 for step in built.graph.steps)
    steps = _host(built.graph, built.regions, captured.inputs) if host and has_host else []
    return built.regions, settings.platform, bound, steps


def _deployed(path: Path) -> tuple[Any, Any, Any]:
    from ..project import load

    held = load(path)
    return held._graph, held.regions, held._inputs


def _host(graph: Any, regions: Any, inputs: Any) -> list[HostStep]:
    import torch

    from ..host_times import host_times
    from ..ladder import specs_of
    from ..samples import random_inputs

    arrays = iter(random_inputs(specs_of(inputs)))
    flat = [spec.constant if spec.dtype is None else torch.from_numpy(next(arrays)) for spec in inputs]
    return host_times(graph, regions, flat)


# ---- tables ----


def tables(found: Profile, every: bool = False) -> list[Any]:
    """The profile for people."""
    from ..profile import BOUND, CHANNELS, UNITS

    layers = Table(box=SIMPLE_HEAD)
    headers = ("layer", "operator", "cycles", "share", "utilization", "DRAM bytes", "bound by")
    for header in headers:
        layers.add_column(header, justify="left" if header in ("layer", "operator", "bound by") else "right")
    left_out = 0
    for row in found.layers:
        if not every and row.share < HIDDEN:
            left_out += 1
            continue
        layers.add_row(
            row.module or row.node, row.op, f"{row.cycles:,}", f"{row.share:.1%}", f"{row.utilization:.1%}",
            f"{row.dram_bytes:,}", row.bound_by,
        )  # fmt: skip
    if left_out:
        layers.caption = f"{left_out} more are part of others, or take less than {HIDDEN:.2%}; --all shows them"
    units = Table(box=SIMPLE_HEAD)
    for header in ("unit", *(BOUND.get(kind, kind) for kind in next(iter(found.units.values())))):
        units.add_column(header, justify="left" if header == "unit" else "right")
    for unit in (*UNITS, *CHANNELS):
        units.add_row(f"{unit} x {found.count[unit]}", *_parts(found.units[unit]))
    return [layers, units, *_summary(found), *_host_table(found), found.power.report]


def _parts(kinds: Mapping[str, int]) -> list[str]:
    total = sum(kinds.values()) or 1
    return [f"{cycles / total:.1%}" if cycles else "" for cycles in kinds.values()]


def _summary(found: Profile) -> list[str]:
    total, roof = found.total, found.roofline
    return [
        f"{total['cycles']:,} cycles on {found.platform}, {total['latency_ms']:.4f} ms; lower bound "
        f"{total['lower_bound_cycles']:,} ({total['cycles'] / max(1, total['lower_bound_cycles']):.2f} x)",
        f"roofline: {roof.macs_per_byte:.1f} MACs a byte of DRAM, the ridge is at {roof.ridge:.1f}: bound by "
        f"{roof.bound_by}; attainable {roof.attainable:,.0f} MACs a cycle, achieved {roof.achieved:,.0f} "
        f"({roof.achieved / roof.attainable if roof.attainable else 0:.0%})",
    ]


def _host_table(found: Profile) -> list[Any]:
    if not found.host:
        return []
    table = Table(box=SIMPLE_HEAD, caption=f"{found.host_ms:.3f} ms on this host, measured")
    for header in ("on the host", "operator", "ms"):
        table.add_column(header, justify="right" if header == "ms" else "left")
    for step in found.host:
        table.add_row(step.name, step.operator, f"{step.ms:.3f}")
    return [table]
