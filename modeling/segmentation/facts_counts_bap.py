"""Closed-form parameter counts, operations and kept tensors of the networks of box-supervised segmentation.

Standard library only; no model is built. Sizes of tensors are in fp32 elements per image. tests/launch/plan
compares all of them with the networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from .facts_bap import (
    BACKBONE_CHANNELS,
    LITE0_KEPT,
    LITE0_STAGES,
    LITE0_STEM,
    LITE0_STEM_STRIDE,
    STRIDE,
    VGG16_BLOCKS,
    VGG16_DENSE,
    Lite0Block,
    NetworkShape,
    lite0_blocks,
)

INDEX = 2  # elements of fp32 that an int64 takes


class Weights(NamedTuple):
    """Learnable tensors of an operation, and the buffers of its batch norm."""

    kernel: int = 0  # matrices and convolution kernels, which decay
    scale: int = 0  # of a norm
    bias: int = 0
    buffers: int = 0

    @property
    def total(self) -> int:
        """All that is learnable."""
        return self.kernel + self.scale + self.bias


class Operation(NamedTuple):
    """One operation of the trunk on one image; each reads what the one before returns.

    Attributes:
        reads: Elements of its input.
        returns: Elements of its output.
        saves: What it needs again in the backward pass, if anything before or in it is trained.
        extra: Further elements that it saves.
        weights: Its learnable tensors.
        pretrained: Whether these exist in the pretrained weights, and are constants if the backbone is frozen.
        flops: Of a forward pass, a multiplication and addition as 2; only of convolutions.
        alive: Elements of other tensors that the forward pass holds meanwhile, kept for the backward pass or not.
    """

    reads: int
    returns: int
    saves: Literal["input", "output", "nothing"]
    extra: float = 0.0
    weights: Weights = Weights()
    pretrained: bool = False
    flops: int = 0
    alive: int = 0


class Counts(NamedTuple):
    """Parameters of a network by origin and kind, and its buffers.

    Attributes:
        pretrained: Trained parameters for which pretrained weights exist.
        new: Trained parameters of the other layers, the classifier's included.
        frozen: Weights that a frozen backbone keeps as buffers.
        running: Running means, variances and counters of batch norms.
    """

    pretrained: Weights
    new: Weights
    frozen: int
    running: int

    @property
    def trained(self) -> int:
        """All trained parameters."""
        return self.pretrained.total + self.new.total


def trunk_operations(shape: NetworkShape, *, height: int, width: int) -> Iterator[Operation]:
    """Yield the operations from a scaled image to the features that are classified.

    Args:
        shape: Shape of the network.
        height: Of the image, in pixels.
        width: Likewise.
    """
    if shape.backbone == "vgg16":
        yield from _vgg16(shape, height, width)
    else:
        yield from _lite0(height, width)
        yield from _neck(shape, cells(height, width))


def cells(height: int, width: int) -> int:
    """Return the number of places of the feature map of an image."""
    return -(-height // STRIDE) * -(-width // STRIDE)


def count_parameters(shape: NetworkShape, *, num_classes: int, frozen_backbone: bool) -> Counts:
    """Count parameters and buffers without building the network.

    Args:
        shape: Shape of the network.
        num_classes: Classes with the background.
        frozen_backbone: Whether pretrained layers are constants.
    """
    operations = list(trunk_operations(shape, height=STRIDE, width=STRIDE))
    pretrained = _sum([each.weights for each in operations if each.pretrained])
    new = _sum([each.weights for each in operations if not each.pretrained])
    new = new._replace(kernel=new.kernel + num_classes * shape.width)
    running = pretrained.buffers + new.buffers
    if frozen_backbone:
        return Counts(Weights(), new, pretrained.total, running)
    return Counts(pretrained, new, 0, running)


def training_flops(shape: NetworkShape, *, frozen_backbone: bool, height: int, width: int) -> int:
    """Count the operations of a training pass over one image, in the trunk's convolutions.

    A trained convolution costs three times its forward pass, the first one twice: nothing needs the gradient of what
    it reads. Frozen convolutions have a forward pass only. The classifier and the pooling of boxes are left out.
    """
    total, gradient = 0, False  # whether the input needs one
    for each in trunk_operations(shape, height=height, width=width):
        trained = is_trained(each, frozen_backbone=frozen_backbone)
        total += each.flops * (1 + trained + (trained and gradient))
        gradient = gradient or trained
    return total


def is_trained(operation: Operation, *, frozen_backbone: bool) -> bool:
    """Return whether an operation has weights that are trained."""
    return operation.weights.total > 0 and not (frozen_backbone and operation.pretrained)


def kept_elements(operations: Sequence[Operation], *, frozen_backbone: bool) -> list[tuple[float, bool]]:
    """Return, for each operation, what it adds to the tensors kept for the backward pass, and whether it has one.

    A tensor that is saved as one operation's output and the next one's input is counted once.
    """
    kept: list[tuple[float, bool]] = []
    gradient = input_is_kept = False
    for each in operations:
        gradient = gradient or is_trained(each, frozen_backbone=frozen_backbone)
        added = 0.0
        if gradient:
            added += each.extra
            added += each.reads * (each.saves == "input" and not input_is_kept)
            added += each.returns * (each.saves == "output")
        kept.append((added, gradient))
        input_is_kept = gradient and each.saves == "output"
    return kept


def _sum(weights: Sequence[Weights]) -> Weights:
    return Weights(*map(sum, zip(*weights, strict=True))) if weights else Weights()


# ------------------------------------------------------------------------------------------------------------- VGG-16


def _vgg16(shape: NetworkShape, height: int, width: int) -> Iterator[Operation]:
    channels = 3
    for widths, _, stride in VGG16_BLOCKS:
        for after in widths:
            convolution = _convolution(channels, after, 3, height * width, pretrained=True)
            yield convolution
            yield Operation(convolution.returns, convolution.returns, "output", alive=convolution.reads)  # ReLU
            channels = after
        before = channels * height * width
        height, width = -(-height // stride), -(-width // stride)
        pooled = channels * height * width
        yield Operation(before, pooled, "input", INDEX * pooled)  # where each maximum was
    yield Operation(channels * height * width, channels * height * width, "input")  # average
    for kernel in VGG16_DENSE:
        after = BACKBONE_CHANNELS["vgg16"]
        yield _convolution(channels, after, kernel, height * width)
        yield from _activation_and_dropout(shape, after, height * width)
        channels = after


def _activation_and_dropout(shape: NetworkShape, channels: int, positions: int) -> Iterator[Operation]:
    yield Operation(channels * positions, channels * positions, "output")
    if shape.dropout:
        yield Operation(channels * positions, channels * positions, "nothing", channels)  # which channels stay


def _convolution(
    before: int, after: int, kernel: int, positions: int, *, groups: int = 1, pretrained: bool = False
) -> Operation:
    """Return a convolution with bias that keeps the size."""
    weights = before * after * kernel**2 // groups
    return Operation(
        before * positions,
        after * positions,
        "input",
        weights=Weights(kernel=weights, bias=after),
        pretrained=pretrained,
        flops=2 * positions * weights,
    )


# ------------------------------------------------------------------------------------------------ EfficientNet-Lite0


class _Size(NamedTuple):
    height: int
    width: int

    @property
    def positions(self) -> int:
        return self.height * self.width

    def over(self, stride: int) -> _Size:
        """Return the size of a convolution's output."""
        return _Size(-(-self.height // stride), -(-self.width // stride))

    def padded(self, kernel: int, stride: int, dilation: int) -> _Size:
        """Return the size that a convolution reads, padded as in TensorFlow."""
        least = (kernel - 1) * dilation + 1
        return _Size(*(max(side, (-(-side // stride) - 1) * stride + least) for side in self))


def _lite0(height: int, width: int) -> Iterator[Operation]:
    size = _Size(height, width)
    yield from _normed(3, LITE0_STEM, size, kernel=3, stride=LITE0_STEM_STRIDE)
    size = size.over(LITE0_STEM_STRIDE)
    features = 0
    for number, blocks in enumerate(lite0_blocks()):
        for block in blocks:
            for each in _block(block, size):
                yield each._replace(alive=each.alive + features)
            size = size.over(block.stride)
        features += LITE0_STAGES[number].channels * size.positions * (number in LITE0_KEPT)
    channels = BACKBONE_CHANNELS["lite0"]
    yield Operation(LITE0_STAGES[LITE0_KEPT[-1]].channels * size.positions, channels * size.positions, "nothing")


def _block(block: Lite0Block, size: _Size) -> Iterator[Operation]:
    before, inside, after, kernel, stride, dilation = block
    entering, expanded = before * size.positions, 0
    if block.expands:
        yield from _normed(before, inside, size)
        expanded = inside * size.positions
    depthwise = _normed(inside, inside, size, kernel=kernel, stride=stride, dilation=dilation, groups=inside)
    size = size.over(stride)
    for number, each in enumerate((*depthwise, *_normed(inside, after, size, activation=False))):
        alive = entering + expanded
        yield each._replace(alive=alive if number else alive - each.reads)  # the first one reads the last of these
    if block.residual:
        yield Operation(after * size.positions, after * size.positions, "nothing")


def _normed(
    before: int, after: int, size: _Size, *, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1,
    activation: bool = True,
) -> Iterator[Operation]:  # fmt: skip
    """Yield padding, a convolution without bias, batch norm, and ReLU6."""
    padded, out = size.padded(kernel, stride, dilation), size.over(stride)
    if padded != size:
        yield Operation(before * size.positions, before * padded.positions, "nothing")
    weights, returned = before * after * kernel**2 // groups, after * out.positions
    yield Operation(
        before * padded.positions,
        returned,
        "input",
        weights=Weights(kernel=weights),
        pretrained=True,
        flops=2 * out.positions * weights,
    )
    norm = Weights(scale=after, bias=after, buffers=2 * after + 1)
    yield Operation(returned, returned, "input", weights=norm, pretrained=True)
    if activation:
        yield Operation(returned, returned, "input")


def _neck(shape: NetworkShape, positions: int) -> Iterator[Operation]:
    before, width = BACKBONE_CHANNELS["lite0"], shape.width
    yield Operation(before * positions, before * positions, "input", 2 * positions)  # means and deviations
    yield _convolution(before, width, 1, positions)
    yield _convolution(width, width, 3, positions, groups=width)
    yield Operation(width * positions, width * positions, "output")
    yield _convolution(width, width, 1, positions)
    yield from _activation_and_dropout(shape, width, positions)
