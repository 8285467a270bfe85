"""Upsampling of saliency maps: a filter trained to upsample depth is applied to masks, unchanged.

Kim, Ponce and Ham (IJCV 2021) upsample saliency maps by 8 with the network that was trained on depth. Here the maps are
masks made smaller, so that the truth is known. Scores are the mean absolute error and the maximal F-measure.

T thresholds of the F-measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from train.config.tasks.joint_filter import SaliencyUpsamplingConfig
from train.data.images.baselines import baselines, mask_upsampling
from train.data.images.pairs import Pair
from train.tasks.joint_filter.examples import Example, Noise, upsampled_input
from train.tasks.joint_filter.image_batch import Images
from train.tasks.joint_filter.joint_filtering import noise_in_words
from train.tasks.joint_filter.upsampling import Upsampling
from train.tasks.task import ModelCard

THRESHOLDS = 256  # of maps with values from 0 to 255
BETA_SQUARED = 0.3  # weight of precision, as in Achanta et al., Frequency-tuned salient region detection, CVPR 2009
_PRECISIONS = tuple(f"precision_{t}" for t in range(THRESHOLDS))
_RECALLS = tuple(f"recall_{t}" for t in range(THRESHOLDS))


class SaliencyUpsampling(Upsampling[SaliencyUpsamplingConfig]):
    """The task `saliency_upsampling`: trained on depth with color, evaluated on masks of 0 and 1.

    The maximal F-measure is that of precision and recall averaged over images at each threshold, so these are the
    scores of an image. An image without anything salient has neither.
    """

    score_names = ("mae", *_PRECISIONS, *_RECALLS)

    def _validation_example(self, pair: Pair, noise: Noise) -> Example:
        """Return a mask; a real input is a map of the mask's values, of which the largest is 1."""
        data = self.config.data
        salient = (pair.target > data.salient_above).astype(np.float32)
        if pair.input is not None:
            largest = max(float(pair.target.max()), float(pair.input.max())) or 1.0
            pair = pair._replace(input=(pair.input / np.float32(largest)).astype(np.float32))
        pair = pair._replace(target=np.where(pair.valid[..., None], salient, np.float32(0)))
        return Example(pair, upsampled_input(pair, noise, data))

    def _other_outputs(self, example: Example, noise: Noise) -> Mapping[str, np.ndarray]:
        pair, filters = example.pair, mask_upsampling(self.config.data.scale)
        return {"bicubic": example.image, **baselines(pair.guidance, example.image, pair.valid, filters)}

    def _scores(self, output: Tensor, image: Images, units: Tensor) -> Tensor:
        """Return mean absolute error, precisions and recalls, (1 + 2 T,); outputs beyond 0 to 1 are clipped."""
        inside = self._inside(image.valid)
        found, truth = output.float().clamp(0, 1)[inside], image.truth[inside]
        error = (found - truth).abs().sum() / inside.sum().clamp(min=1)
        return torch.cat([error[None], *precision_and_recall(found, truth > 0.5)])

    def _judged(self, image: Images) -> Tensor:
        """Return which scores an image has: one without anything salient has no precision and no recall."""
        inside = self._inside(image.valid)
        is_salient = (image.truth[inside] > 0.5).any().float()
        return torch.cat([inside.any().float()[None], is_salient.expand(2 * THRESHOLDS)])

    def _metrics(self, scores: dict[str, float], *, label: str | None) -> dict[str, float]:
        """Return the maximal F-measure instead of the precisions and recalls that it follows from."""
        metrics = {name: value for name, value in scores.items() if name in ("loss", "mae")}
        if _PRECISIONS[0] in scores:
            precision, recall = (torch.tensor([scores[name] for name in names]) for names in (_PRECISIONS, _RECALLS))
            metrics["f_measure"] = float(f_measure(precision, recall).max())
        return metrics

    @property
    def _invalid(self) -> Literal["none"]:
        """No pixel is missing when the filter is used: zero is the background of a map."""
        return "none"

    def card(self) -> ModelCard:
        """Return the model card of an exported filter."""
        data = self.config.data
        return self._card(
            purpose=f"sharpen depth maps downsampled by a factor of {data.scale} ({data.downsampling}), guided by the "
            "color image, and used for maps of what is salient in it, which it has not seen in training. "
            f"{noise_in_words(data.noise)}",
            usage='sharp = model.filter(Image.open("photo.jpg"), Image.open("small_map.png"))',
        )


def precision_and_recall(found: Tensor, salient: Tensor) -> tuple[Tensor, Tensor]:
    """Return precision and recall of a map at each threshold t: a pixel is found where its value of 0 to 255 is >= t.

    Args:
        found: Values from 0 to 1 of N pixels, (N,).
        salient: Whether they are salient, (N,) bool.

    Returns:
        (T,) fp32 each; 0 where nothing is found, or nothing is salient.
    """
    levels = (found * (THRESHOLDS - 1)).round().long()
    hits, all_found = (_at_least(levels[pixels]) for pixels in (salient, slice(None)))
    return (hits / all_found.clamp(min=1)).float(), (hits / salient.sum().clamp(min=1)).float()


def _at_least(levels: Tensor) -> Tensor:
    """Return how many levels reach each threshold, (T,) fp64."""
    counts = torch.bincount(levels, minlength=THRESHOLDS).double()
    return counts.flip(0).cumsum(0).flip(0)


def f_measure(precision: Tensor, recall: Tensor) -> Tensor:
    """Return the F-measure, 0 where precision and recall are 0."""
    weighted = BETA_SQUARED * precision + recall
    return (1 + BETA_SQUARED) * precision * recall / weighted.clamp(min=1e-12)
