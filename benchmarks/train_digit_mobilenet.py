"""Trains the benchmarks' digit MobileNetV2 as tools/train_digits.py trains the digit CNN, and writes its weights.

    python benchmarks/train_digit_mobilenet.py [--epochs 12] [--threads 2]

Data: the zoo's 8,000 training digits. Deterministic for one version of torch on one kind of CPU; takes a few minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from quantization.digit_mobilenet import WEIGHTS, DigitMobileNetV2
from safetensors.torch import save_file

from mera_torch.zoo_models import zoo_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from train_digits import accuracy, train  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    start = time.monotonic()
    digits, held_out = zoo_digits()
    net = train(digits, options.epochs, DigitMobileNetV2)
    save_file({name: value for name, value in net.state_dict().items() if "num_batches" not in name}, WEIGHTS)
    print(f"{accuracy(net, held_out):.2%} of {len(held_out)} digits right, after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
