"""ResNet-18 and MobileNetV2 as one program that looks at each image once.

    python tutorials/fused/fused.py [--target Simulator|IP] [--platform SAKURA_1] [--size 224] [--zoo]

--zoo takes MobileNetV2's ImageNet weights from the model zoo; ResNet-18's are seeded and random.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

import mera_torch as mera
from mera_torch import Target
from mera_torch.zoo_models import MODELS
from mera_torch.zoo_models.mobilenet_v2 import MobileNetV2
from mera_torch.zoo_models.resnet import resnet18

warnings.filterwarnings("ignore", category=FutureWarning)  # torch's pytree, of itself


def images(count: int, size: int) -> list[Tensor]:
    """Smooth random pictures [1, 3, size, size]."""
    coarse = torch.randn(count, 3, size // 8 + 1, size // 8 + 1, generator=torch.Generator().manual_seed(1))
    return list(nn.functional.interpolate(coarse, (size, size), mode="bilinear").split(1))


def with_statistics(model: nn.Module, data: Tensor) -> nn.Module:
    """The model in evaluation mode, its batch norms with the statistics of data."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # a plain average
    model.train()
    with torch.no_grad():
        model(data)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="Simulator", choices=["Simulator", "IP"])
    parser.add_argument("--platform", default="SAKURA_1")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--zoo", action="store_true", help="fetch MobileNetV2's weights")
    parser.add_argument("--output", type=Path, help="where to leave the project (default: nowhere)")
    options = parser.parse_args()

    torch.manual_seed(123)
    batches = images(4, options.size)
    data = torch.cat(batches)
    networks = {
        "resnet18": with_statistics(resnet18(), data),
        "mobilenet_v2": MODELS["mobilenet_v2"].load() if options.zoo else with_statistics(MobileNetV2(), data),
    }
    shape = tuple(batches[0].shape)

    with TemporaryDirectory() as scratch:
        loader_desc = {"image": (shape, "float32")}
        with mera.Deployer(options.output or Path(scratch) / "deployment", overwrite=True) as deployer:
            loader = mera.ModelLoader(deployer)
            singles = []
            for name, network in networks.items():
                quantized = mera.quantize(network, (batches[0],), [(b,) for b in batches], progress=False)
                singles.append(loader.from_module(quantized, loader_desc, model_name=name))
            fused = loader.fuse_models(singles, share_input=True)
            print(f"inputs: {list(fused.input_desc)}, outputs: {list(fused.output_desc)}")

            alone_ms = 0.0
            wanted = []
            image = batches[0].numpy()
            for single in singles:
                runner = deployer.deploy(single, mera_platform=options.platform).get_runner().set_input(image).run()
                wanted.append(runner.get_output())
                alone_ms += runner.get_runtime_metrics()[0]["sim_time_us"] / 1000
            deployed = deployer.deploy(fused, mera_platform=options.platform, target=Target(options.target))

        runner = deployed.get_runner().set_input(image).run()
        for name, alone, found in zip(networks, wanted, runner.get_outputs(), strict=True):
            print(f"{name}: the bytes that it gives alone: {np.array_equal(alone, found)}")
        together_ms = sum(row["sim_time_us"] for row in runner.get_runtime_metrics()) / 1000
        print(f"on {options.platform}: {alone_ms:.3f} ms one after the other, {together_ms:.3f} ms fused")


if __name__ == "__main__":
    main()
