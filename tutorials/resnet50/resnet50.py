"""ResNet-50 in INT8, quantized by PyTorch, deployed with the MERA face.

    python tutorials/resnet50/resnet50.py [--target Simulator|IP] [--platform DNAF200L0003] [--size 224]

Target IP runs on a board or, where there is none, on an emulated one, which is started and says so. Without --weights
(a state dict with torchvision's names) the network has seeded random weights whose batch norm statistics are taken from
data.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import mera_torch as mera
from mera_torch import Platform, Target
from mera_torch.zoo_models.resnet import resnet50

warnings.filterwarnings("ignore")  # PyTorch's, of its older quantization tools


def images(count: int, size: int, seed: int) -> Tensor:
    """Smooth random pictures [count, 3, size, size]."""
    coarse = torch.randn(count, 3, size // 8 + 1, size // 8 + 1, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear")


def with_statistics(model: nn.Module, data: Tensor) -> nn.Module:
    """The model in evaluation mode, its batch norms with the statistics of data."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # a plain average
    model.train()
    with torch.no_grad():
        model(data)
    return model.eval()


def quantize_and_trace(model: nn.Module, data: Tensor, path: Path) -> None:
    """PyTorch's own INT8 quantization, saved as TorchScript."""
    prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), (data[:1],))
    with torch.no_grad():
        prepared(data)
        script = torch.jit.trace(convert_fx(prepared), data[:1]).eval()
    torch.jit.save(script, str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="Simulator", choices=["Simulator", "IP"])
    parser.add_argument("--platform", default="DNAF200L0003", help="a platform's name, or the path of a TOML file")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--weights", type=Path, help="a state dict of torchvision's resnet50")
    parser.add_argument("--output", type=Path, help="where to leave the project (default: nowhere)")
    options = parser.parse_args()

    torch.manual_seed(123)
    torch.backends.quantized.engine = "x86"
    data = images(4, options.size, seed=1)
    model = resnet50().eval()
    if options.weights:
        model.load_state_dict(torch.load(options.weights, map_location="cpu", weights_only=True))
    else:
        model = with_statistics(model, data)

    with TemporaryDirectory() as scratch:
        script = Path(scratch) / "resnet50.pt"
        quantize_and_trace(model, data, script)

        # Arrays are NHWC, as cameras give them and as the DNA holds them: nothing is transposed anywhere.
        image = np.ascontiguousarray(data[:1].permute(0, 2, 3, 1).numpy())
        input_desc = {"input0": (image.shape, "float32")}
        platform = Platform[options.platform] if not options.platform.endswith(".toml") else options.platform

        with mera.Deployer(options.output or Path(scratch) / "deployment", overwrite=True) as deployer:
            network = mera.ModelLoader(deployer).from_pytorch(script, input_desc)
            reference = deployer.deploy(network, mera_platform=platform, target=Target.InterpreterHw)
            wanted = reference.get_runner().set_input(image).run().get_outputs()
            for index, array in enumerate(wanted):
                deployer.save_data_file(f"ref_result_{index}.bin", array)
            deployed = deployer.deploy(network, mera_platform=platform, target=options.target)

        runner = deployed.get_runner().set_input(image).run()
        same = all(np.array_equal(a, b) for a, b in zip(wanted, runner.get_outputs(), strict=True))
        print(f"{options.target} gives the bytes of InterpreterHw: {same}")
        print(f"top-1: {int(runner.get_output(0).argmax())}, in float: {int(model(data[:1]).argmax())}")
        metrics = runner.get_runtime_metrics()
        print(f"latency on {options.platform}: {sum(row['sim_time_us'] for row in metrics) / 1000:.3f} ms")
        print(runner.get_power_metrics().report)


if __name__ == "__main__":
    main()
