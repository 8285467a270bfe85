"""Filtering in tiles, so that memory does not grow with the image.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .configuration_dkn import DKNConfig
from .facts_dkn import CELL, PATCH_BEFORE, STAGES

TILE = 1024  # side in pixels; FDKN then needs some 0.5 GiB beyond the images


def halo_of(config: DKNConfig) -> int:
    """Return how many pixels around a tile of whole cells its result depends on, in whole cells."""
    is_fast = config.architecture == "fdkn"
    seen = CELL * sum(stage.kernel_size // 2 for stage in STAGES["fdkn"]) if is_fast else PATCH_BEFORE
    window = config.window_size // 2 + 1  # a sample fades out within one pixel
    return -(-max(seen, window) // CELL) * CELL


def filter_in_tiles(
    apply: Callable[[Tensor, Tensor], Tensor], guidance: Tensor, target: Tensor, *, tile: int, halo: int
) -> Tensor:
    """Return what a filter makes of whole images, computed tile by tile; equal to rounding.

    Tiles start at multiples of their side, and are cut out with what they depend on. At the edges of the image they
    end as the image does, so that padding is what it is there.

    Args:
        apply: Filter of images of one size.
        guidance: (B, C, H, W).
        target: (B, C, H, W).
        tile: Side of a tile; a multiple of CELL.
        halo: As `halo_of` returns it.
    """
    height, width = target.shape[-2:]
    if height <= tile and width <= tile:
        return apply(guidance, target)
    filtered = torch.empty_like(target)
    for rows in _cuts(height, tile, halo):
        for columns in _cuts(width, tile, halo):
            part = (..., rows.seen, columns.seen)
            filtered[..., rows.kept, columns.kept] = apply(guidance[part], target[part])[..., rows.inner, columns.inner]
    return filtered


class _Cut(NamedTuple):
    """Part of a side of the image."""

    kept: slice  # of the image, computed in this tile
    seen: slice  # of the image: with its halo
    inner: slice  # of what is seen: where the kept part lies


def _cuts(length: int, tile: int, halo: int) -> Iterator[_Cut]:
    for start in range(0, length, tile):
        stop, first = min(start + tile, length), max(start - halo, 0)
        yield _Cut(slice(start, stop), slice(first, min(stop + halo, length)), slice(start - first, stop - first))
