"""Training patches: random crops and flips of image pairs, and normalization to 0 to 1.

Everything is a pure function of (seed, step, sample id), hence independent of the number of ranks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from train.data.drawn.draws import Draws
from train.data.images.pairs import Pair

_STREAM = 0x9A7C4


class Span(NamedTuple):
    """The value range of a target: `minimum` to `minimum + width`."""

    minimum: float
    width: float  # positive; 1 if all values are equal

    def to_unit(self, values: np.ndarray) -> np.ndarray:
        """Map values linearly so that the span becomes 0 to 1; float32."""
        return ((values - np.float32(self.minimum)) / np.float32(self.width)).astype(np.float32)


def min_max(target: np.ndarray, valid: np.ndarray) -> Span:
    """Return the span of a target's valid values, all channels together; 0 to 1 if there are none.

    Args:
        target: float32 (H, W) or (H, W, C).
        valid: bool (H, W).
    """
    values = target[valid]
    if not values.size:
        return Span(0.0, 1.0)
    minimum, maximum = float(values.min()), float(values.max())
    return Span(minimum, maximum - minimum if maximum > minimum else 1.0)


def patch(pair: Pair, *, crop: int | None, flips: bool, seed: int, step: int, sample_id: int) -> Pair:
    """Return a random square crop of a pair, flipped left to right at random.

    Args:
        pair: The whole images.
        crop: Side of the square; None for the whole images.
        flips: Whether to flip half of the samples.
        seed: Seed of the run's samples.
        step: The optimizer step that uses the sample, from 1.
        sample_id: Index of the pair.

    Raises:
        ValueError: The pair is smaller than the crop.
    """
    draws = Draws(_STREAM, seed, step, sample_id)
    top, left = random_corner(pair.valid.shape, crop, draws)
    height, width = (crop, crop) if crop is not None else pair.valid.shape
    flipped = draws.uniform(0, 1) < 0.5 and flips
    columns = slice(left, left + width)

    def cut(image: np.ndarray) -> np.ndarray:
        square = image[top : top + height, columns]
        return np.ascontiguousarray(square[:, ::-1] if flipped else square)

    return pair._replace(guidance=cut(pair.guidance), target=cut(pair.target), valid=cut(pair.valid))


def random_corner(size: tuple[int, ...], crop: int | None, draws: Draws) -> tuple[int, int]:
    """Return top and left of a random square within an image; 0, 0 if `crop` is None.

    Raises:
        ValueError: The image is smaller than the square.
    """
    if crop is None:
        return 0, 0
    if crop > min(size[:2]):
        raise ValueError(
            f"a crop of {crop} pixels does not fit into an image of {size[0]} x {size[1]}; use a smaller one"
        )
    return draws.integer(0, size[0] - crop), draws.integer(0, size[1] - crop)
