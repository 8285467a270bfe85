"""Closed forms for a run that trains a joint image filter: counts, operations, and the tensors of a pass.

Sizes are in fp32 elements per image and were derived from the network's operations; tests/launch/plan/test_filters.py
compares them with what torch keeps and with the peak of a pass on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from launch.plan.case import FLOAT, Case
from modeling.joint_filter.facts_counts_dkn import (
    FilterCounts,
    Layer,
    branch_channels,
    branch_layers,
    count_parameters,
    training_flops,
)
from modeling.joint_filter.facts_dkn import CELL, FilterShape
from train.config.errors import ConfigError
from train.config.tasks.joint_filter import FilterConfig, JointFilterConfig, PairSourceConfig

PROCEDURAL_SIZE = (192, 256)  # of procedural images where their source gives none
NYU_SIZE = (480, 640)  # of NYU Depth v2
_OPERATIONS = {"tap": 65, "branch": 150}  # kernels of a forward and backward pass, counted with a dispatch mode


class ImageSize(NamedTuple):
    """Height and width in pixels, and where they come from."""

    height: int
    width: int
    source: str


@dataclass(frozen=True)
class FilterWorkload:
    """A joint image filter and its images."""

    task: JointFilterConfig
    sample: str = "image"
    mfu: float = 0.1  # of the bf16 peak: few channels, in fp32 with TF32 products
    can_recompute: bool = False  # batch norms would see each batch twice
    tokens: int | None = None
    first_gradient: int = 0
    exported_itemsize: int = FLOAT

    @cached_property
    def model(self) -> FilterShape:
        """Shape of the filter."""
        return filter_shape(self.task.model)

    @cached_property
    def size(self) -> ImageSize:
        """Size of the training images.

        Raises:
            ConfigError: Only the images themselves know it.
        """
        return image_size(self.task)

    @cached_property
    def counts(self) -> FilterCounts:
        """Its parameters by group."""
        return count_parameters(self.model)

    @property
    def samples_in_words(self) -> str:
        """What the samples are."""
        return f"images of {self.size.height} x {self.size.width} pixels ({self.size.source})"

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return self.counts.total

    @property
    def groups(self) -> tuple[int, ...]:
        """Number of parameters in each of the optimizer's groups."""
        return self.counts.kernels, self.counts.norms_and_biases

    @property
    def buffers(self) -> int:
        """Elements that are saved with the weights but not trained."""
        return self.counts.buffers

    @property
    def flops_per_sample(self) -> float:
        """Operations of a training step per sample."""
        return float(training_flops(self.model, height=self.size.height, width=self.size.width))

    def launches(self, case: Case) -> int:
        """Return the kernels of a pass, which bound the time of a small one; the compiler takes all taps at once."""
        taps = 1 if case.compiled else self.model.kernel_size**2
        return _OPERATIONS["tap"] * taps + _OPERATIONS["branch"] * len(branch_channels(self.model))

    def count_lines(self) -> Iterator[str]:
        """Yield parameters by group and operations."""
        yield f"{'convolution kernels':30}{self.counts.kernels:>18,}"
        yield f"{'norms and biases':30}{self.counts.norms_and_biases:>18,}"
        yield f"{'parameters':30}{self.counts.total:>18,}"
        yield f"{'training FLOPs per image':30}{self.flops_per_sample:>18,.0f}  (convolutions)"

    def remarks(self) -> Iterator[str]:
        """Yield nothing: there is nothing to choose."""
        return iter(())

    # ---------------------------------------------------------------------------------------- activations and the loss

    def activation_bytes(self, case: Case) -> float:
        """Return the bytes that the forward pass saves."""
        branches = [
            list(branch_layers(self.model, channels, height=self.size.height, width=self.size.width))
            for channels in branch_channels(self.model)
        ]
        per_image = sum(_saved_in_branch(layers) for layers in branches) + self._saved_after_branches(branches)
        statistics = sum(2 * layer.stage.channels * layer.stage.norm for layers in branches for layer in layers)
        return float(FLOAT * (case.micro_batch_size * per_image + statistics))

    def loss_bytes(self, case: Case) -> float:
        """Return the bytes of the loss beyond what it saves: none to speak of."""
        return 0.0

    def backward_bytes(self, case: Case) -> float:
        """Return the bytes of the backward pass at its peak, less what it has freed by then.

        Either the sampling's end, which holds the gradients of weights and offsets twice, in parts and joined; or, at
        full resolution (`dkn`), the first convolution to go back, with three gradients of its width.
        """
        taps = self.model.kernel_size**2
        sampling = 6 * taps + 17
        freed = (5 if self.model.guidance else 4) * taps + 1
        convolution = 3 * 128 - freed if self.model.architecture == "dkn" else 0
        return float(FLOAT * case.micro_batch_size * self._pixels * max(sampling, convolution))

    def _saved_after_branches(self, branches: list[list[Layer]]) -> float:
        """Count what the products of the branches, the sampling and the loss save."""
        taps = self.model.kernel_size**2
        heads = branches[0][-1]
        weights = heads.out_positions * heads.stage.channels // 3
        products = len(branches) * weights * (3 if self.model.guidance else 1)  # sigmoids; offsets if multiplied
        filled = CELL**2 * math.ceil(self.size.height / CELL) * math.ceil(self.size.width / CELL)
        raw = 0 if self.model.residual else taps  # weights before they are divided by their sum
        sampled = self._pixels * (self.model.target_channels + taps) + filled * (2 * taps + raw)
        sums = 0 if self.model.residual else 2  # before and after the clamp
        loss = self.model.target_channels + 0.25  # differences, and one byte for which pixels are valid
        return products + sampled + self._pixels * (sums + loss)

    @property
    def _pixels(self) -> int:
        return self.size.height * self.size.width


def _saved_in_branch(layers: list[Layer]) -> int:
    """Count what a branch saves: inputs of convolutions, of norms, and what a ReLU returns before it is split."""
    inputs = sum(layer.in_channels * layer.in_positions for layer in layers)
    outputs = sum(
        layer.stage.channels * layer.out_positions * (layer.stage.norm + layer.stage.splits) for layer in layers
    )
    return inputs + outputs


def filter_shape(model: FilterConfig) -> FilterShape:
    """Return the shape that a run's settings describe."""
    return FilterShape(**{name: getattr(model, name) for name in FilterShape.__dataclass_fields__})


def image_size(task: JointFilterConfig) -> ImageSize:
    """Return the size of the training images: the crop, or that of the largest source of a known size.

    Raises:
        ConfigError: There is no crop, and a source is a folder of pairs, whose images the plan does not open.
    """
    if task.data.crop is not None:
        return ImageSize(task.data.crop, task.data.crop, "task.data.crop")
    sizes = [_known_size(source) for source in task.data.sources]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        raise ConfigError(
            [
                "task.data.crop: null, so the size of a step's images is only known from the files, which launch plan "
                "does not open; plan with a crop of about their size, for example task.data.crop=512"
            ]
        )
    return max(known, key=lambda size: size.height * size.width)


def _known_size(source: PairSourceConfig) -> ImageSize | None:
    if source.path.startswith("procedural-"):
        return ImageSize(*(source.size or PROCEDURAL_SIZE), "procedural")
    return ImageSize(*NYU_SIZE, "whole images of NYU Depth v2") if source.split is not None else None
