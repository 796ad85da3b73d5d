"""Something for the examples to run: digits/, a deployment of the demo's network, and digit.pgm, a picture."""

from pathlib import Path

import mera_torch
from mera_torch.digits import calibration_digits, held_out_digits, trained_digit_net

digits = held_out_digits()
example = digits.images[:1]
calibration = [(image,) for image in calibration_digits().images.split(1)]
quantized = mera_torch.quantize(trained_digit_net(), (example,), calibration)
mera_torch.export(quantized, (example,), "digits", platform="SAKURA_1", overwrite=True)
pixels = (example * 255).round().byte().numpy().tobytes()
Path("digit.pgm").write_bytes(b"P5 28 28 255\n" + pixels)
print(f"wrote digits/ and digit.pgm, a {int(digits.labels[0])}")
