"""Pictures in a terminal."""

from __future__ import annotations

import numpy as np

from mera_torch.pictures import picture, shrunk


def test_two_pixels_in_a_cell() -> None:
    pixels = np.array([[255, 0, 255, 0], [255, 0, 0, 255], [0, 0, 255, 0]], np.uint8)
    assert picture(pixels, colour=False).plain == "█ ▀▄\n  ▀ "


def test_colours_of_both_halves() -> None:
    pixels = np.zeros((2, 1, 3), np.uint8)
    pixels[0, 0], pixels[1, 0] = (10, 20, 30), (40, 50, 60)
    text = picture(pixels)
    assert text.plain == "▀"
    assert str(text.spans[0].style) == "#0a141e on #28323c"


def test_shrunk_averages_blocks() -> None:
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    assert shrunk(pixels, 2).tolist() == pixels.reshape(2, 2, 2, 2, 3).mean((1, 3)).round().tolist()
