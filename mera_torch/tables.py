"""A runner's metrics as tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table


def machine(metrics: dict[str, Any]) -> Table:
    """What one inference costs the simulated machine. metrics: of Runner.metrics()."""
    cycles, bound = metrics["cycles"], metrics["lower_bound_cycles"]
    title = f"one inference on {metrics['platform']}, simulated"
    table = Table(box=SIMPLE_HEAD, title=title, show_header=False, title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("cycles", f"{cycles:,}")
    table.add_row("lower bound", f"{bound:,}")
    table.add_row("cycles / lower bound", f"{cycles / bound:.2f}")
    table.add_row("latency", f"{metrics['latency_ms']:.4f} ms")
    table.add_row("utilization of peak MACs", f"{metrics['utilization']:.1%}")
    table.add_row("multiply-accumulates", f"{metrics['macs']:,}")
    table.add_row("DRAM bytes read", f"{metrics['dram_bytes_read']:,}")
    table.add_row("DRAM bytes written", f"{metrics['dram_bytes_written']:,}")
    table.add_row("SRAM bytes, peak", f"{metrics['sram_peak_bytes']:,}")
    return table


def layers(metrics: dict[str, Any]) -> Table:
    """One row a DNA node, in the order of the program; layers overlap, so cycles add up to more than the whole."""
    table = Table(box=SIMPLE_HEAD)
    for header in ("module", "operator", "start", "cycles", "MACs", "utilization", "DRAM read", "DRAM written"):
        table.add_column(header, justify="left" if header in ("module", "operator") else "right")
    for row in metrics["layers"]:
        table.add_row(
            row["module"] or row["node"],
            row["op"],
            f"{row['start_cycle']:,}",
            f"{row['cycles']:,}",
            f"{row['macs']:,}",
            f"{row['utilization']:.1%}",
            f"{row['dram_bytes_read']:,}",
            f"{row['dram_bytes_written']:,}",
        )
    return table
