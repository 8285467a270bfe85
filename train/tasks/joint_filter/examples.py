"""Examples of the filter tasks: a pair with the network's input, made from the target or real, and noise in it.

H, W height and width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from train.config.tasks.joint_filter import DepthDataConfig
from train.data.drawn.draws import Draws
from train.data.images.pair_folder import input_scale
from train.data.images.pairs import Pair, Pairs
from train.data.images.patches import Span, min_max
from train.data.images.resize import degrade, upsample


class Noise(NamedTuple):
    """Normal noise, as a pure function of its keys."""

    deviation: float
    keys: tuple[int, ...]

    def added(self, image: np.ndarray) -> np.ndarray:
        """Return an image with noise, float32."""
        if not self.deviation:
            return image
        return (image + Draws(*self.keys).normal(image.shape) * self.deviation).astype(np.float32)


class Example(NamedTuple):
    """What a task is trained on or judged by.

    Args:
        pair: The images; its target is the truth, from 0 to 1 where it is valid.
        image: Input of the network, the truth's shape; finite.
        units: Units of an error of 1.0.
    """

    pair: Pair
    image: np.ndarray
    units: float = 1.0

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of a batch's images."""
        pair = self.pair
        return {"guidance": pair.guidance, "input": self.image, "truth": pair.target, "valid": pair.valid}


def small_depth(pair: Pair, noise: Noise, data: DepthDataConfig) -> Example:
    """Return depth, normalized by its own valid values, with an input of low resolution that is upsampled again."""
    pair, span = normalized(pair)
    return Example(pair, upsampled_input(pair, noise, data), span.width * pair.units_per_value)


def noisy_depth(pair: Pair, noise: Noise) -> Example:
    """Return depth, normalized by its own valid values, with a noisy input of full resolution."""
    pair, span = normalized(pair)
    clean = pair.target if pair.input is None else pair.input
    return Example(pair, noise.added(clean), span.width * pair.units_per_value)


def normalized(pair: Pair) -> tuple[Pair, Span]:
    """Return a pair whose target has valid values from 0 to 1 and zeros elsewhere; a real input in the same units."""
    span = min_max(pair.target, pair.valid)
    target = np.where(pair.valid[..., None], span.to_unit(pair.target), np.float32(0))
    return pair._replace(target=target, input=None if pair.input is None else span.to_unit(pair.input)), span


def upsampled_input(pair: Pair, noise: Noise, data: DepthDataConfig) -> np.ndarray:
    """Return the real input of a pair, or the target made smaller by `scale`, with noise and at full size again."""
    if pair.input is not None:
        return upsample(noise.added(pair.input), pair.target.shape[:2])
    return degrade(pair.target, pair.valid, scale=data.scale, mode=data.downsampling, disturbed=noise.added)


def scale_faults(pairs: Pairs, scale: int, *, section: str) -> Iterator[str]:
    """Yield a fault if pairs are too small to be made smaller by `scale`."""
    made = [i for i in range(len(pairs)) if pairs.input_size(i) is None]
    smallest = min(made, key=lambda i: min(pairs.size(i)), default=None)
    if smallest is not None and min(pairs.size(smallest)) < scale:
        height, width = pairs.size(smallest)
        yield (
            f"task.data.scale: {scale} is too large for {pairs.name(smallest)} ({height} x {width} pixels) in "
            f"{section}; write {min(height, width)} or less, or use larger images"
        )


def input_faults(pairs: Pairs, scale: int, *, section: str, remedy: str) -> Iterator[str]:
    """Yield a fault if a real input has another scale than the task's.

    Args:
        pairs: The pairs.
        scale: Factor by which the inputs of the task are smaller than the target.
        section: Path of the pairs in the configuration.
        remedy: What to write instead.
    """
    for i in range(len(pairs)):
        small, size = pairs.input_size(i), pairs.size(i)
        if small is not None and input_scale(size, small) != scale:
            yield (
                f"{section}: the input of {pairs.name(i)} has {small[0]} x {small[1]} pixels, 1 / "
                f"{input_scale(size, small)} of the target's {size[0]} x {size[1]} and not 1 / {scale}; {remedy}"
            )
            return
