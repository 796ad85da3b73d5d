"""A profile as one page of HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .profile import BOUND, Profile

COLOURS = {
    "busy": "#2e7d32", "dram": "#1565c0", "bank": "#6a1b9a", "dependency": "#ef6c00", "fill": "#00838f",
    "drain": "#ad1457", "issue": "#616161", "idle": "#e0e0e0",
}  # fmt: skip
STYLE = """
body { font-family: sans-serif; margin: 2em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: 0.2em 0.8em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
.bar { display: flex; width: 24em; height: 0.9em; }
.key span { display: inline-block; width: 0.9em; height: 0.9em; margin: 0 0.3em 0 1em; }
pre { background: #f5f5f5; padding: 1em; }
"""


def page(profile: Profile, title: str) -> str:
    """The whole page."""
    total, roof = profile.total, profile.roofline
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>",
        f"<style>{STYLE}</style></head><body><h1>{escape(title)} on {escape(profile.platform)}</h1>",
        f"<p>{total['cycles']:,} cycles, {total['latency_ms']:.4f} ms; lower bound {total['lower_bound_cycles']:,}. "
        f"{roof.macs_per_byte:.1f} MACs a byte of DRAM, ridge at {roof.ridge:.1f}: bound by {roof.bound_by}; "
        f"attainable {roof.attainable:,.0f} MACs a cycle, achieved {roof.achieved:,.0f}.</p>",
        _key(),
        "<h2>Units</h2>",
        _table(
            ("unit", "of them", "cycles"),
            ((unit, str(profile.count[unit]), _bar(kinds.items())) for unit, kinds in profile.units.items()),
        ),
        "<h2>Layers</h2>",
        _table(
            ("layer", "operator", "cycles", "share", "utilization", "DRAM bytes", "bound by", "time"),
            (
                (
                    escape(row.module or row.node), row.op, f"{row.cycles:,}", f"{row.share:.1%}",
                    f"{row.utilization:.1%}", f"{row.dram_bytes:,}", row.bound_by, _bar(row.time.items(), row.share),
                )
                for row in profile.layers
            ),
        ),
    ]  # fmt: skip
    if profile.host:
        rows = ((escape(step.name), escape(step.operator), f"{step.ms:.3f}") for step in profile.host)
        parts += ["<h2>Host (measured)</h2>", _table(("step", "operator", "ms"), rows)]
    parts += ["<h2>Energy (estimate)</h2>", f"<pre>{escape(profile.power.report)}</pre></body></html>\n"]
    return "\n".join(parts)


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{header}</th>" for header in headers)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _bar(kinds: Iterable[tuple[str, float]], share: float = 1.0) -> str:
    """A bar of coloured parts, `share` of the full width."""
    held = [(kind, amount) for kind, amount in kinds if amount > 0]
    total = sum(amount for _, amount in held) or 1
    spans = "".join(
        f"<span title='{BOUND.get(kind, kind)}: {amount:,.0f}' "
        f"style='width:{100 * share * amount / total:.3f}%;background:{COLOURS[kind]}'></span>"
        for kind, amount in held
    )
    return f"<div class='bar'>{spans}</div>"


def _key() -> str:
    spans = "".join(
        f"<span style='background:{colour}'></span>{BOUND.get(kind, kind)}" for kind, colour in COLOURS.items()
    )
    return f"<p class='key'>{spans}</p>"
