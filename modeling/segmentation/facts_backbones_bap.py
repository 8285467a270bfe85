"""Facts about the backbones: the layers of VGG-16 and of EfficientNet-Lite0 with output stride 8.

Standard library only; the networks are built from these tables, and the closed forms count with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .facts_bap import STRIDE


class VGGBlock(NamedTuple):
    """Convolutions of 3 x 3, and the max-pooling after them."""

    widths: tuple[int, ...]  # channels that each convolution returns
    dilation: int
    stride: int  # of the pooling


VGG16_BLOCKS = (
    VGGBlock((64, 64), dilation=1, stride=2),
    VGGBlock((128, 128), dilation=1, stride=2),
    VGGBlock((256, 256, 256), dilation=1, stride=2),
    VGGBlock((512, 512, 512), dilation=1, stride=1),
    VGGBlock((512, 512, 512), dilation=2, stride=1),
)
VGG16_DENSE = (3, 1)  # kernels of fc6 and fc7, each of BACKBONE_CHANNELS["vgg16"] channels


class Stage(NamedTuple):
    """Blocks of EfficientNet-Lite0 of one width."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


LITE0_STEM = 32  # channels
LITE0_STEM_STRIDE = 2
LITE0_STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
LITE0_KEPT = (2, 4, 6)  # stages whose outputs are the features


class Lite0Block(NamedTuple):
    """One block: expand to `inside` channels where these are more, convolve each channel, project."""

    before: int
    inside: int
    after: int
    kernel: int
    stride: int
    dilation: int

    @property
    def expands(self) -> bool:
        """Whether it expands."""
        return self.inside > self.before

    @property
    def residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.before == self.after


def lite0_blocks() -> Iterator[list[Lite0Block]]:
    """Yield the blocks of each stage.

    Where a stride would exceed STRIDE in all, it becomes a dilation; as in timm, the first block of such a stage still
    has the spacing of the stage before.
    """
    before, reached, dilation = LITE0_STEM, LITE0_STEM_STRIDE, 1
    for stage in LITE0_STAGES:
        strides = reached * stage.stride <= STRIDE
        blocks = [_block(before, stage, stride=stage.stride if strides else 1, dilation=dilation)]
        if strides:
            reached *= stage.stride
        else:
            dilation *= stage.stride
        blocks += [_block(stage.channels, stage, stride=1, dilation=dilation) for _ in range(stage.blocks - 1)]
        yield blocks
        before = stage.channels


def _block(before: int, stage: Stage, *, stride: int, dilation: int) -> Lite0Block:
    return Lite0Block(before, before * stage.expansion, stage.channels, stage.kernel, stride, dilation)
