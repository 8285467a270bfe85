"""What training takes of a pair: squares, mirrored or not, and values brought to 0 to 1.

All of it is a pure function of (seed, step, sample id), so that any number of ranks sees the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from train.data.drawn.draws import Draws
from train.data.images.pairs import Pair

_STREAM = 0x9A7C4


class Span(NamedTuple):
    """The values of a target: from `minimum` on, `width` of them."""

    minimum: float
    width: float  # above zero: 1 where all values are the same

    def to_unit(self, values: np.ndarray) -> np.ndarray:
        """Return values as a share of the span: float32, from 0 to 1 for those that it was made of."""
        return ((values - np.float32(self.minimum)) / np.float32(self.width)).astype(np.float32)


def min_max(target: np.ndarray, valid: np.ndarray) -> Span:
    """Return the span of a target's valid values, all channels together; 0 and 1 where none is valid.

    Args:
        target: float32 (H, W) or (H, W, C).
        valid: bool (H, W).
    """
    known = target[valid]
    if not known.size:
        return Span(0.0, 1.0)
    minimum, maximum = float(known.min()), float(known.max())
    return Span(minimum, maximum - minimum if maximum > minimum else 1.0)


def patch(pair: Pair, *, crop: int | None, flips: bool, seed: int, step: int, sample_id: int) -> Pair:
    """Return a random square of a pair, perhaps mirrored left to right.

    Args:
        pair: the whole images.
        crop: the square's side; null: everything.
        flips: whether to mirror half of the samples.
        seed: of the run's samples.
        step: the optimizer step that the sample is for, from 1.
        sample_id: the pair's number.

    Raises:
        ValueError: The pair is smaller than the square.
    """
    draws = Draws(_STREAM, seed, step, sample_id)
    top, left = random_corner(pair.valid.shape, crop, draws)
    height, width = (crop, crop) if crop is not None else pair.valid.shape
    mirrored = draws.uniform(0, 1) < 0.5 and flips
    columns = slice(left, left + width)

    def cut(image: np.ndarray) -> np.ndarray:
        square = image[top : top + height, columns]
        return np.ascontiguousarray(square[:, ::-1] if mirrored else square)

    return pair._replace(guidance=cut(pair.guidance), target=cut(pair.target), valid=cut(pair.valid))


def random_corner(size: tuple[int, ...], crop: int | None, draws: Draws) -> tuple[int, int]:
    """Return the top and left of a square that lies within an image; 0, 0 where there is no square.

    Raises:
        ValueError: The image is smaller than the square.
    """
    if crop is None:
        return 0, 0
    if crop > min(size[:2]):
        raise ValueError(f"no square of {crop} pixels fits into an image of {size[0]} x {size[1]}; use a smaller crop")
    return draws.integer(0, size[0] - crop), draws.integer(0, size[1] - crop)
