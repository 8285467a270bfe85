"""Depth upsampling guided by color: Kim, Ponce and Ham, Deformable kernel networks, IJCV 2021, section 4."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from modeling.joint_filter.modeling_dkn import DKNOutput
from modeling.joint_filter.purpose_dkn import FilterPurpose
from train.config.tasks.joint_filter import DepthUpsamplingConfig
from train.data.images.baselines import baselines
from train.data.images.pairs import Pair, Pairs
from train.data.images.patches import Span, min_max, patch
from train.data.images.resize import degrade
from train.data.split import Split
from train.tasks.exhibits import shifted
from train.tasks.image_batch import Images, images_of, training_sample, with_input
from train.tasks.joint_filtering import SECTIONS, JointFiltering, absolute_error
from train.tasks.sums import add, add_judged
from train.tasks.task import Batch, ModelCard, Sums

SHIFT = 16  # pixels, along both axes: beyond the reach of a window of 15
BASELINES = ("bicubic", "joint_bilateral", "guided_filter")


class DepthUpsampling(JointFiltering[DepthUpsamplingConfig]):
    """The task `depth_upsampling`: sharpen a low-resolution depth map that was upsampled to full size.

    Each map is normalized to [0, 1] by its own valid values; errors are reported in its original values times
    `units_per_value`. Validation batches also contain `units` (B,), the units per 1.0 of normalized depth, and
    `baselines` (B, 3), the errors of other methods.
    """

    metric_names = ("loss", "rmse")  # loss on normalized depth, error in units

    def _training_sample(self, index: int, step: int) -> dict[str, np.ndarray]:
        data = self.config.data
        pair, _ = self._normalized(self.training.read(index))
        sample = patch(
            with_input(pair, self._degraded(pair)),
            crop=data.crop,
            flips=data.flips,
            seed=data.seed,
            step=step,
            sample_id=index,
        )
        return training_sample(sample)

    def _validation_sample(self, index: int) -> dict[str, np.ndarray]:
        pair, span = self._normalized(self.validation.read(index))
        degraded = self._degraded(pair)
        units = np.float32(span.width * pair.units_per_value)
        sample = {
            "guidance": pair.guidance,
            "input": degraded,
            "truth": pair.target,
            "valid": pair.valid,
            "units": units,
        }
        return sample | (
            {"baselines": self._baseline_errors(index, pair, degraded, units)} if self.config.baselines else {}
        )

    def _normalized(self, pair: Pair) -> tuple[Pair, Span]:
        span = min_max(pair.target, pair.valid)
        return pair._replace(target=np.where(pair.valid[..., None], span.to_unit(pair.target), np.float32(0))), span

    def _degraded(self, pair: Pair) -> np.ndarray:
        return degrade(pair.target, pair.valid, scale=self.config.data.scale, mode=self.config.data.downsampling)

    def _baseline_errors(self, index: int, pair: Pair, degraded: np.ndarray, units: np.float32) -> np.ndarray:
        """Return the errors of the baselines, (3,), computed once per pair."""
        if index not in self._baselines:
            outputs = {
                "bicubic": degraded,
                **baselines(pair.guidance, degraded, pair.valid, scale=self.config.data.scale),
            }
            truth, valid = (torch.from_numpy(x).reshape(1, 1, *x.shape[:2]) for x in (pair.target, pair.valid))
            self._baselines[index] = np.array(
                [self._rmse(torch.from_numpy(outputs[name]).reshape(truth.shape), truth, valid) for name in BASELINES]
            )
        return (self._baselines[index] * units).astype(np.float32)

    def _rmse(self, output: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """Return the root mean squared error over valid pixels, excluding `border` pixels along the edges, ()."""
        output, truth, valid = (self._inside(x) for x in (output, truth, valid))
        squares = torch.where(valid, output.float() - truth, 0.0).double().square().sum()
        return (squares / valid.sum().clamp(min=1)).sqrt().float()

    def _inside(self, image: Tensor) -> Tensor:
        """Return an image (1, C, H, W) without its border, if it is large enough."""
        border = self.config.border
        inside = (slice(border, size - border) if size > 2 * border else slice(None) for size in image.shape[2:])
        return image[(..., *inside)]

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Return the absolute error per valid pixel, and the root mean squared error per image, in units.

        An image without valid pixels inside its border has no error and gets weight 0, for every method.
        """
        sums: Sums = {}
        judged = torch.stack([self._inside(image.valid).any() for image in images_of(batch)]).float()
        for image, units, counts in zip(images_of(batch), batch["units"], judged, strict=True):
            output = model(image.guidance, image.input).output
            add(sums, "loss", absolute_error(output, image.truth, image.valid), image.valid.sum())
            add_judged(sums, "rmse", self._rmse(output, image.truth, image.valid) * units, counts)
            for name, guidance in self._other_guidances(image.guidance):
                output = model(guidance, image.input).output
                rmse = self._rmse(output, image.truth, image.valid) * units
                add_judged(sums, f"{name}_guidance_rmse", rmse, counts)
        for name, errors in zip(BASELINES, batch["baselines"].unbind(1), strict=True) if self.config.baselines else ():
            add_judged(sums, f"{name}_rmse", errors, judged)
        return sums

    def _other_guidances(self, guidance: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield an uninformative guidance and a misleading one."""
        if self.config.other_guidance:
            yield "constant", guidance.mean(dim=(2, 3), keepdim=True).expand_as(guidance)
            yield "shifted", shifted(guidance, SHIFT)

    def _purpose(self) -> FilterPurpose:
        data = self.config.data
        return replace(super()._purpose(), scale=data.scale, downsampling=data.downsampling)

    def _filtered(self, model: nn.Module, image: Images) -> tuple[Tensor, DKNOutput]:
        kernels = model(image.guidance, image.input)
        return kernels.output, kernels

    def _units(self, batch: Batch) -> tuple[float, str | None]:
        return float(batch["units"][0]), self.config.data.unit

    def _size_faults(self, split: Split, pairs: Pairs) -> Iterator[str]:
        yield from super()._size_faults(split, pairs)
        smallest = min(range(len(pairs)), key=lambda i: min(pairs.size(i)))
        (height, width), scale = pairs.size(smallest), self.config.data.scale
        if min(height, width) < scale:
            yield (
                f"task.data.scale: {scale} is too large for {pairs.name(smallest)} ({height} x {width} pixels) in "
                f"{SECTIONS[split]}; write {min(height, width)} or less, or use larger images"
            )

    def card(self) -> ModelCard:
        """Return the model card of an exported filter."""
        data = self.config.data
        return self._card(
            form=f", {'residual' if self.config.model.residual else 'direct'} form",
            purpose=f"sharpen depth maps downsampled by a factor of {data.scale} ({data.downsampling}), guided by the "
            f"color image.",
            usage='sharp = model.filter(Image.open("guidance.png"), Image.open("target.png"))',
        )
