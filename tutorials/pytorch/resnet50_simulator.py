"""ResNet-50 on the Simulator: quantize, explain, export, run, measure.

    python tutorials/pytorch/resnet50_simulator.py [--weights resnet50.pth] [--platform SAKURA_1] [--size 224]

Without --weights the network has seeded random weights whose batch norm statistics are taken from data: enough to see
that the Simulator gives the interpreter's bytes, and how long an inference takes; accuracy needs real weights (a
state dict with torchvision's names).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import mera_torch
from mera_torch.zoo_models.resnet import resnet50


def images(count: int, size: int, seed: int) -> list[Tensor]:
    """Smooth random pictures [1, 3, size, size], about normal as ImageNet's preprocessing makes them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, size // 8 + 1, size // 8 + 1, generator=generator)
    return list(nn.functional.interpolate(coarse, (size, size), mode="bilinear").split(1))


def with_statistics(model: nn.Module, data: Tensor) -> nn.Module:
    """The model in evaluation mode, its batch norms with the statistics of data."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # a plain average
            layer.reset_running_stats()
    model.train()
    with torch.no_grad():
        model(data)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="a state dict of torchvision's resnet50")
    parser.add_argument("--platform", default="SAKURA_1", help="a platform's name, or the path of a TOML file")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--calibration", type=int, default=4, help="how many images to calibrate with")
    parser.add_argument("--output", type=Path, help="where to leave the deployment and a trace (default: nowhere)")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = resnet50()
    if options.weights:
        model.load_state_dict(torch.load(options.weights, map_location="cpu", weights_only=True))
        model.eval()
    else:
        model = with_statistics(model, torch.cat(images(4, options.size, seed=1)))

    calibration = images(options.calibration, options.size, seed=2)
    example = (calibration[0],)
    quantized = mera_torch.quantize(model, example, [(image,) for image in calibration])
    print(mera_torch.explain(quantized, example).summary())

    with TemporaryDirectory() as scratch:
        folder = options.output or Path(scratch) / "resnet50"
        begin = time.perf_counter()
        deployment = mera_torch.export(quantized, example, folder, platform=options.platform, overwrite=True)
        print(f"compiled for {deployment.platform.name} in {time.perf_counter() - begin:.1f} s")

        simulator, interpreter = deployment.get_runner("Simulator"), deployment.get_runner("InterpreterHw")
        for image in images(2, options.size, seed=3):
            simulated = simulator(image)
            with torch.no_grad():
                eager, real = quantized(image), model(image)
            same = torch.equal(simulated, interpreter(image))
            classes = [int(logits.argmax()) for logits in (real, eager, simulated)]
            print(
                f"top-1 float {classes[0]}, eager {classes[1]}, Simulator {classes[2]}; equals InterpreterHw: {same}"
            )

        metrics = simulator.metrics()
        print(f"{metrics['cycles']:,} cycles, {metrics['latency_ms']:.3f} ms, utilization {metrics['utilization']:.1%}")
        print(f"{metrics['cycles'] / metrics['lower_bound_cycles']:.2f} x the lower bound")
        slowest = sorted(metrics["layers"], key=lambda layer: -layer["cycles"])[:5]
        for layer in slowest:
            print(f"{layer['cycles']:10,} cycles  {layer['utilization']:6.1%}  {layer['module']:24} {layer['source']}")
        if options.output:
            simulator.trace(folder / "trace.json")
            print(f"open {folder / 'trace.json'} at ui.perfetto.dev")


if __name__ == "__main__":
    main()
