"""Texture removal: a filter trained to denoise depth is applied to an image that serves as its own guidance.

Kim, Ponce and Ham (IJCV 2021) report no metrics for it. Here the filtered image is compared with the clean one: peak
signal-to-noise ratio over the whole image, and along the edges of the clean image, which should be preserved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.joint_filter.modeling_dkn import DKNOutput
from modeling.joint_filter.purpose_dkn import FilterPurpose
from train.config.tasks.joint_filter import TextureRemovalConfig
from train.data.drawn.draws import Draws
from train.data.images.baselines import baselines
from train.data.images.pairs import Pair, Pairs
from train.data.images.patches import min_max, patch
from train.data.split import Split
from train.tasks.image_batch import Images, images_of, training_sample, with_input
from train.tasks.joint_filtering import SECTIONS, JointFiltering, absolute_error
from train.tasks.sums import add, add_judged
from train.tasks.task import Batch, ModelCard, Sums

METHODS = ("input", "joint_bilateral", "guided_filter")  # methods to compare with; input: unfiltered
EDGE_SLOPE = 0.1  # change of brightness per pixel that counts as an edge
EDGE_REACH = 2  # pixels around an edge that count as its neighborhood
_NOISE = 0x40153  # random stream, separate from that of crops


class TextureRemoval(JointFiltering[TextureRemovalConfig]):
    """The task `texture_removal`: trained on noisy depth with color, evaluated on textured images.

    In validation batches `input` and `truth` are color (B, 3, H, W), `guidance` is the input, and `others` (B, 3, 2)
    contains psnr and edge psnr of METHODS.
    """

    metric_names = ("loss", "psnr", "edge_psnr")  # loss on colors from 0 to 1, ratios in dB

    def _training_sample(self, index: int, step: int) -> dict[str, np.ndarray]:
        data = self.config.data
        pair = self.training.read(index)
        depth = min_max(pair.target, pair.valid).to_unit(pair.target)
        depth = np.where(pair.valid[..., None], depth, np.float32(0))
        noise = Draws(_NOISE, data.seed, step, index).normal(depth.shape) * data.noise
        noisy = with_input(pair._replace(target=depth), (depth + noise).astype(np.float32))
        sample = patch(noisy, crop=data.crop, flips=data.flips, seed=data.seed, step=step, sample_id=index)
        return training_sample(sample)

    def _validation_sample(self, index: int) -> dict[str, np.ndarray]:
        pair = self.validation.read(index)
        sample = {"guidance": pair.guidance, "input": pair.guidance, "truth": pair.target, "valid": pair.valid}
        return sample | ({"others": self._baseline_ratios(index, pair)} if self.config.baselines else {})

    def _baseline_ratios(self, index: int, pair: Pair) -> np.ndarray:
        """Return both ratios of METHODS, (3, 2), computed once per pair."""
        if index not in self._baselines:
            image = pair.guidance
            outputs = {
                "input": image,
                **baselines(image, image, pair.valid, scale=None, iterations=self.config.iterations),
            }
            truth, valid = _planes(pair.target), torch.from_numpy(pair.valid)[None, None]
            self._baselines[index] = np.stack([self._ratios(_planes(outputs[name]), truth, valid) for name in METHODS])
        return self._baselines[index]

    def _ratios(self, output: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """Return psnr and edge psnr, (2,) fp32 in dB."""
        squares = (output.float() - truth).double().square().mean(dim=1, keepdim=True)
        return torch.stack([_psnr(squares[place]) for place in self._places(truth, valid)]).float()

    def _places(self, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pixels for psnr and for edge psnr, (1, 1, H, W) bool each, excluding the border."""
        border = self.config.border
        inside = valid.clone()
        if border and min(valid.shape[2:]) > 2 * border:
            inside[..., :border, :] = inside[..., -border:, :] = False
            inside[..., :border] = inside[..., -border:] = False
        return inside, inside & edges(truth)

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Return the absolute error per pixel and both ratios per image, for the filter and the baselines.

        An image without edges has no edge psnr and gets weight 0 there, for every method.
        """
        sums: Sums = {}
        judged = torch.stack([self._judged(image) for image in images_of(batch)])
        for image, counts in zip(images_of(batch), judged, strict=True):
            output, _ = self._filtered(model, image)
            channels = output.shape[1]
            add(sums, "loss", absolute_error(output, image.truth, image.valid), image.valid.sum() * channels)
            ratios = self._ratios(output, image.truth, image.valid)
            add_judged(sums, "psnr", ratios[0], counts[0])
            add_judged(sums, "edge_psnr", ratios[1], counts[1])
        for name, ratios in zip(METHODS, batch["others"].unbind(1), strict=True) if self.config.baselines else ():
            add_judged(sums, f"{name}_psnr", ratios[:, 0], judged[:, 0])
            add_judged(sums, f"{name}_edge_psnr", ratios[:, 1], judged[:, 1])
        return sums

    def _judged(self, image: Images) -> Tensor:
        """Return whether there are pixels for either ratio, (2,) fp32, 0 or 1."""
        return torch.stack([place.any() for place in self._places(image.truth, image.valid)]).float()

    def _purpose(self) -> FilterPurpose:
        return replace(super()._purpose(), noise=self.config.data.noise)

    def _filtered(self, model: nn.Module, image: Images) -> tuple[Tensor, DKNOutput]:
        """Apply the filter `iterations` times to each channel; return the image and the output of the last pass."""
        channels = image.input.shape[1]
        guidance, filtered = image.guidance.expand(channels, -1, -1, -1), image.input.transpose(0, 1)
        output = DKNOutput()
        for _ in range(self.config.iterations):
            output = model(guidance, filtered)
            filtered = output.output
        return filtered.transpose(0, 1), output

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


def edges(image: Tensor) -> Tensor:
    """Return the pixels near edges of an image (1, C, H, W): (1, 1, H, W) bool."""
    gray = image.mean(dim=1, keepdim=True)
    across, down = F.pad(gray.diff(dim=3), (0, 1)).abs(), F.pad(gray.diff(dim=2), (0, 0, 0, 1)).abs()
    steep = (torch.maximum(across, down) > EDGE_SLOPE).float()
    return F.max_pool2d(steep, 2 * EDGE_REACH + 1, stride=1, padding=EDGE_REACH) > 0


def _psnr(squares: Tensor) -> Tensor:
    """Return the ratio of a peak of 1 to the mean squared error, in dB, at most 100; 100 for no pixels."""
    mean = squares.mean() if squares.numel() else squares.sum()  # non-finite values stay non-finite
    return -10 * mean.clamp(min=1e-10).log10()


def _planes(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
