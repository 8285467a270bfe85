"""Closed forms for a run that trains a joint image filter on score maps: as for images, once for each class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from launch.plan.case import FLOAT, Case
from launch.plan.image_filter import FilterWorkload, ImageSize
from launch.plan.segmentation import image_size, num_objects
from train.config.tasks.score_upsampling import ScoreUpsamplingConfig

_TARGET = 2  # fp32 elements of a pixel's class, which is kept as int64
_VALID = 0.25  # of a map's pixel: a byte that other filters keep, and the cross-entropy does not


@dataclass(frozen=True)
class ScoreFilterWorkload(FilterWorkload):
    """A joint image filter and the score maps of images, each of which is filtered by itself."""

    task: ScoreUpsamplingConfig  # type: ignore[assignment]

    @cached_property
    def size(self) -> ImageSize:
        """Size of the training images.

        Raises:
            ConfigError: Only the images themselves know it.
        """
        return image_size(self.task)

    @cached_property
    def maps(self) -> int:
        """Score maps of an image, the background's included; assumed where only the data know it."""
        return num_objects(self.task) + 1

    @property
    def samples_in_words(self) -> str:
        """What the samples are."""
        return f"{super().samples_in_words}, {self.maps} score maps each"

    @property
    def flops_per_sample(self) -> float:
        """Operations of a training step per sample."""
        return self.maps * super().flops_per_sample

    def count_lines(self) -> Iterator[str]:
        """Yield parameters by group and operations."""
        yield from super().count_lines()
        yield f"{'score maps per image':30}{self.maps:>18,}"

    def activation_bytes(self, case: Case) -> float:
        """Return the bytes that the forward pass saves."""
        of_loss = self._pixels * (_TARGET - self.maps * _VALID) + 1  # by what the scores were divided
        more = case.micro_batch_size * of_loss + 1  # how many pixels count
        return super().activation_bytes(self._by_map(case)) + FLOAT * more

    def backward_bytes(self, case: Case) -> float:
        """Return the bytes of the backward pass at its peak, less what it has freed by then."""
        return super().backward_bytes(self._by_map(case))

    def _by_map(self, case: Case) -> Case:
        return replace(case, micro_batch_size=case.micro_batch_size * self.maps)
