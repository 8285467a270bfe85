"""VGG-16 as DeepLab-LargeFOV has it: output stride 8, and two convolutions in the place of the dense layers.

Simonyan and Zisserman, ICLR 2015; Chen et al., DeepLab, ICLR 2015. Shapes: B batch, H height, W width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .dropout_bap import SampleDropout
from .facts_bap import BACKBONE_CHANNELS, STRIDE, VGG16_BLOCKS, VGG16_DENSE


class VGG16(nn.Module):
    """Images (B, 3, H, W) to features (B, 1024, ceil(H / 8), ceil(W / 8)).

    Args:
        dilation: Of the first convolution after the five blocks: 12 has the large field of view, 1 the small one.
        dropout: Probability that a channel is dropped after each of the last two convolutions.
    """

    stride = STRIDE
    num_channels = BACKBONE_CHANNELS["vgg16"]

    def __init__(self, *, dilation: int, dropout: float = 0.5) -> None:
        super().__init__()
        before, blocks = 3, nn.ModuleList()
        for widths, spacing, _ in VGG16_BLOCKS:
            block = nn.ModuleList()
            for width in widths:
                block.append(nn.Conv2d(before, width, 3, padding=spacing, dilation=spacing))
                before = width
            blocks.append(block)
        self.blocks = blocks
        first, second = VGG16_DENSE
        self.fc6 = nn.Conv2d(before, self.num_channels, first, padding=dilation, dilation=dilation)
        self.fc7 = nn.Conv2d(self.num_channels, self.num_channels, second)
        self.dropouts = nn.ModuleList(SampleDropout(dropout, number) for number in range(2))

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the features; `keys` (B,) choose the samples' dropout masks."""
        x = images
        for block, (_, _, stride) in zip(self.blocks, VGG16_BLOCKS, strict=True):
            for convolution in block:  # type: ignore[union-attr]
                x = F.relu(convolution(x))
            x = F.max_pool2d(x, 3, stride=stride, padding=1)
        x = F.avg_pool2d(x, 3, stride=1, padding=1)
        for convolution, dropout in zip((self.fc6, self.fc7), self.dropouts, strict=True):
            x = dropout(F.relu(convolution(x)), keys)
        return x


def _own_names() -> list[str]:
    """Return the names of the thirteen convolutions, in order."""
    return [f"blocks.{block}.{at}" for block, each in enumerate(VGG16_BLOCKS) for at in range(len(each.widths))]


def torchvision_names() -> dict[str, str]:
    """Return torchvision's name of each pretrained tensor by the own name: `features.0.weight` for `blocks.0.0.weight`.

    Its dense layers have no counterpart: fc6 and fc7 start from random weights.
    """
    names, place = {}, 0  # place counts torchvision's layers: a convolution and a ReLU each, a pooling after a block
    for own in _own_names():
        if own.endswith(".0") and own != "blocks.0.0":
            place += 1
        names |= {f"{own}.{leaf}": f"features.{place}.{leaf}" for leaf in ("weight", "bias")}
        place += 2
    return names


def caffe_names() -> dict[str, str]:
    """Return the Caffe model's name of each pretrained tensor: `conv1_1.weight`, ..., `fc6.weight`, `fc7.weight`."""
    layers = {own: f"conv{int(own[7]) + 1}_{int(own[9]) + 1}" for own in _own_names()} | {"fc6": "fc6", "fc7": "fc7"}
    return {f"{own}.{leaf}": f"{theirs}.{leaf}" for own, theirs in layers.items() for leaf in ("weight", "bias")}
