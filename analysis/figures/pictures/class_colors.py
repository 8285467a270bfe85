"""Colors of classes, those of PASCAL VOC, and their legend."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.images.segmented import VOID, SegmentedImage
from analysis.style import plain

_ROW = 0.165  # inches of a line
_ONE_COLUMN = 12  # classes that have a line each
_LETTERS = {1: 34, 2: 16}  # that fit a column, by the number of columns


def class_color(number: int) -> tuple[int, int, int]:
    """Return the color of a class, (R, G, B) bytes: every third bit of its number, the lowest as the brightest."""
    red, green, blue = (sum((number >> (3 * bit + at) & 1) << (7 - bit) for bit in range(8)) for at in range(3))
    return red, green, blue


def colored(label: np.ndarray) -> np.ndarray:
    """Return a label (H, W) uint8 in the colors of its classes, (H, W, 3) uint8."""
    return np.array([class_color(number) for number in range(256)], np.uint8)[label]


def share(number: int) -> tuple[float, float, float]:
    """Return the color of a class with shares from 0 to 1, as matplotlib takes it."""
    red, green, blue = (byte / 255 for byte in class_color(number))
    return red, green, blue


def ink(number: int) -> str:
    """Return black or white, whichever is legible on the color of a class."""
    red, green, blue = share(number)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def color_legend(images: Sequence[SegmentedImage], *, width: float) -> Figure:
    """Draw the classes that occur in images, with their colors and names."""
    numbers = sorted({0, *(number for image in images for number in image.numbers)})
    columns = 1 if len(numbers) <= _ONE_COLUMN else 2
    rows = math.ceil(len(numbers) / columns)
    height = (rows + 1.6) * _ROW
    axes = Figure(figsize=(width, height)).add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.text(0.06, 0.15, "colors of the classes", fontsize=7.5, va="center")
    for at, number in enumerate(numbers):
        column, row = divmod(at, rows)
        left, top = 0.06 + column * width / columns, (row + 1.5) * _ROW
        edge = {"edgecolor": "#8a8a8a", "linewidth": 0.4}
        axes.add_patch(Rectangle((left, top), 0.2, 0.75 * _ROW, facecolor=share(number), **edge))
        name = "not counted" if number == VOID else images[0].class_name(number)
        axes.text(left + 0.27, top + 0.37 * _ROW, plain(cut(name, _LETTERS[columns])), fontsize=7, va="center")
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def cut(name: str, letters: int) -> str:
    """Return a name that fits a place: of a long one both ends, since names may differ in either."""
    end = (letters - 3) // 3
    return name if len(name) <= letters else f"{name[: letters - 3 - end]}...{name[len(name) - end :]}"
