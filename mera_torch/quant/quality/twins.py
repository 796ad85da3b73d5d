"""The float twin of a quantized network that comes without one, as .pt2 files do."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from mera_torch.converters import ImportedModel, from_pt2

from ..config import QuantConfig
from ..graphs.capture import export_float
from ..pipeline import prepare, without_observers


def float_twin(original: ImportedModel, quantized: ImportedModel) -> GraphModule:
    """The float network with its batch norms folded and its nodes named as in the quantized one.

    What calibration data decides (equalization and the like) cannot be repeated: the values in between of a network
    that was quantized with such transforms are not this one's. A .mera file keeps the true twin.
    """
    examples = original.example_inputs()
    twin = without_observers(prepare(export_float(original, examples), [], QuantConfig(), False).model)
    if quantized.info.format == "pt2":
        with torch.no_grad():
            twin = from_pt2(torch.export.export(twin, examples))
    return twin
