"""The networks that are measured. Weights are random, BatchNorm statistics set from data: cycles depend on neither."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mera_torch.zoo_models.efficientnet_lite import EfficientNetLite0
from mera_torch.zoo_models.mobilenet_v1 import MobileNetV1
from mera_torch.zoo_models.mobilenet_v2 import MobileNetV2
from mera_torch.zoo_models.resnet import resnet18, resnet50

CALIBRATION_BATCHES = 2


def from_torchvision(name: str) -> Callable[[], nn.Module]:
    """A network of torchvision.models, where installed. For a CPU build of torch, the operator it lacks is declared."""

    def build() -> nn.Module:
        if not hasattr(torch.ops.torchvision, "nms"):
            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _libraries.append(library)
        import torchvision.models

        model: nn.Module = getattr(torchvision.models, name)(weights=None)
        return model

    return build


_libraries: list[torch.library.Library] = []  # an operator lives as long as its library object


class UNet(nn.Module):
    """A small U-Net of four scales: float32 [N, 3, H, W], H and W multiples of 8 -> [N, 2, H, W]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def double(inputs: int, outputs: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for channels in (inputs, outputs):
                layers += [
                    nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
            return nn.Sequential(*layers)

        widths = [width << scale for scale in range(4)]
        self.down = nn.ModuleList(double(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(double(a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for index, stage in enumerate(self.down):
            x = stage(x if index == 0 else self.pool(x))
            kept.append(x)
        for stage, skip in zip(self.up, kept[-2::-1], strict=True):
            x = stage(torch.cat((skip, self.upsample(x)), 1))
        y: Tensor = self.head(x)
        return y


@dataclass(frozen=True)
class Network:
    """build() -> the network; side: of its square input."""

    name: str
    build: Callable[[], nn.Module]
    side: int = 224

    def inputs(self, seed: int = 0) -> Tensor:
        """float32 [1, 3, side, side]: smooth noise, as pixels are."""
        random = torch.Generator().manual_seed(seed)
        coarse = torch.randn(1, 3, self.side // 8, self.side // 8, generator=random)
        smooth = nn.functional.interpolate(coarse, size=self.side, mode="bilinear")
        return smooth + 0.1 * torch.randn(1, 3, self.side, self.side, generator=random)

    def prepared(self) -> nn.Module:
        """The network in evaluation mode, weights of a fixed seed, BatchNorm statistics of its inputs."""
        torch.manual_seed(0)
        model = self.build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over all batches
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        with torch.no_grad():
            model.train()(torch.cat([self.inputs(seed) for seed in (1, 2)]))
        return model.eval()

    def calibration(self) -> list[tuple[Tensor]]:
        """Inputs for quantization."""
        return [(self.inputs(seed),) for seed in range(CALIBRATION_BATCHES)]


NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        Network("resnet18", resnet18),
        Network("resnet50", resnet50),
        Network("mobilenet_v1", MobileNetV1),
        Network("mobilenet_v2", MobileNetV2),
        Network("mobilenet_v3_large", from_torchvision("mobilenet_v3_large")),
        Network("efficientnet_lite0", EfficientNetLite0),
        Network("squeezenet1_1", from_torchvision("squeezenet1_1")),
        Network("densenet121", from_torchvision("densenet121")),
        Network("unet128", UNet, side=128),
        Network("unet256", UNet, side=256),
    )
}
PAIRS = [
    ("resnet18", "mobilenet_v2"),
    ("resnet18", "unet256"),
    ("resnet50", "unet256"),
    ("mobilenet_v2", "unet128"),
    ("resnet18", "squeezenet1_1"),
    ("resnet50", "mobilenet_v1"),
    ("densenet121", "resnet50"),
    ("densenet121", "mobilenet_v3_large"),
    ("efficientnet_lite0", "unet128"),
    ("mobilenet_v2", "mobilenet_v2"),
]
"""What is fused in twos: bound by DRAM or by arrays, deep or shallow; one network twice."""
