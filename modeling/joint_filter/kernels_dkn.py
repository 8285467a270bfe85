"""Networks that predict a kernel for each pixel, as products of a guidance branch and a target branch.

Shapes: B batch, C channels, H height, W width, K kernel size, N = B times phases, h and w of one phase.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_dkn import DKNConfig
from .facts_dkn import CELL, LUMA, PATCH_AFTER, PATCH_BEFORE, STAGES, StageShape

TILE = 256  # side of what DKN computes at a time where nothing has to be kept for a backward pass


class Stage(nn.Module):
    """Convolution, batch normalization where there is one, ReLU; and the phases of a stride as batch entries."""

    def __init__(self, in_channels: int, shape: StageShape, *, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, shape.channels, shape.kernel_size, padding=padding)
        self.norm = nn.BatchNorm2d(shape.channels) if shape.norm else None
        self.splits = shape.splits

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w); where it splits to (4 N, C', h / 2, w / 2)."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        x = F.relu(x, inplace=True)
        return split_phases(x) if self.splits else x


class ConvHead(nn.Conv2d):
    """A convolution of 1 x 1 as a matrix product, whose result lies channel by channel, as the sampler reads it.

    After channels-last layers a convolution's would have to be copied, which takes longer than itself on a CPU.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Map (N, C, h, w) to (N, C', h, w)."""
        assert self.bias is not None
        weight = self.weight.flatten(1).expand(len(x), -1, -1)
        return torch.baddbmm(self.bias[:, None], weight, x.flatten(2)).unflatten(2, x.shape[2:])


class Branch(nn.Module):
    """One image's contribution to the kernels: logits of the weights, and factors of the offsets."""

    def __init__(self, config: DKNConfig, channels: int) -> None:
        super().__init__()
        is_fast = config.architecture == "fdkn"
        cells = CELL**2 if is_fast else 1
        channels *= cells
        self.stages = nn.ModuleList()
        for shape in STAGES[config.architecture]:
            self.stages.append(Stage(channels, shape, padding=shape.kernel_size // 2 if is_fast else 0))
            channels = shape.channels
        self.weight_head = ConvHead(channels, config.kernel_size**2 * cells)
        self.offset_head = ConvHead(channels, 2 * config.kernel_size**2 * cells)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, C, h, w) to logits and offsets."""
        if x.device.type == "cpu":
            # Convolutions then take 0.7 to 0.8 of the time. `contiguous` would leave a single channel's strides alone.
            x = x.clone(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x)
        return self.weight_head(x), self.offset_head(x)


class KernelNetwork(nn.Module):
    """Both branches and their products: raw weights in (0, 1), offsets without bound."""

    def __init__(self, config: DKNConfig) -> None:
        super().__init__()
        self.is_fast = config.architecture == "fdkn"
        self.takes_luma = self.is_fast and config.guidance_channels == len(LUMA)
        guidance_channels = 1 if self.takes_luma else config.guidance_channels
        self.guidance_branch = Branch(config, guidance_channels) if config.guidance else None
        self.target_branch = Branch(config, config.target_channels)

    def forward(self, guidance: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the kernels of every pixel of (B, C, H, W) images of any size.

        Returns:
            Raw weights (B, K * K, H, W), the product of two sigmoids, and offsets (B, 2 * K * K, H, W), a product too.
        """
        images = [target]
        if self.guidance_branch is not None and guidance is not None:
            images.append(luma(guidance) if self.takes_luma else guidance)
        return self._on_cells(images) if self.is_fast else self._dense(images)

    def _products(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Run each branch on its image, the target's first, and multiply what they give."""
        weights, offsets = self.target_branch(images[0])
        weights = weights.sigmoid()
        if self.guidance_branch is not None:
            guidance_weights, guidance_offsets = self.guidance_branch(images[1])
            weights, offsets = weights * guidance_weights.sigmoid(), offsets * guidance_offsets
        return [weights, offsets]

    def _on_cells(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """FDKN: cells of 4 x 4 pixels become channels; edge cells are filled by repeating the last pixels."""
        height, width = images[0].shape[-2:]
        cells = [F.pixel_unshuffle(_fill(image), CELL) for image in images]
        weights, offsets = (F.pixel_shuffle(x, CELL) for x in self._products(cells))
        return weights[..., :height, :width], offsets[..., :height, :width]

    def _dense(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """DKN: each pixel as if its 51 x 51 patch, zeros beyond the image, went through the network alone.

        The paper shifts the image 16 times, once for each phase of the total stride, and stitches the results. Here a
        layer runs once: where it strides, its phases become batch entries, so nothing is computed twice. In training
        BatchNorm thus sees all phases at once and moves its running statistics once per step (the authors' makes 16
        passes and as many updates). Where no gradient is asked for and BatchNorm is fixed, tiles bound the memory.
        """
        height, width = images[0].shape[-2:]
        images = [_surround(image) for image in images]
        if self.training or torch.is_grad_enabled():
            weights, offsets = (stitch_phases(x) for x in self._products(images))
            return weights[..., :height, :width], offsets[..., :height, :width]
        rows = [
            [self._tile(images, top, left, height=height, width=width) for left in range(0, width, TILE)]
            for top in range(0, height, TILE)
        ]
        weights, offsets = (torch.cat([torch.cat([t[i] for t in row], -1) for row in rows], -2) for i in range(2))
        return weights, offsets

    def _tile(self, images: Sequence[Tensor], top: int, left: int, *, height: int, width: int) -> list[Tensor]:
        rows, columns = min(TILE, height - top), min(TILE, width - left)
        halo = PATCH_BEFORE + PATCH_AFTER
        bottom, right = top + _whole_cells(rows) + halo, left + _whole_cells(columns) + halo
        parts = [image[..., top:bottom, left:right] for image in images]
        return [stitch_phases(x)[..., :rows, :columns] for x in self._products(parts)]


def luma(rgb: Tensor) -> Tensor:
    """Return the brightness (B, 1, H, W) of red, green and blue (B, 3, H, W)."""
    red, green, blue = rgb.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def split_phases(x: Tensor) -> Tensor:
    """Turn even and odd rows and columns of (N, C, 2 h, 2 w) into batch entries, (4 N, C, h, w)."""
    return torch.cat([x[..., i::2, j::2] for i in range(2) for j in range(2)])


def stitch_phases(x: Tensor) -> Tensor:
    """Undo two `split_phases`: (16 B, C, h, w) to (B, C, 4 h, 4 w)."""
    phases = x.unflatten(0, (2, 2, 2, 2, -1))  # rows mod 4 in twos, columns, rows mod 2, columns, B
    image = phases.permute(4, 5, 6, 0, 2, 7, 1, 3)  # (B, C, h, 2, 2, w, 2, 2)
    return image.flatten(5, 7).flatten(2, 4)


def _whole_cells(size: int) -> int:
    return -(-size // CELL) * CELL


def _fill(image: Tensor) -> Tensor:
    """Repeat the last row and column until both sides are whole cells."""
    height, width = image.shape[-2:]
    missing = (0, _whole_cells(width) - width, 0, _whole_cells(height) - height)
    return F.pad(image, missing, mode="replicate") if any(missing) else image


def _surround(image: Tensor) -> Tensor:
    """Add the zeros that DKN sees beyond the edges, and more to the right and below to whole cells."""
    height, width = image.shape[-2:]
    right, bottom = (_whole_cells(size) - size + PATCH_AFTER for size in (width, height))
    return F.pad(image, (PATCH_BEFORE, right, PATCH_BEFORE, bottom))
