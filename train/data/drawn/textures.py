"""Procedural pairs of textured and clean images, for evaluating texture removal.

The clean image is a cartoon: regions with sharp edges and slowly changing colors. The textured one adds brick, grass,
stripes or noise to most regions, which moves no edge and barely changes the mean of a region.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from train.data.drawn import patterns
from train.data.drawn.draws import Draws

VERSION = 1  # of the images; increment it if they change, as that would silently change results

_STREAM = 0x7E2
_KINDS = ("brick", "grass", "stripes", "noise", "checks", "weave")
_BARE = 0.15  # of the regions have no texture
_STRENGTH = (0.12, 0.3)  # range from the darkest to the lightest point of a texture, relative to 1
_PERIOD = (0.03, 0.06)  # of the image's height

Region = Callable[[np.ndarray, np.ndarray], np.ndarray]


def textured_image(index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return one image.

    Args:
        index: Number of the image, from 0.
        size: Height and width; larger sizes show the same image at a higher resolution; wider ones extend it to
            the right.

    Returns:
        The textured and the clean image, RGB float32 (H, W, 3) from 0 to 1 each.
    """
    draws = Draws(_STREAM, index)
    y, x = (np.mgrid[: size[0], : size[1]] + 0.5) / size[0]
    clean, texture = np.empty((*size, 3)), np.empty((*size, 1))
    for region in [_whole_image(draws), *_waves(draws), *_shapes(draws)]:
        inside = region(x, y)
        clean[inside], texture[inside] = _painted(draws, x[inside], y[inside])
    return np.clip(clean + texture, 0, 1).astype(np.float32), clean.astype(np.float32)


def _painted(draws: Draws, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the color of a region's N pixels, (N, 3), and the texture to add, (N, 1) with mean zero."""
    color = 0.25 + 0.5 * draws.unit((3,))
    slope = 0.16 * (2 * draws.unit((2, 3)) - 1)
    colors = np.clip(color + (x - 0.6)[:, None] * slope[0] + (y - 0.5)[:, None] * slope[1], 0.15, 0.85)
    pattern = patterns.draw(draws, _KINDS, period=draws.uniform(*_PERIOD))
    strength = 0.0 if draws.uniform(0, 1) < _BARE else draws.uniform(*_STRENGTH)
    values = pattern(x, y)
    return colors, strength * (values - (values.mean() if values.size else 0))[:, None]


# ------------------------------------------------------------------------------------------------------- regions


def _whole_image(draws: Draws) -> Region:
    return lambda x, y: np.ones(x.shape, bool)


def _waves(draws: Draws) -> list[Region]:
    return [_wave(draws) for _ in range(draws.integer(0, 2))]


def _shapes(draws: Draws) -> list[Region]:
    return [draws.choice([_ellipse, _rectangle])(draws) for _ in range(draws.integer(4, 8))]


def _ellipse(draws: Draws) -> Region:
    turned, radii = _turned(draws), 0.1 + 0.22 * draws.unit((2,))
    return lambda x, y: np.hypot(*(part / radius for part, radius in zip(turned(x, y), radii, strict=True))) < 1


def _rectangle(draws: Draws) -> Region:
    turned, half = _turned(draws), 0.07 + 0.22 * draws.unit((2,))
    return lambda x, y: np.all([np.abs(part) < h for part, h in zip(turned(x, y), half, strict=True)], axis=0)


def _wave(draws: Draws) -> Region:
    """Return the region beyond a wavy line."""
    turned, height, phase = _turned(draws), draws.uniform(0.02, 0.08), draws.uniform(0, 6)

    def region(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        along, across = turned(x, y)
        return across > 0.25 + height * np.sin(7 * along + phase)

    return region


def _turned(draws: Draws) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return a transform to coordinates with a random origin and rotation."""
    left, top, angle = draws.uniform(0.1, 1.2), draws.uniform(0.1, 0.9), draws.uniform(0, 2 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    return lambda x, y: (
        cosine * (x - left) + sine * (y - top),
        cosine * (y - top) - sine * (x - left),
    )
