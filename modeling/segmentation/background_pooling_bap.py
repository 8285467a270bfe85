"""Background-aware pooling: features of boxes without the background that lies inside them.

Oh, Kim and Ham, Background-aware pooling and noise-aware loss for weakly-supervised semantic segmentation, CVPR 2021,
equations 1 to 4.

Shapes: B images, K boxes of an image (padded), D channels, H height and W width of the feature map, N cells along a
side of the grid, R sub-regions along a side of a box.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

NO_BOX = -1  # class of the boxes that pad a batch


class Coverage(NamedTuple):
    """How much of each cell of the feature map boxes cover, in cells.

    Args:
        rows: (B, K, R, H), the part of each row that sub-region row r of a box covers; 0 for padding.
        columns: (B, K, R, W), likewise.
    """

    rows: Tensor
    columns: Tensor

    def background(self) -> Tensor:
        """Return the cells that no box touches, the paper's M: (B, H, W), 0 or 1."""
        inside = torch.einsum("bkh,bkw->bhw", self.rows.sum(dim=2), self.columns.sum(dim=2))
        return (inside == 0).to(inside.dtype)


class Queries(NamedTuple):
    """Mean background features of an image's grid cells.

    Args:
        features: (B, N N, D); 0 where not valid.
        valid: (B, N N) bool, whether the cell holds any background.
    """

    features: Tensor
    valid: Tensor


def cover(boxes: Tensor, classes: Tensor, *, height: int, width: int, stride: int, regions: int = 1) -> Coverage:
    """Return how much of each cell is covered by each sub-region of each box.

    Args:
        boxes: (B, K, 4) as x0, y0, x1, y1 in pixels of the image, x1 and y1 exclusive.
        classes: (B, K); NO_BOX for padding.
        height: Of the feature map.
        width: Of the feature map.
        stride: Pixels of the image along a side of a cell.
        regions: Sub-regions along each side of a box.
    """
    cells = boxes / stride
    real = (classes != NO_BOX)[..., None, None].to(cells.dtype)
    columns = _overlap(cells[..., 0], cells[..., 2], width, regions)
    rows = _overlap(cells[..., 1], cells[..., 3], height, regions)
    return Coverage(rows * real, columns * real)


def _overlap(start: Tensor, end: Tensor, size: int, regions: int) -> Tensor:
    """Return the length that each of `regions` parts of an interval (B, K) shares with each cell: (B, K, R, size)."""
    parts = torch.arange(regions + 1, dtype=start.dtype, device=start.device) / regions
    bounds = torch.lerp(start[..., None], end[..., None], parts)  # (B, K, R + 1)
    low, high = bounds[..., :-1, None], bounds[..., 1:, None]  # (B, K, R, 1)
    cell = torch.arange(size, dtype=start.dtype, device=start.device)
    return (torch.minimum(high, cell + 1) - torch.maximum(low, cell)).clamp(min=0)


def background_queries(features: Tensor, background: Tensor, grid: int) -> Queries:
    """Average the background features in each cell of a grid over the image (equation 1).

    Args:
        features: (B, D, H, W).
        background: (B, H, W), the M of the paper: 1 where no box is.
        grid: Cells along a side; rows and columns are split as evenly as whole numbers allow.
    """
    height, width = background.shape[1:]
    row, column = (_cell_of(size, grid, background) for size in (height, width))  # (H, N), (W, N)
    counts = torch.einsum("bhw,hi,wj->bij", background, row, column).flatten(1)
    masked = features * background[:, None]
    sums = torch.einsum("bdhw,hi,wj->bijd", masked, row, column).flatten(1, 2)
    return Queries(sums / counts.clamp(min=1)[..., None], counts > 0)


def _cell_of(size: int, grid: int, like: Tensor) -> Tensor:
    """Return which part of a side each position belongs to: (size, grid), one 1 in each row."""
    part = torch.arange(size, device=like.device) * grid // size
    return F.one_hot(part, grid).to(like.dtype)


def background_attention(features: Tensor, background: Tensor, queries: Queries) -> Tensor:
    """Return how much each place looks like the background: A of equations 2 and 3, (B, H, W) from 0 to 1.

    It is 1 outside all boxes. Inside, it is the mean over the valid queries of the cosine with the query, negative ones
    counting as 0; an image without a valid query has 0 there, which turns the pooling into plain averaging.

    Args:
        features: (B, D, H, W).
        background: (B, H, W), 1 where no box is.
        queries: Of the same images.
    """
    directions = F.normalize(features, dim=1)
    cosines = torch.einsum("bqd,bdhw->bqhw", F.normalize(queries.features, dim=2), directions).relu()
    valid = queries.valid.to(features.dtype)
    mean = torch.einsum("bq,bqhw->bhw", valid, cosines) / valid.sum(dim=1).clamp(min=1)[:, None, None]
    return torch.where(background > 0, 1.0, mean.clamp(max=1.0))  # rounding can exceed 1


def pool_boxes(features: Tensor, attention: Tensor, coverage: Coverage) -> Tensor:
    """Average the features of each sub-region, weighted by 1 - A and by the covered part of a cell (equation 4).

    Args:
        features: (B, D, H, W).
        attention: (B, H, W); 0 everywhere makes it global average pooling over the box.
        coverage: Of the boxes' sub-regions.

    Returns:
        (B, K, R R, D). A region without any weight, all background or padding, has 0.
    """
    foreground = 1 - attention
    sums = torch.einsum("bdhw,bhw,bkrh,bksw->bkrsd", features, foreground, coverage.rows, coverage.columns)
    weights = torch.einsum("bhw,bkrh,bksw->bkrs", foreground, coverage.rows, coverage.columns)
    tiny = torch.finfo(weights.dtype).tiny
    return (sums / weights.clamp(min=tiny)[..., None]).flatten(2, 3)
