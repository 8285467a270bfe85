"""Surface patterns: values from 0 to 1 at surface coordinates, about 0.5 on average.

N...  any shape, the pixels at which a pattern is evaluated
u, v  surface coordinates, float64 (N...); v points down on surfaces with an up and a down
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from train.data.drawn.draws import Draws, lattice

Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]

_SOFTNESS = 0.12  # of a period: the width of the transition between stripes


def draw(draws: Draws, kinds: Sequence[str], *, period: float) -> Pattern:
    """Return a random pattern of one of the given kinds.

    Args:
        draws: Source of randomness.
        kinds: Names in `KINDS`.
        period: Approximate period of the pattern, in the unit of the coordinates.
    """
    kind, seed = draws.choice(kinds), draws.integer(0, 2**40)
    angle, period = draws.uniform(0, np.pi), period * draws.uniform(0.75, 1.4)
    cosine, sine = (1.0, 0.0) if kind in _UPRIGHT else (np.cos(angle), np.sin(angle))

    def pattern(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        along, across = (cosine * u + sine * v) / period, (cosine * v - sine * u) / period
        return KINDS[kind](along, across, seed)

    return pattern


# All functions below expect coordinates in periods.


def plain(u: np.ndarray, v: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return 0.5 everywhere."""
    return np.full(u.shape, 0.5)


def _gradient(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(0.6 * u + 6 * lattice(np.zeros(1), np.zeros(1), seed=seed)[0])


def _stripes(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    return np.clip(0.5 + np.sin(2 * np.pi * u) / (2 * np.pi * _SOFTNESS), 0, 1)


def _checks(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    return ((np.floor(2 * u) + np.floor(2 * v)) % 2).astype(np.float64)


def _spots(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    """Draw one disc per cell, each of its own size."""
    row, column = np.floor(v), np.floor(u)
    radius = 0.25 + 0.2 * lattice(row, column, seed=seed)
    return (np.hypot(u - column - 0.5, v - row - 0.5) < radius).astype(np.float64)


def _smooth_noise(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    """Interpolate a lattice of random values (value noise)."""
    row, column = np.floor(v), np.floor(u)
    y, x = v - row, u - column
    y, x = y * y * (3 - 2 * y), x * x * (3 - 2 * x)
    corner = [[lattice(row + i, column + j, seed=seed) for j in (0, 1)] for i in (0, 1)]
    top, bottom = (left + (right - left) * x for left, right in corner)
    return top + (bottom - top) * y


def _noise(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    octaves = [_smooth_noise(u * 2**k, v * 2**k, seed + k) / 2**k for k in range(3)]
    return np.clip(0.5 + 1.3 * (sum(octaves) / 1.75 - 0.5), 0, 1)


def _brick(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    """Draw courses of bricks, twice as wide as high, each in its own shade, with light mortar."""
    course = np.floor(2 * v)
    shifted = u + 0.5 * (course % 2)
    brick = np.floor(shifted)
    mortar = (2 * v - course < 0.16) | (shifted - brick < 0.08)
    return np.where(mortar, 1.0, 0.15 + 0.45 * lattice(course, brick, seed=seed))


def _grass(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    """Draw blades: noise stretched along a curved direction."""
    bent = u + 0.8 * _smooth_noise(u, v, seed + 1)
    blades = _smooth_noise(6 * bent, 0.9 * v, seed) + 0.5 * _smooth_noise(11 * bent, 1.7 * v, seed + 2)
    return np.clip(0.5 + 1.6 * (blades / 1.5 - 0.5), 0, 1)


def _weave(u: np.ndarray, v: np.ndarray, seed: int) -> np.ndarray:
    over = (np.floor(2 * u) + np.floor(2 * v)) % 2 == 0
    return 0.5 + 0.5 * np.where(over, np.cos(4 * np.pi * v), np.cos(4 * np.pi * u))


KINDS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "plain": plain,
    "gradient": _gradient,
    "stripes": _stripes,
    "checks": _checks,
    "spots": _spots,
    "noise": _noise,
    "brick": _brick,
    "grass": _grass,
    "weave": _weave,
}
_UPRIGHT = ("brick", "grass")
