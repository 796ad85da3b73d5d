"""A network that is calibrated once and quantized by many configurations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import GraphModule

from mera_torch.fingerprint import graph_hash, weights_hash

from .. import pipeline
from ..calibration.calibrate import ProgressOption, calibrate
from ..calibration.observers import collected, restore
from ..config import QuantConfig
from ..graphs.run import Inputs


class Requantizer:
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
        calibrated = pipeline.calibrated(model, examples, data, config, progress, check=False)
        self._first, prepared = calibrated.first, calibrated.prepared.model
        self._statistics, self._network = collected(prepared), _network(prepared)
        self.quantization = calibrated.finish()

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
