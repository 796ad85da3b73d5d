"""Ranges chosen by what their rounding does to the network's outputs.

Of an activation x, int8 makes x + e. To first order the outputs y move by J e, J the derivative of y by x, and for a
random vector r of independent signs E[(r' J e)^2] = |J e|^2 (M. F. Hutchinson, "A stochastic estimator of the trace",
1990): one backward pass, which gives g = J' r for all activations at once, weighs the error (g' e)^2 of any range. The
sum over g' e comes before the square, as errors that are alike in neighbouring positions add up in the outputs: those
of flat regions of images do, which neither least squared error nor gradients squared element by element can see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree
from torchao.quantization.pt2e import ObserverBase

from mera_torch.converters.graph import first_line

from ..findings import Finding
from ..graphs.patterns import value_of
from ..graphs.run import Inputs
from .calibrate import ProgressOption, bar
from .observers import ActivationObserver
from .ranges import LEVELS, Range, extremes, find_range, grid
from .statistics import joined

BATCHES = 16
"""So many, spread evenly, are used at most."""
SAMPLES = 32
"""Of (g' e)^2 for each range, about: the fewer batches, the more random vectors for each."""
MEMORY_LIMIT = 2 << 30
"""Bytes of a batch's values, which backward passes hold all at once."""
FRACTIONS = (0.25, 0.3, 0.35, 0.42, 0.5, 0.6, 0.7, 0.84, 1.0, 1.2, 1.5, 2.0)
"""Of the mean of the batches' extremes, as far as those of all batches reach: the ranges that are tried, beside that of
least squared error."""


def tune_ranges(
    prepared: GraphModule, batches: Sequence[Inputs], *, seed: int = 0, progress: ProgressOption = False
) -> list[Finding]:
    """Settles the ranges of a calibrated network's observers of kind ``"auto"``: of several each, the one that changes
    the outputs least.

    Args:
        prepared: Calibrated module from ``prepare_pt2e`` with ``MeraQuantizer``.
        batches: Tuples of its inputs.
        seed: Of the random vectors.
        progress: Show a progress bar on a terminal; or a function that is called with (stage, done, total) instead.

    Returns:
        Why ranges stay those of :func:`~mera_torch.quant.calibration.ranges.find_range`, if they do.
    """
    observers = _tunable(prepared)
    if not observers or not batches:
        return []
    if (size := _size(prepared)) > MEMORY_LIMIT:
        return [_untuned(f"the values of one batch are {size >> 20} MiB, more than {MEMORY_LIMIT >> 20}")]
    used = [batches[i * len(batches) // BATCHES] for i in range(BATCHES)] if len(batches) > BATCHES else batches
    each = max(2, SAMPLES // len(used))
    generator = torch.Generator().manual_seed(seed)
    ranges = {leader: _candidates(leader) for leader in {observer.group[0]: None for observer in observers.values()}}
    errors = {leader: np.zeros(len(tried)) for leader, tried in ranges.items()}
    with bar("tuning ranges", len(used), progress) as advance:
        for batch in used:
            try:
                found = _derivatives(prepared, observers, batch, each, generator)
            except RuntimeError as error:  # as of an operator without derivative
                return [_untuned(f"the network cannot be differentiated: {first_line(error)}")]
            for observer, x, gradients in found:
                leader = observer.group[0]
                errors[leader] += _errors(x, gradients, ranges[leader], observer.symmetric)
            advance()
    if not any(total.any() for total in errors.values()):
        return [_untuned("no output has a derivative by any of them")]
    for leader, total in errors.items():
        if np.isfinite(total).all() and total.any():
            leader.settle(ranges[leader][int(total.argmin())])
    return []


def _untuned(why: str) -> Finding:
    return Finding("ranges", "note", "", "", f"ranges of activations are not tuned by the outputs: {why}")


def _tunable(prepared: GraphModule) -> dict[Node, ActivationObserver]:
    found = {}
    for node in prepared.graph.nodes:
        module = prepared.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, ActivationObserver) and module.kind == "auto" and not module.fixed:
            found[node] = module
    return found


def _size(prepared: GraphModule) -> int:
    values = (value_of(node) for node in prepared.graph.nodes if node.op == "call_function")
    return sum(value.numel() * value.element_size() for value in values if value is not None)


def _candidates(leader: ActivationObserver) -> list[Range]:
    """The local choice first, which wins where several are equal. Where several values share a range, what is widest of
    them may matter least: so fractions of their average range are tried as well."""
    members = [each.statistics for each in leader.group]
    seen = joined(members)
    lowest, highest = extremes(seen)
    if leader.symmetric:
        lowest, highest = -max(-lowest, highest), max(-lowest, highest)
    kinds = [find_range(seen, kind, symmetric=leader.symmetric) for kind in ("auto", "histogram", "mean")]
    bases = [kinds[-1]]
    if len(members) > 1:
        each = np.array([find_range(member, "mean", symmetric=leader.symmetric) for member in members]).mean(0)
        bases.append((float(each[0]), float(each[1])))
    tried = ((f * low, f * high) for low, high in bases for f in FRACTIONS)
    return list(dict.fromkeys([*kinds, *((max(low, lowest), min(high, highest)) for low, high in tried)]))


def _derivatives(
    prepared: GraphModule,
    observers: dict[Node, ActivationObserver],
    batch: Inputs,
    each: int,
    generator: torch.Generator,
) -> list[tuple[ActivationObserver, torch.Tensor, torch.Tensor]]:
    """(observer, its value x, g [each, elements of x] of as many random vectors)."""
    run = _Differentiated(prepared, observers)
    with torch.enable_grad():
        results = [y for y in pytree.tree_leaves(run.run(*batch)) if isinstance(y, torch.Tensor) and y.requires_grad]
    if not results:
        return []
    observed = [(observers[node], x) for node, x in run.observed.items()]
    rows: list[list[torch.Tensor]] = [[] for _ in observed]
    for _ in range(each):
        signs = [(torch.randint(0, 2, y.shape, generator=generator) * 2 - 1).to(y.dtype) for y in results]
        found = torch.autograd.grad(results, [x for _, x in observed], signs, retain_graph=True, allow_unused=True)
        for row, g in zip(rows, found, strict=True):
            if g is not None:
                row.append(g.flatten())
    return [(observer, x.detach(), torch.stack(row)) for (observer, x), row in zip(observed, rows, strict=True) if row]


class _Differentiated(Interpreter):
    """Runs a network with derivatives by what observers see, and by nothing else."""

    def __init__(self, model: GraphModule, observers: dict[Node, ActivationObserver]) -> None:
        super().__init__(model)
        self.observers, self.observed = observers, dict[Node, torch.Tensor]()

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        return _plain(super().placeholder(target, args, kwargs))

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return _plain(super().get_attr(target, args, kwargs))

    def run_node(self, n: Node) -> Any:
        if n.op != "call_module" or not isinstance(self.module.get_submodule(str(n.target)), ObserverBase):
            return super().run_node(n)
        (x,), _ = self.fetch_args_kwargs_from_env(n)
        if n in self.observers and x.is_floating_point():
            self.observed[n] = x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        return x


def _plain(value: Any) -> Any:
    """A tensor without derivative; one made in inference mode, which autograd refuses, is copied."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.clone() if value.is_inference() else value.detach()


def _errors(x: torch.Tensor, gradients: torch.Tensor, ranges: list[Range], symmetric: bool) -> np.ndarray:
    """The sum of (g' e)^2 over the rows g of `gradients`, for each range; float64 [ranges]."""
    low, high = (np.array(side) for side in zip(*ranges, strict=True))
    scales, zeros = grid(low, high, symmetric)
    found = []
    for scale, zero in zip(scales.tolist(), zeros.tolist(), strict=True):
        e = torch.fake_quantize_per_tensor_affine(x, scale, int(zero), *LEVELS).sub_(x).flatten()
        found.append(float((gradients @ e).double().square().sum()))
    return np.array(found)
