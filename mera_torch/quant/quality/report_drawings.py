"""What the report draws: the error along the network, and the network itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mera_torch.pages import layered

from .report_layers import Layer
from .report_numbers import plain, round_percent

NODE_WIDTH, NODE_HEIGHT, LANE, GAP = 236.0, 26.0, 8.0, (14.0, 18.0)  # CSS pixels at scale 1
_LEAST_ERROR = 1e-4  # the lower end of the axis, however small an error is


def error_chart(layers: Sequence[Layer]) -> dict[str, Any]:
    """Relative errors on a logarithmic axis of whole decades, 0 (below) to 100 (above).

    ticks: [{at: 0 to 1, text}]. bars: the height of each layer's added error, 0 for none. total, inherited: points of
    polylines, a level for each layer at x = its index, interrupted where nothing is known or nothing differs.
    """
    errors = [e for layer in layers for e in (layer.added, layer.inherited, layer.total) if e and math.isfinite(e)]
    low = math.floor(math.log10(max(_LEAST_ERROR, min(errors, default=0.01))))
    high = max(low + 1, 0, math.ceil(math.log10(max(errors, default=1.0))))

    def height(error: float | None) -> float:
        if not error:
            return 0.0
        return 100 * min(1.0, max(0.01, (math.log10(min(error, 1e300)) - low) / (high - low)))

    ticks = [{"at": (i - low) / (high - low), "text": round_percent(10.0**i)} for i in range(low, high + 1)]
    return {
        "ticks": ticks, "bars": [height(layer.added) for layer in layers],
        "total": _levels([height(layer.total) for layer in layers]),
        "inherited": _levels([height(layer.inherited) for layer in layers]),
    }  # fmt: skip


def trade_off(found: Mapping[str, Any]) -> dict[str, Any]:
    """The curve of a mixed-precision search, MixedPrecision.to_dict(): score against cycles.

    x_ticks, y_ticks: [{at: 0 to 1, text}]. marks: [{x, y: 0 to 100 from the upper left, chosen, about}]; line: points
    of the polyline through them. headers, rows: the same as a table.
    """
    points = found["curve"]
    unit = f"{found['metric']}, {found['unit']}" if found["unit"] else found["metric"]
    shown = [point for point in points if point["score"] is not None]
    x_ticks, x = _axis([point["cycles"]["total"] for point in shown])
    y_ticks, y = _axis([point["score"] for point in shown])
    marks = [
        {
            "x": round(100 * x(point["cycles"]["total"]), 2), "y": round(100 - 100 * y(point["score"]), 2),
            "chosen": point["nodes"] == found["after"]["nodes"],
            "about": f"{point['kept']}: {plain(point['score'])}; {point['cycles']['total']:,} cycles",
        }
        for point in shown
    ]  # fmt: skip
    return {
        "x_ticks": x_ticks, "y_ticks": y_ticks, "marks": marks,
        "line": " ".join(f"{mark['x']},{mark['y']}" for mark in marks),
        "unit": unit, "dtype": found["dtype"], "platform": found["platform"],
        "headers": ["", f"in {found['dtype']}", unit, "cycles", "operators"],
        "rows": [
            (
                "chosen" if point["nodes"] == found["after"]["nodes"] else "", str(point["kept"]),
                "exact" if point["score"] is None else plain(point["score"]), f"{point['cycles']['total']:,}",
                ", ".join(point["nodes"]) or "none",
            )
            for point in points
        ],
    }  # fmt: skip


def _axis(values: Sequence[float]) -> tuple[list[dict[str, Any]], Callable[[float], float]]:
    """Round ticks around `values`, and where between the first and the last of them, 0 to 1, a value is."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    extent = high - low or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(extent / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if extent / (factor * step) <= 5)
    first = math.floor(low / step)
    last = max(first + 1, math.ceil(high / step))
    ticks = [
        {"at": (i - first) / (last - first), "text": f"{i * step:,.{max(0, -math.floor(math.log10(step)))}f}"}
        for i in range(first, last + 1)
    ]
    return ticks, lambda value: (value / step - first) / (last - first)


def _levels(heights: Sequence[float]) -> list[str]:
    lines: list[list[str]] = [[]]
    for i, height in enumerate(heights):
        if height:
            lines[-1] += [f"{i + 0.15:.2f},{100 - height:.2f}", f"{i + 0.85:.2f},{100 - height:.2f}"]
        elif lines[-1]:
            lines.append([])
    return [" ".join(line) for line in lines if line]


def network(layers: Sequence[Layer]) -> dict[str, Any]:
    """points: the upper left corner of each layer's box; edges: [{source, target, path: of SVG}]."""
    drawing = layered.draw([layer.inputs for layer in layers], width=NODE_WIDTH, height=NODE_HEIGHT, lane=LANE, gap=GAP)
    return {
        "width": round(drawing.width, 1), "height": round(drawing.height, 1),
        "node_width": NODE_WIDTH, "node_height": NODE_HEIGHT,
        "points": [(round(x - NODE_WIDTH / 2, 1), round(y - NODE_HEIGHT / 2, 1)) for x, y in drawing.points],
        "edges": [{"source": s, "target": t, "path": _path(points)} for s, t, points in drawing.edges],
    }  # fmt: skip


def _path(points: Sequence[layered.Point]) -> str:
    """Straight through the layers, curved between them."""
    half = NODE_HEIGHT / 2
    parts = [f"M{points[0][0]:.1f} {points[0][1] + half:.1f}"]
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        start, end = y0 + half, y1 - half
        middle = (start + end) / 2
        curve = f"C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {end:.1f}"
        parts.append(f"V{end:.1f}" if abs(x1 - x0) < 0.05 else curve)
        if (x1, y1) != points[-1]:
            parts.append(f"V{y1 + half:.1f}")
    return "".join(parts)
