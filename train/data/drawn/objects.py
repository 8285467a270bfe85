"""Procedural scenes of objects with exact masks and boxes, as a pure function of an index and a size.

Disks, triangles, diamonds and crosses, each class in hues of its own and with a texture, lie on a gray textured ground
and may cover each other. They fill their boxes by 78, 50, 50 and 56 percent, so that a filled box is a poor mask.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from train.data.drawn import patterns
from train.data.drawn.draws import Draws

VERSION = 1  # of the images; increment it if they change, as that would silently change training and results

_STREAM = 0x0B1EC7
_GROUND = ("noise", "grass", "checks", "stripes", "gradient")
_PAINT = ("plain", "spots", "stripes", "weave", "noise")
_HUE_SPREAD = 0.06
MOST_OBJECTS = 4

_SMALLEST_VISIBLE = 0.35  # share of an object that must stay visible
_NOISE = 0.02  # standard deviation, relative to 1


def _disk(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x * x + y * y < 1


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.abs(x) < (y + 1) / 2) & (np.abs(y) < 1)


def _diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(x) + np.abs(y) < 1


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    bar = 1 / 3
    return ((np.abs(x) < bar) & (np.abs(y) < 1)) | ((np.abs(y) < bar) & (np.abs(x) < 1))


# Inside of each shape in coordinates from -1 to 1 across its box, and its hue.
SHAPES: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], float]] = {
    "disk": (_disk, 0.02),
    "triangle": (_triangle, 0.30),
    "diamond": (_diamond, 0.58),
    "cross": (_cross, 0.82),
}
CLASSES = tuple(SHAPES)


class Objects(NamedTuple):
    """A scene with its annotations.

    Args:
        image: uint8 (H, W, 3), red, green and blue.
        boxes: int64 (K, 4), of what is visible of each object: x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
        classes: int64 (K,), from 1, in the order of CLASSES.
        mask: uint8 (H, W), a class at each pixel, 0 where there is none.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    mask: np.ndarray


def objects(index: int, size: tuple[int, int]) -> Objects:
    """Return one scene with one to four objects.

    Args:
        index: Number of the scene, from 0.
        size: Height and width.
    """
    draws = Draws(_STREAM, index, *size)
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    tone = draws.uniform(0.35, 0.65)
    ground = patterns.draw(draws, _GROUND, period=min(size) * draws.uniform(0.08, 0.25))(columns, rows)
    image = np.repeat((tone + 0.35 * (ground - 0.5))[:, :, None], 3, axis=2)
    instances = np.zeros(size, np.int64)  # number of the object at each pixel, from 1
    kinds: list[int] = []
    for _ in range(draws.integer(1, MOST_OBJECTS)):
        inside, kind = _place(draws, rows, columns)
        covered = np.where(inside, len(kinds) + 1, instances)
        if _hidden(covered, instances, len(kinds)):
            continue
        instances = covered
        kinds.append(kind)
        image[inside] = _painted(draws, kind, rows[inside], columns[inside], min(size))
    image += _NOISE * draws.normal(image.shape)
    boxes = np.array([_box(instances == number + 1) for number in range(len(kinds))], np.int64).reshape(-1, 4)
    classes = np.array(kinds, np.int64)
    mask = np.concatenate(([0], classes))[instances].astype(np.uint8)
    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    return Objects(pixels, boxes, classes, mask)


def _place(draws: Draws, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the inside of a shape at a random place, and its class from 1."""
    height, width = rows.shape
    kind = draws.integer(1, len(SHAPES))
    half = min(height, width) * draws.uniform(0.13, 0.26)
    half_width, half_height = half * draws.uniform(0.8, 1.25), half * draws.uniform(0.8, 1.25)
    x = draws.uniform(half_width, width - half_width)
    y = draws.uniform(half_height, height - half_height)
    shape = SHAPES[CLASSES[kind - 1]][0]
    return shape((columns - x) / half_width, (rows - y) / half_height), kind


def _hidden(covered: np.ndarray, before: np.ndarray, count: int) -> bool:
    """Return whether a new object hides most of an earlier one."""
    left = np.bincount(covered.ravel(), minlength=count + 2)[1 : count + 1]
    had = np.bincount(before.ravel(), minlength=count + 2)[1 : count + 1]
    return bool((left < _SMALLEST_VISIBLE * had).any())


def _painted(draws: Draws, kind: int, rows: np.ndarray, columns: np.ndarray, side: int) -> np.ndarray:
    """Return the colors (N, 3) of an object's pixels."""
    hue = SHAPES[CLASSES[kind - 1]][1] + draws.uniform(-_HUE_SPREAD, _HUE_SPREAD)
    saturation, value = draws.uniform(0.45, 0.9), draws.uniform(0.55, 0.95)
    color = np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))
    texture = patterns.draw(draws, _PAINT, period=side * draws.uniform(0.05, 0.12))(columns, rows)
    return color * (0.75 + 0.5 * texture[:, None])


def _box(inside: np.ndarray) -> tuple[int, int, int, int]:
    """Return the box of an object's visible pixels: x0, y0, x1, y1, exclusive."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
