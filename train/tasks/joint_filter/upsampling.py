"""Common base of the tasks whose filter learns to sharpen depth that was made smaller."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from modeling.joint_filter.purpose_dkn import FilterPurpose
from train.config.tasks.joint_filter import DepthUpsamplingConfig, SaliencyUpsamplingConfig
from train.data.images.pairs import Pair, Pairs
from train.data.split import Split
from train.tasks.joint_filter.examples import Example, Noise, scale_faults, small_depth
from train.tasks.joint_filter.joint_filtering import SECTIONS, JointFiltering

Config = TypeVar("Config", DepthUpsamplingConfig, SaliencyUpsamplingConfig)


class Upsampling(JointFiltering[Config]):
    """A task that is trained on depth made smaller by `task.data.scale`."""

    methods = ("bicubic", "joint_bilateral", "guided_filter")

    def _training_example(self, pair: Pair, noise: Noise) -> Example:
        return small_depth(pair, noise, self.config.data)

    @property
    def _input_scale(self) -> int:
        return self.config.data.scale

    @property
    def _input_remedy(self) -> str:
        return "set task.data.scale, or use inputs of its scale"

    def _size_faults(self, split: Split, pairs: Pairs) -> Iterator[str]:
        yield from super()._size_faults(split, pairs)
        yield from scale_faults(pairs, self.config.data.scale, section=SECTIONS[split])

    def _purpose(self) -> FilterPurpose:
        return replace(super()._purpose(), downsampling=self.config.data.downsampling)
