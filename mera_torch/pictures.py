"""Pictures in a terminal: two pixels in each character cell, by half blocks."""

from __future__ import annotations

import numpy as np
from rich.color import Color
from rich.style import Style
from rich.text import Text

UPPER_HALF = "▀"
# Without colour, a cell shows which of its two grey pixels are bright, or how bright the mean of two coloured ones is.
MONOCHROME = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
SHADES = " ░▒▓█"


def picture(pixels: np.ndarray, *, colour: bool = True) -> Text:
    """uint8 [H, W] or [H, W, 3] -> ceil(H / 2) lines of W cells. colour = False: for plain terminals."""
    rgb = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    rgb = np.pad(rgb, ((0, len(rgb) % 2), (0, 0), (0, 0)))
    grey = rgb.mean(axis=2)
    text = Text(no_wrap=True)
    for row in range(0, len(rgb), 2):
        for column in range(rgb.shape[1]):
            if colour:
                upper, lower = (Color.from_rgb(*map(int, rgb[row + half, column])) for half in (0, 1))
                text.append(UPPER_HALF, Style(color=upper, bgcolor=lower))
            elif pixels.ndim == 2:
                text.append(MONOCHROME[bool(grey[row, column] >= 128), bool(grey[row + 1, column] >= 128)])
            else:
                text.append(SHADES[int(grey[row : row + 2, column].mean() * len(SHADES) / 256)])
        text.append("\n")
    text.right_crop(1)
    return text


def shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3] averaged over blocks to about side x side; H and W multiples of side."""
    height, width, colours = pixels.shape
    blocks = pixels.reshape(side, height // side, side, width // side, colours)
    averaged: np.ndarray = blocks.mean(axis=(1, 3)).round().astype(np.uint8)
    return averaged
