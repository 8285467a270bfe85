"""Cross-modality restoration: noise is removed from an image of one modality, guided by one of another.

Kim, Ponce and Ham (IJCV 2021) apply a filter that was trained to denoise depth to pairs of color and near infrared, and
of photos with and without flash, and show the results. Here noise is added to a clean image, so that the truth is
known. Scores are peak signal-to-noise ratios over the whole image and along its edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from train.config.tasks.joint_filter import CrossModalityRestorationConfig
from train.data.images.baselines import baselines, denoising
from train.data.images.pairs import Pair, Pairs
from train.data.split import Split
from train.tasks.joint_filter.edges import have_ratios, ratios
from train.tasks.joint_filter.examples import Example, Noise, noisy_depth
from train.tasks.joint_filter.image_batch import Images
from train.tasks.joint_filter.joint_filtering import JointFiltering
from train.tasks.task import ModelCard


class CrossModalityRestoration(JointFiltering[CrossModalityRestorationConfig]):
    """The task `cross_modality_restoration`: trained on noisy depth with color, evaluated on two modalities.

    Validation targets are color, filtered channel by channel, or maps of one channel, such as near infrared.
    """

    score_names = ("psnr", "edge_psnr")  # in dB
    methods = ("input", "joint_bilateral", "guided_filter")  # input: unfiltered

    def _training_example(self, pair: Pair, noise: Noise) -> Example:
        return noisy_depth(pair, noise)

    def _validation_example(self, pair: Pair, noise: Noise) -> Example:
        """Return an image with noise, both relative to the range of the image's values, which is the peak of ratios."""
        return noisy_depth(pair, noise)._replace(units=1.0)

    def _other_outputs(self, example: Example, noise: Noise) -> Mapping[str, np.ndarray]:
        pair, filters = example.pair, denoising(noise.deviation)
        return {"input": example.image, **baselines(pair.guidance, example.image, pair.valid, filters)}

    def _scores(self, output: Tensor, image: Images, units: Tensor) -> Tensor:
        return ratios(output, image.truth, self._inside(image.valid))

    def _judged(self, image: Images) -> Tensor:
        """Return which ratios an image has: one without edges has none along them."""
        return have_ratios(image.truth, self._inside(image.valid))

    @property
    def _other_noise(self) -> tuple[float, ...]:
        return self.config.other_noise

    def metric_unit(self, name: str) -> str | None:
        """Return the unit of a ratio."""
        return "dB" if name.endswith("psnr") else None

    def _channel_faults(self, split: Split, pairs: Pairs) -> Iterator[str]:
        """Take targets of one or three channels in validation."""
        return super()._channel_faults(split, pairs) if split == "training" else iter(())

    @property
    def _invalid(self) -> Literal["none"]:
        """No pixel is missing when the filter is used: zero is black."""
        return "none"

    def card(self) -> ModelCard:
        """Return the model card of an exported filter."""
        noise = self.config.data.noise
        return self._card(
            purpose=f"remove noise with a standard deviation of {noise:g} of the range from depth maps. It also "
            "removes it from an image of one modality (near infrared, a photo without flash) that shows the same view "
            "as a guidance of another (color, a photo with flash). More noise than that it leaves in part, and with "
            "less it blurs.",
            usage='clean = model.filter(Image.open("guidance.png"), Image.open("noisy.png"))',
        )
