"""Quantization to int8: a PT2E quantizer, calibration and what improves accuracy."""

import logging

# At its import torchao warns of GPU kernels that a CPU build lacks, and of a deprecation of its own: nothing that a
# user of this package could act on.
_NOISY = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
_levels = [logger.level for logger in _NOISY]
for _logger in _NOISY:
    _logger.setLevel(logging.ERROR)
try:
    import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401
finally:
    for _logger, _level in zip(_NOISY, _levels, strict=True):
        _logger.setLevel(_level)

from .calibration.calibrate import calibrate  # noqa: E402
from .calibration.tune import tune_ranges  # noqa: E402
from .config import QuantConfig  # noqa: E402
from .convert import convert  # noqa: E402
from .model_quantizer import ModelQuantizer  # noqa: E402
from .pipeline import quantize  # noqa: E402
from .quantized_model import QuantizedModel  # noqa: E402
from .quantizer import MeraQuantizer  # noqa: E402
from .rules import Rule  # noqa: E402

__all__ = [
    "MeraQuantizer", "ModelQuantizer", "QuantConfig", "QuantizedModel", "Rule", "calibrate", "convert", "quantize",
    "tune_ranges",
]  # fmt: skip
