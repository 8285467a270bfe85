"""Depth upsampling guided by color: Kim, Ponce and Ham, Deformable kernel networks, IJCV 2021, section 4."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from train.config.tasks.joint_filter import DepthUpsamplingConfig
from train.data.images.baselines import baselines, depth_upsampling
from train.data.images.pairs import Pair
from train.tasks.joint_filter.examples import Example, Noise, small_depth
from train.tasks.joint_filter.exhibits import averaged, shifted
from train.tasks.joint_filter.image_batch import Images
from train.tasks.joint_filter.joint_filtering import noise_in_words
from train.tasks.joint_filter.upsampling import Upsampling
from train.tasks.task import ModelCard

SHIFT = 16  # pixels, along both axes: beyond the reach of a window of 15


class DepthUpsampling(Upsampling[DepthUpsamplingConfig]):
    """The task `depth_upsampling`: sharpen a low-resolution depth map that was upsampled to full size.

    Each map is normalized to [0, 1] by its own valid values; errors are reported in its original values times
    `units_per_value`.
    """

    score_names = ("rmse",)

    def _validation_example(self, pair: Pair, noise: Noise) -> Example:
        return small_depth(pair, noise, self.config.data)

    def _other_outputs(self, example: Example, noise: Noise) -> Mapping[str, np.ndarray]:
        pair, filters = example.pair, depth_upsampling(self.config.data.scale)
        return {"bicubic": example.image, **baselines(pair.guidance, example.image, pair.valid, filters)}

    def _scores(self, output: Tensor, image: Images, units: Tensor) -> Tensor:
        """Return the root mean squared error inside the border, (1,), in units."""
        valid = self._inside(image.valid)
        squares = torch.where(valid, output.float() - image.truth, 0.0).double().square().sum()
        return ((squares / valid.sum().clamp(min=1)).sqrt().float() * units)[None]

    @property
    def _other_guidances(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """An uninformative guidance and a misleading one, if they are asked for."""
        if not self.config.other_guidance:
            return {}
        return {"constant": averaged, "shifted": partial(shifted, pixels=SHIFT)}

    def _metrics(self, scores: dict[str, float], *, label: str | None) -> dict[str, float]:
        """Leave out the mean error of sources in different units."""
        if label is None and not self._has_one_unit:
            return {name: value for name, value in scores.items() if name != "rmse"}
        return scores

    def metric_unit(self, name: str) -> str | None:
        """Return the unit of an error."""
        return self._unit_of_error(name) if name.endswith("rmse") else None

    def card(self) -> ModelCard:
        """Return the model card of an exported filter."""
        data = self.config.data
        return self._card(
            form=f", {'residual' if self.config.model.residual else 'direct'} form",
            purpose=f"sharpen depth maps downsampled by a factor of {data.scale} ({data.downsampling}), guided by the "
            f"color image. {noise_in_words(data.noise)}",
            usage='sharp = model.filter(Image.open("guidance.png"), Image.open("target.png"))',
        )
