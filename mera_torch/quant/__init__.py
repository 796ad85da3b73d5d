"""Quantization to int8: a PT2E quantizer, calibration and what improves accuracy."""

from .calibrate import calibrate, quantize
from .config import QuantConfig
from .convert import convert
from .quantizer import MeraQuantizer

__all__ = ["MeraQuantizer", "QuantConfig", "calibrate", "convert", "quantize"]
