"""Random numbers as a pure function of keys, independent of machine and numpy version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from train.data.order import splitmix64

T = TypeVar("T")

_MASK = (1 << 64) - 1
_TO_UNIT = 2.0**-53


class Draws:
    """A stream of random numbers; equal keys give equal streams."""

    def __init__(self, *keys: int) -> None:
        """Start the stream for a sequence of integer keys."""
        self.key = np.zeros(1, np.uint64)
        for key in keys:
            self.key = splitmix64(self.key ^ splitmix64(np.array([key & _MASK], np.uint64)))
        self._next = 0

    def unit(self, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Return numbers in [0, 1), float64 of the given shape."""
        count = int(np.prod(shape, dtype=np.int64))
        counter = np.arange(self._next, self._next + count, dtype=np.uint64)
        self._next += count
        bits = splitmix64(self.key ^ splitmix64(counter))
        return ((bits >> np.uint64(11)).astype(np.float64) * _TO_UNIT).reshape(shape)

    def uniform(self, low: float, high: float) -> float:
        """Return one number in [low, high)."""
        return low + (high - low) * float(self.unit())

    def integer(self, low: int, high: int) -> int:
        """Return one integer from `low` to `high`, inclusive."""
        return low + int(float(self.unit()) * (high - low + 1))

    def choice(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[self.integer(0, len(options) - 1)]

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return standard normal numbers, float64 of the given shape (Box and Muller 1958)."""
        radius = np.sqrt(-2 * np.log1p(-self.unit(shape)))
        return radius * np.cos(2 * np.pi * self.unit(shape))


def lattice(rows: np.ndarray, columns: np.ndarray, *, seed: int) -> np.ndarray:
    """Return one number in [0, 1) for each pair of integers, which may be negative."""
    # Rows are hashed once more than columns, else the lattice would be symmetric about its diagonal.
    keys = splitmix64(splitmix64(rows.astype(np.int64).view(np.uint64)) ^ np.uint64(seed & _MASK))
    keys = splitmix64(keys ^ splitmix64(columns.astype(np.int64).view(np.uint64)))
    return (keys >> np.uint64(11)).astype(np.float64) * _TO_UNIT
