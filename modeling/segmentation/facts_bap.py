"""Facts about box-supervised segmentation: shapes, defaults, cross-field checks, and the layers of the backbones.

Standard library only: run configuration reads these facts without importing torch, and exported folders include this
file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

BACKGROUND = "background"  # class 0
VOID = 255  # label of pixels that do not count
STRIDE = 8  # pixels of an image along a side of a cell of the feature map

Backbone = Literal["vgg16", "lite0"]
Normalization = Literal["imagenet", "half", "caffe"]

BACKBONE_CHANNELS: Mapping[str, int] = {"vgg16": 1024, "lite0": 472}
# What the pretrained weights of a backbone were trained with; the Caffe VGG's are "caffe".
NORMALIZATIONS: Mapping[str, Normalization] = {"vgg16": "imagenet", "lite0": "half"}


class Scaling(NamedTuple):
    """What becomes of an image from 0 to 1: (channels * range - mean) / std."""

    reversed: bool  # blue, green, red
    range: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


SCALINGS: Mapping[str, Scaling] = {
    "imagenet": Scaling(False, 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's
    "half": Scaling(False, 1.0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "caffe": Scaling(True, 255.0, (104.008, 116.669, 122.675), (1.0, 1.0, 1.0)),  # of blue, green and red
}


@dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """What both networks have: an image becomes features, and features are compared with classes.

    Args:
        backbone: The pretrained part: `vgg16` as in DeepLab-LargeFOV, or `lite0`, EfficientNet-Lite0.
        normalization: How an image is scaled: `imagenet` (torchvision's weights), `half` (Lite0's) or `caffe` (the
            Caffe VGG's; blue, green, red). None: that of the backbone.
        features: Channels of the features that are classified. None: 1024 for vgg16, whose last layer makes them;
            256 for lite0.
        dropout: Probability that a channel is dropped after each hidden layer of the new part.
    """

    backbone: Backbone = "vgg16"
    normalization: Normalization | None = None
    features: int | None = None
    dropout: float = 0.5

    @property
    def scaling(self) -> Scaling:
        """How an image is scaled."""
        return SCALINGS[self.normalization or NORMALIZATIONS[self.backbone]]

    @property
    def width(self) -> int:
        """Channels of the features that are classified."""
        return self.features or {"vgg16": BACKBONE_CHANNELS["vgg16"], "lite0": 256}[self.backbone]


@dataclass(frozen=True, kw_only=True)
class BoxClassifierShape(NetworkShape):
    """Shape of the network that learns from boxes (stage 1).

    Args:
        pooling: `background` leaves out of a box what looks like the image's background (BAP); `average` does not.
        grid: Cells along a side of an image, each with a background query, in training.
        roi: Sub-regions along a side of a box in training, each classified by itself.
        smallest_background: Share of an image outside all boxes; with less, or as much, its boxes are averaged.
    """

    pooling: Literal["background", "average"] = "background"
    grid: int = 4
    roi: int = 2
    smallest_background: float = 0.125


@dataclass(frozen=True, kw_only=True)
class SegmenterShape(NetworkShape):
    """Shape of the network that learns from masks (stage 3).

    Args:
        classifier: `cosine` compares directions, as the noise-aware loss needs it; `linear` has no bias.
        temperature: Factor of the cosines before the softmax (tau).
    """

    classifier: Literal["cosine", "linear"] = "cosine"
    temperature: float = 20.0


class Fault(NamedTuple):
    """One fault of a shape: the key to change, and the message."""

    key: str
    message: str


def shape_faults(values: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the faults of values that conflict; each value is valid by itself."""
    if values.get("backbone") == "vgg16" and values.get("features") not in (None, BACKBONE_CHANNELS["vgg16"]):
        message = f"{values['features']} cannot be chosen for vgg16, whose last layer makes 1024; write null"
        yield Fault("features", message)


# -------------------------------------------------------------------------------------------- layers of the backbones


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
