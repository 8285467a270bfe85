"""Closed-form parameter counts and operations of a joint image filter.

Standard library only; no model is built.
"""

from collections.abc import Iterator
from typing import NamedTuple

from .facts_dkn import CELL, LUMA, PATCH_AFTER, PATCH_BEFORE, STAGES, FilterShape, StageShape


class FilterCounts(NamedTuple):
    """Learnable parameters by the optimizer's groups, and the buffers of the batch norms."""

    kernels: int  # of the convolutions
    norms_and_biases: int
    buffers: int  # running means, variances and counters

    @property
    def total(self) -> int:
        """All learnable parameters."""
        return self.kernels + self.norms_and_biases


class Layer(NamedTuple):
    """One convolution of a branch on one image; its positions count those of all phases."""

    stage: StageShape
    in_channels: int
    in_positions: int
    out_positions: int

    @property
    def flops(self) -> int:
        """Operations of a forward pass, a multiplication and addition as 2."""
        return 2 * self.out_positions * self.in_channels * self.stage.channels * self.stage.kernel_size**2


def branch_channels(shape: FilterShape) -> tuple[int, ...]:
    """Return the channels that each branch reads, the target's first: cells of pixels for `fdkn`, luma of RGB."""
    cells = CELL**2 if shape.architecture == "fdkn" else 1
    takes_luma = shape.architecture == "fdkn" and shape.guidance_channels == len(LUMA)
    guidance = (1 if takes_luma else shape.guidance_channels,) if shape.guidance else ()
    return tuple(cells * channels for channels in (shape.target_channels, *guidance))


def branch_layers(shape: FilterShape, channels: int, *, height: int, width: int) -> Iterator[Layer]:
    """Yield the convolutions of a branch on an image, its two heads as one.

    Args:
        shape: Shape of the filter.
        channels: Channels that the branch reads.
        height: Of the image, in pixels.
        width: Likewise.
    """
    rows, columns = -(-height // CELL), -(-width // CELL)
    phases = 1
    if shape.architecture == "dkn":
        border = PATCH_BEFORE + PATCH_AFTER
        rows, columns = CELL * rows + border, CELL * columns + border
    for stage in STAGES[shape.architecture]:
        before = phases * rows * columns
        if shape.architecture == "dkn":  # no padding
            rows, columns = rows - stage.kernel_size + 1, columns - stage.kernel_size + 1
        yield Layer(stage, channels, before, phases * rows * columns)
        channels = stage.channels
        if stage.splits:
            rows, columns, phases = rows // 2, columns // 2, 4 * phases
    positions = phases * rows * columns
    yield Layer(StageShape(_head_channels(shape), 1), channels, positions, positions)


def count_parameters(shape: FilterShape) -> FilterCounts:
    """Count the learnable parameters and the buffers of a filter without building it."""
    kernels = others = buffers = 0
    for channels in branch_channels(shape):
        for stage, in_channels, _, _ in branch_layers(shape, channels, height=CELL, width=CELL):
            kernels += in_channels * stage.channels * stage.kernel_size**2
            others += stage.channels * (3 if stage.norm else 1)  # bias; scale and shift
            buffers += (2 * stage.channels + 1) if stage.norm else 0
    return FilterCounts(kernels, others, buffers)


def training_flops(shape: FilterShape, *, height: int, width: int) -> int:
    """Count the operations of a training pass over one image, in the convolutions.

    The backward pass costs twice the forward pass, but for the gradient of the images, which nothing needs. The border
    that `dkn` adds counts, unlike in DKNModel.flops_per_pixel.
    """
    total = 0
    for channels in branch_channels(shape):
        first, *others = branch_layers(shape, channels, height=height, width=width)
        total += 2 * first.flops + 3 * sum(layer.flops for layer in others)
    return total


def _head_channels(shape: FilterShape) -> int:
    """Return the channels of weights and offsets together: 1 and 2 per tap and pixel of a cell."""
    return 3 * shape.kernel_size**2 * (CELL**2 if shape.architecture == "fdkn" else 1)
