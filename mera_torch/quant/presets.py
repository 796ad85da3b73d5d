"""Configurations by name. The names are MERA's; what each one sets, and why, is stated here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Fields of :class:`~mera_torch.quant.QuantConfig` that differ from the defaults, and why they do."""

    reason: str
    options: dict[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "DEFAULT": Preset(
        "The defaults: int8 throughout, ranges that change the outputs least, affine activations, symmetric weights "
        "per channel, corrected biases."
    ),
    "DNA_SAKURA_I": Preset(
        "For SAKURA-I, which runs convolutional networks in int8 alone: the defaults with channels equalized, since "
        "there is no wider type to fall back to.",
        {"equalize": True},
    ),
    "DNA_SAKURA_II": Preset(
        "For SAKURA-II, which is meant for transformers as well: as DNA_SAKURA_I, and outliers of activations moved "
        "into the weights that read them, as far as the error is least.",
        {"equalize": True, "smoothquant": "auto"},
    ),
    "ALT": Preset(
        "Another choice wherever the defaults made one that some networks dislike: ranges by percentile, weights "
        "clipped by least squared error, nothing transformed. To try when DEFAULT loses accuracy.",
        {"activation_observer": "percentile", "weight_observer": "mse"},
    ),
    "FAST": Preset(
        "The least work: the extremes seen, no correction and no transform. For a first look at a network.",
        {"activation_observer": "minmax", "correct_bias": False, "split_heads": False},
    ),
    "ACCURATE": Preset(
        "Everything that may help without looking at labels: equalized channels, clipped weights, weights rounded by "
        "their layers' outputs, corrected biases. Takes minutes; whether it helps a network is for `mera quality` to "
        "say.",
        {"equalize": True, "weight_observer": "mse", "adaround": True},
    ),
}


def describe() -> str:
    """The presets as a Markdown table."""
    rows = ["| preset | sets | why |", "|---|---|---|"]
    for name, preset in PRESETS.items():
        held = ", ".join(f"`{key}={value!r}`" for key, value in preset.options.items())
        rows.append(f"| `{name}` | {held or 'nothing'} | {preset.reason} |")
    return "\n".join(rows) + "\n"
