"""Texture removal: a filter trained to denoise depth is applied to an image that serves as its own guidance.

Kim, Ponce and Ham (IJCV 2021) report no metrics for it. Here the filtered image is compared with the clean one: peak
signal-to-noise ratio over the whole image, and along the edges of the clean image, which should be preserved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

from train.config.tasks.joint_filter import TextureRemovalConfig
from train.data.images.baselines import TEXTURE, baselines
from train.data.images.pairs import Pair, Pairs
from train.data.split import Split
from train.tasks.joint_filter.edges import have_ratios, ratios
from train.tasks.joint_filter.examples import Example, Noise, noisy_depth
from train.tasks.joint_filter.image_batch import Images
from train.tasks.joint_filter.joint_filtering import SECTIONS, JointFiltering
from train.tasks.task import ModelCard


class TextureRemoval(JointFiltering[TextureRemovalConfig]):
    """The task `texture_removal`: trained on noisy depth with color, evaluated on textured images.

    In validation batches `input` and `truth` are color (B, 3, H, W), and `guidance` is the image without added noise.
    """

    score_names = ("psnr", "edge_psnr")  # in dB
    methods = ("input", "joint_bilateral", "guided_filter")  # input: unfiltered

    def _training_example(self, pair: Pair, noise: Noise) -> Example:
        return noisy_depth(pair, noise)

    def _validation_example(self, pair: Pair, noise: Noise) -> Example:
        return Example(pair, noise.added(pair.guidance))

    def _other_outputs(self, example: Example, noise: Noise) -> Mapping[str, np.ndarray]:
        pair, times = example.pair, self.config.iterations
        filtered = baselines(pair.guidance, example.image, pair.valid, TEXTURE, iterations=times)
        return {"input": example.image, **filtered}

    def _scores(self, output: Tensor, image: Images, units: Tensor) -> Tensor:
        return ratios(output, image.truth, self._inside(image.valid))

    def _judged(self, image: Images) -> Tensor:
        """Return which ratios an image has: one without edges has none along them."""
        return have_ratios(image.truth, self._inside(image.valid))

    @property
    def _iterations(self) -> int:
        return self.config.iterations

    def metric_unit(self, name: str) -> str | None:
        """Return the unit of a ratio."""
        return "dB" if name.endswith("psnr") else None

    def card(self) -> ModelCard:
        """Return the model card of an exported filter."""
        return self._card(
            purpose=f"remove noise with a standard deviation of {self.config.data.noise:g} of the range from depth "
            f"maps. Applied to an image that is its own guidance, it removes texture.",
            usage='image = Image.open("image.png")\n'
            f"smooth = model.filter(image, image, iterations={self.config.iterations})",
        )

    def _channel_faults(self, split: Split, pairs: Pairs) -> Iterator[str]:
        if split == "training":
            yield from super()._channel_faults(split, pairs)
            return
        for i in range(len(pairs)):
            if pairs.channels(i) != 3:
                yield (
                    f"{SECTIONS[split]}: {pairs.name(i)} is not in color; use pairs of textured and clean "
                    f"images, as in {{path: procedural-textures, stop: 8}}"
                )
                return
