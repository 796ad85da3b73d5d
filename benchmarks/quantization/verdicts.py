"""What the rows say: a score for each, ours against the best peer, and the aims that were set beforehand."""

from __future__ import annotations

from typing import Any

from . import metrics
from .methods import BEST, KINDS, METHODS
from .networks import NETWORKS

Row = dict[str, Any]
OURS = "mera_torch"
OURS_BEST = f"{OURS}, {BEST}"
SCORES = {"digits": "top-1 accuracy, %", "photos": "agreement with float, %", "outputs": "PSNR, dB"}

LOSS_ON_DIGITS = 0.2  # points, at most, with default settings
AGREEMENT = 95.0  # % of crops, at least, with default settings
BEST_AGREEMENT = 97.0  # the same with BEST
SECONDS = 60.0  # to quantize MobileNetV2 with 100 images, at most


def score(row: Row) -> float:
    """What a row is judged by, in points (of a hundred) or dB."""
    values = scores(row)
    return sum(values) / len(values)


def scores(row: Row) -> list[float]:
    """The same, of each item: right or not, as float or not (100 or 0), dB."""
    if row["kind"] == "outputs":
        return list(row["psnr_each"])
    flags = row["rights" if row["kind"] == "digits" else "agrees"]
    return [100 * value for value in metrics.unpacked(flags, row["inputs"])]


def compared(first: Row, second: Row) -> tuple[float, float]:
    """Mean difference of two rows of one network and its standard error, paired item by item."""
    groups = [index % first["groups"] for index in range(first["inputs"])]
    return metrics.difference(scores(first), scores(second), groups)


def difference(first: Row, second: Row) -> str:
    """The same as text."""
    if first is second:
        return "0"
    mean, error = compared(first, second)
    return f"{mean:+.2f} ± {error:.2f}"


def verdict(ours: Row, peer: Row) -> str:
    """best, within noise of best, or behind."""
    behind, error = compared(peer, ours)
    if behind <= 0:
        return "best"
    return "within noise of best" if metrics.is_within_noise(behind, error) else "behind"


def verdicts(rows: list[Row], *, kind: str, per_tensor: bool = False) -> list[Row]:
    """For each network of a kind: ours, and the better of ours against the best peer that computes in int8 throughout,
    and against the best one that leaves parts in float32."""
    found = []
    for name in dict.fromkeys(row["network"] for row in rows if row["kind"] == kind):
        measured = _measured(rows, name, per_tensor)
        ours = [row for row in measured if row["tool"] == OURS]
        if not ours:
            continue
        best = max(ours, key=score)
        shown: Row = {"network": name, "score": SCORES[kind]}
        if kind == "digits":
            shown["float"] = f"{100 * best['float_right'] / best['inputs']:.2f}"
        shown |= {_label(row["method"]): f"{score(row):.2f}" for row in ours}
        for title, floats in (("best peer in int8", False), ("best peer partly in float32", True)):
            if peers := [row for row in _peers(measured) if bool(METHODS[row["method"]].floats) == floats]:
                peer = max(peers, key=score)
                shown |= {
                    title: f"{score(peer):.2f} ({peer['method']})",
                    f"ours less {title}": f"{difference(best, peer)}: {verdict(best, peer)}",
                }
        found.append(shown)
    return found


def behind(rows: list[Row]) -> list[str]:
    """The networks on which the better of ours is behind some peer by more than noise: "network (peer)"."""
    found = []
    for per_tensor in (False, True):
        for name in dict.fromkeys(row["network"] for row in rows):
            measured = _measured(rows, name, per_tensor)
            ours, peers = [row for row in measured if row["tool"] == OURS], _peers(measured)
            if ours and peers:
                best, peer = max(ours, key=score), max(peers, key=score)
                found += [f"{name} ({peer['method']})"] if verdict(best, peer) == "behind" else []
    return found


def _label(method: str) -> str:
    return method.removeprefix(OURS).removeprefix(", ") or "default"


def _measured(rows: list[Row], network: str, per_tensor: bool) -> list[Row]:
    return [
        row for row in rows if row["network"] == network and row["per_tensor"] == per_tensor and "failed" not in row
    ]


def _peers(rows: list[Row]) -> list[Row]:
    """Those of other tools that are compared."""
    return [row for row in rows if row["tool"] != OURS and not METHODS[row["method"]].beyond]


def aims(rows: list[Row]) -> list[Row]:
    """Each aim: what was wanted, what was measured, whether it is met. What was not measured is not met."""
    held = {(row["network"], row["method"]): row for row in rows if "failed" not in row}
    found = []
    for network in NETWORKS.values():
        default, best = held.get((network.name, OURS)), held.get((network.name, OURS_BEST))
        if network.kind == "digits":
            loss = None if default is None else _loss(default)
            shown = None if loss is None else f"{loss:.2f} points"
            wanted = f"at most {LOSS_ON_DIGITS} points lost"
            found.append(_aim(network.name, OURS, wanted, shown, loss is not None and loss <= LOSS_ON_DIGITS))
        if network.kind == "photos":
            for row, method, least in ((default, OURS, AGREEMENT), (best, OURS_BEST, BEST_AGREEMENT)):
                wanted = f"at least {least:.0f} % of crops as float"
                found.append(
                    _aim(network.name, method, wanted, _agreement(row), row is not None and score(row) >= least)
                )
    plain, rescued = (held.get(("mobilenet_v2", f"{OURS}, per tensor{more}")) for more in ("", ", equalize"))
    shown = f"{score(rescued):.1f} % after {score(plain):.1f} %" if plain and rescued else None
    gains = bool(plain and rescued and score(rescued) > score(plain))
    found.append(_aim("mobilenet_v2", f"{OURS}, per tensor, equalize", "more as float than without", shown, gains))
    timed = held.get(("mobilenet_v2", OURS))
    shown = f"{timed['seconds']:.1f} s" if timed else None
    in_time = timed is not None and timed["seconds"] <= SECONDS
    found.append(_aim("mobilenet_v2", OURS, f"at most {SECONDS:.0f} s for 100 images", shown, in_time))
    late = behind(rows)
    beside = [name for name in NETWORKS if (name, OURS) in held and _peers(_measured(rows, name, per_tensor=False))]
    shown = f"behind on {', '.join(late)}" if late else f"so on {len(beside)} of {len(NETWORKS)} networks"
    met = len(beside) == len(NETWORKS) and not late
    found.append(_aim("all", "the better of ours", "best or within noise of best", shown, met))
    return found


def _aim(network: str, method: str, wanted: str, measured: str | None, met: bool) -> Row:
    return {
        "network": network,
        "method": method,
        "wanted": wanted,
        "measured": measured or "not measured",
        "met": "yes" if met else "no",
    }


def _loss(row: Row) -> float:
    return float(100 * (row["float_right"] - row["right"]) / row["inputs"])


def _agreement(row: Row | None) -> str | None:
    if row is None:
        return None
    return f"{score(row):.1f} % (and {row['photos']['agree']} of {row['photos']['inputs']} whole photos)"


def planned() -> list[tuple[str, str]]:
    """The (network, method) pairs of a whole run."""
    return [
        (network.name, method.name)
        for network in NETWORKS.values()
        for method in METHODS.values()
        if network.kind in method.planned or network.name in method.planned
    ]


def left_out() -> list[str]:
    """What a whole run leaves out, a sentence for each method."""
    return [
        f"{method.name}: measured on {', '.join(method.planned)} only"
        for method in METHODS.values()
        if not set(KINDS) <= set(method.planned)
    ]
