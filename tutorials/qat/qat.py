"""Quantization-aware training (QAT) of a digit network that post-training quantization (PTQ) harms.

    python tutorials/qat/qat.py [--steps 240] [--spread 300] [--output FOLDER]

The README beside this file explains the steps. All data come with the package; the same seed gives the same network on
one kind of CPU.
"""

from __future__ import annotations

import argparse
import copy
import math
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import mera_torch
from mera_torch import MeraQuantizer, QuantConfig
from mera_torch.digits import DigitNet, calibration_digits, held_out_digits, trained_digit_net
from mera_torch.quant import convert

warnings.filterwarnings("ignore")  # PyTorch's, of its export

BATCH = 50
CONFIG = QuantConfig(averaging_constant=0.05)


# ---- a float network as hard to quantize as many that come from elsewhere ----


def fold_batch_norms(net: nn.Module) -> None:
    """Each batch norm becomes part of the convolution before it, in place."""
    for module in net.modules():
        if isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.BatchNorm2d):
            module[0], module[1] = fuse_conv_bn_eval(module[0], module[1]), nn.Identity()


def spread_channels(net: DigitNet, spread: float, random: torch.Generator) -> None:
    """Multiplies channel c of each hidden value by a random f[c], and divides the weights that read it by f[c]; the
    largest factor is some `spread` times the smallest. relu(f x) = f relu(x), so the function stays the same."""
    stem, down, residual, up = net.features
    first, second = residual.conv1[0], residual.conv2[0]
    values = (  # the layers that make a value, those that read it
        ([stem[0]], [down[0]]),
        ([down[0], second], [first, up[0]]),
        ([first], [second]),
        ([up[0]], [net.classifier]),
    )
    with torch.no_grad():
        for makers, readers in values:
            factor = spread ** (torch.rand(len(makers[0].bias), generator=random) - 0.5)
            for maker in makers:
                maker.weight *= factor.view(-1, 1, 1, 1)
                maker.bias *= factor
            for reader in readers:
                reader.weight /= factor.view(1, -1, *[1] * (reader.weight.dim() - 2))


def hard_network(spread: float, random: torch.Generator) -> nn.Module:
    """The package's digit network: the same function, its channels' ranges far apart."""
    net = trained_digit_net()
    fold_batch_norms(net)
    spread_channels(net, spread, random)
    return net


# ---- training ----


def augmented(images: Tensor, random: torch.Generator) -> Tensor:
    """Each digit [N, 1, 28, 28] turned by up to 12 degrees, zoomed by up to 12 % and moved by up to 10 %."""
    turn, zoom, right, down = (torch.rand(4, len(images), generator=random) * 2 - 1) * torch.tensor(
        [[math.radians(12)], [0.12], [0.1], [0.1]]
    )
    cos, sin = turn.cos() * (1 + zoom), turn.sin() * (1 + zoom)
    grid = F.affine_grid(
        torch.stack([cos, sin, right, -sin, cos, down], 1).view(-1, 2, 3), list(images.shape), align_corners=False
    )
    return F.grid_sample(images, grid, align_corners=False)


def train(prepared: nn.Module, teacher: nn.Module, images: Tensor, steps: int, random: torch.Generator) -> None:
    """Makes `prepared`, which computes with int8's rounding, answer as the float `teacher` does: no label is needed."""
    optimizer = torch.optim.Adam(prepared.parameters(), lr=0.0007)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.0007, total_steps=steps)
    for step in range(steps):
        x = augmented(images[torch.randint(len(images), (BATCH,), generator=random)], random)
        with torch.no_grad():
            wanted = F.softmax(teacher(x), 1)
        loss = F.kl_div(F.log_softmax(prepared(x), 1), wanted, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(steps // 5, 1) == 0 or step == steps - 1:
            print(f"step {step:4d}: loss {loss.item():.3f}", flush=True)


# ---- measuring ----


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Per cent of the digits that `model`, which takes batches of BATCH, names right."""
    with torch.no_grad():
        answers = torch.cat([model(x).argmax(1) for x in images.split(BATCH)])
    return 100.0 * float((answers == labels).float().mean())


def on_the_dna(quantized: nn.Module, example: Tensor, folder: Path) -> nn.Module:
    """`quantized` compiled into `folder`, and run in the accelerator's arithmetic."""
    return mera_torch.export(quantized, (example,), folder, target="InterpreterHw").get_runner()


def main() -> None:
    # After mera_torch.quant, which hides what torchao logs at its import.
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240, help="training steps")
    parser.add_argument("--spread", type=float, default=300.0, help="how far the channels' ranges are apart")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where to leave the deployments (default: nowhere)")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    random = torch.Generator().manual_seed(options.seed)
    net = hard_network(options.spread, random)
    seen, digits = calibration_digits().images, held_out_digits()
    example = seen[:BATCH]
    before = accuracy(net, digits.images, digits.labels)
    print(f"float: {before:.1f} % of {len(digits)} held-out digits")

    with TemporaryDirectory() as scratch:
        output = options.output or Path(scratch)

        quantized = mera_torch.quantize(net, example, [example], config=CONFIG, progress=False)
        ptq = accuracy(on_the_dna(quantized, example, output / "ptq"), digits.images, digits.labels)
        print(f"PTQ on InterpreterHw: {ptq:.1f} %, {before - ptq:.1f} points lost")

        exported = torch.export.export(copy.deepcopy(net), (example,)).module(check_guards=False)
        prepared = prepare_qat_pt2e(exported, MeraQuantizer(CONFIG, is_qat=True))
        train(prepared, net, seen, options.steps, random)
        trained = convert(prepared)
        qat = accuracy(on_the_dna(trained, example, output / "qat"), digits.images, digits.labels)
        print(f"QAT on InterpreterHw: {qat:.1f} %, {qat - ptq:.1f} points recovered")


if __name__ == "__main__":
    main()
