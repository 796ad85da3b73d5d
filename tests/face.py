"""Small model files for the tests of the MERA face: TorchScript quantized by PyTorch, TFLite, ONNX."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn

TFLITE = Path(__file__).parent / "tflite_files"
SIZE = 16
ENGINE = next((e for e in ("x86", "fbgemm", "qnnpack") if e in torch.backends.quantized.supported_engines), "none")


class SmallResNet(nn.Module):
    """A stem, a residual block, a classifier, with PyTorch's stubs for eager quantization."""

    def __init__(self, channels: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU())
        self.conv = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels))
        self.add = torch.ao.nn.quantized.FloatFunctional()
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.quant(x))
        x = self.add.add_relu(self.conv(x), x)
        return self.dequant(self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)))

    def fuse_model(self) -> None:
        tq.fuse_modules(self, [["stem.0", "stem.1", "stem.2"], ["conv.0", "conv.1"]], inplace=True)


class SmallMobileNet(nn.Module):
    """A depthwise separable convolution and an image as its output."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels, 3, 2, 1), nn.ReLU(), nn.Conv2d(channels, channels, 3, 1, 1, groups=channels),
            nn.ReLU(), nn.Conv2d(channels, 5, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.layers(self.quant(x)))

    def fuse_model(self) -> None:
        tq.fuse_modules(self.layers, [["0", "1"], ["2", "3"]], inplace=True)


def picture(*, seed: int = 0, size: int = SIZE) -> Tensor:
    """[1, 3, size, size], from 0 to 1."""
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


def nhwc(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())


def quantize_model(model: Any, x: Tensor) -> None:
    """As PyTorch's tutorials of eager quantization do it, in place."""
    torch.backends.quantized.engine = ENGINE
    model.fuse_model()
    model.qconfig = tq.get_default_qconfig(ENGINE)
    tq.prepare(model, inplace=True)
    model(x)
    tq.convert(model, inplace=True)


@cache
def eager(kind: type[nn.Module], seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A quantized network and the input that it was calibrated with."""
    torch.manual_seed(seed)
    model, x = kind().eval(), picture(seed=seed)
    quantize_model(model, x)
    return model, x


def torchscript(kind: type[nn.Module], path: Path, seed: int = 0) -> tuple[Path, Tensor]:
    """The path of its trace, and the input."""
    model, x = eager(kind, seed)
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, x).eval(), str(path))
    return path, x


@cache
def float_onnx() -> bytes:
    """Inputs "input" [batch, 3, 16, 16], outputs logits."""
    import onnx_models

    torch.manual_seed(0)
    return onnx_models.exported(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5)), picture()
    )


@cache
def int8_onnx() -> bytes:
    """The same, quantized by ONNX Runtime in the QDQ form."""
    import onnx_models

    batches = [picture(seed=seed).numpy() for seed in range(2)]
    return onnx_models.quantized_static(float_onnx(), batches, "QDQ", "QInt8", "QInt8")
