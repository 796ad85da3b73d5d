"""A network that is calibrated once and quantized by many configurations."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch.fx import GraphModule

from mera_torch.fingerprint import graph_hash, weights_hash

from .. import pipeline
from ..calibration.calibrate import ProgressOption, calibrate
from ..calibration.data import Batches, Seen, take_first
from ..calibration.observers import collected, restore
from ..config import QuantConfig
from ..graphs.capture import export_float
from ..graphs.run import Inputs


class Calibrated:
    """A float network and what calibration saw of its values. Arguments and errors as of `quantize`; the linter is not
    asked.

    Attributes:
        quantization: The network quantized by `config`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        examples: Inputs,
        data: Iterable[Any],
        config: QuantConfig,
        progress: ProgressOption,
    ) -> None:
        original = export_float(model, examples)
        names = [node.name for node in original.graph.nodes if node.op == "placeholder"]
        batches, seen = Batches(data, examples, names, seed=config.seed), Seen()
        reading = seen.watch(batches)
        self._first = take_first(reading)
        prepared = pipeline.prepare(original, self._first, config, progress, check=False)
        calibrate(prepared.model, chain(self._first, reading), progress=progress, total=batches.total)
        seen.check()
        self._statistics, self._network = collected(prepared.model), _network(prepared.model)
        reference, module = pipeline.finish(prepared, self._first, config, progress)
        self.quantization = pipeline.Quantization(
            original, reference, module, config, examples, prepared.findings, seen.batches, batches, prepared.reports
        )

    def quantize(self, config: QuantConfig) -> GraphModule:
        """The network quantized by `config`. The data is read again only where its transforms change the values."""
        whole = self.quantization
        prepared = pipeline.prepare(whole.original, self._first, config, False, check=False)
        known = set(collected(prepared.model)) <= set(self._statistics)
        if known and _network(prepared.model) == self._network:
            restore(prepared.model, self._statistics)
        else:
            calibrate(prepared.model, whole.data, progress=False)
        return pipeline.finish(prepared, self._first, config, False)[1]


def _network(prepared: GraphModule) -> tuple[str, str]:
    """What tells float networks apart."""
    network = pipeline.without_observers(prepared)
    return graph_hash(network), weights_hash(network)
