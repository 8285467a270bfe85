"""Gaussian filtering in a feature space of a few dimensions, on the permutohedral lattice.

Adams, Baek and Davis, Fast high-dimensional filtering using the permutohedral lattice, Eurographics 2010. A point is
spread over the d + 1 corners of the simplex that holds it, the lattice is blurred along its d + 1 axes, and each point
reads its corners again: linear in the number of points, where the exact sum is quadratic.

Shapes: N points, d dimensions of a feature, C channels of a value, M lattice points in use.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class PermutohedralLattice:
    """The lattice around a set of points; `blur` filters values given at these points.

    It approximates sum_j exp(-|f_i - f_j|^2 / 2) v_j up to a constant factor, which a normalization takes out.
    """

    def __init__(self, features: Tensor) -> None:
        """Place points on the lattice.

        Args:
            features: (N, d), in units of the Gaussian's standard deviation.

        Raises:
            ValueError: The points spread so widely that a lattice point cannot be numbered in 64 bits.
        """
        nearest, rank, weights = _enclosing_simplex(_elevate(features.double()))
        corners = nearest[:, None] + _corner_offsets(rank)  # (N, d + 1, d + 1)
        number = _Numbering(corners)
        points, index = number(corners).unique(return_inverse=True)  # (M,), (N, d + 1)
        self.weights = weights.to(features.dtype)  # (N, d + 1), sum 1
        self.corners = index
        self.neighbors = [_neighbors(points, number.step(axis)) for axis in range(corners.shape[-1])]
        self.size = len(points)

    def blur(self, values: Tensor) -> Tensor:
        """Filter values (N, C) at the points; returns (N, C)."""
        channels = values.shape[1]
        spread = (self.weights[..., None] * values[:, None]).flatten(0, 1)  # (N (d + 1), C)
        lattice = values.new_zeros(self.size + 1, channels)  # the last row stands for all points not in use
        lattice.index_add_(0, self.corners.flatten(), spread)
        for before, after in self.neighbors:
            lattice[:-1] = lattice[:-1] + (lattice[before] + lattice[after]) / 2
        return (self.weights[..., None] * lattice[self.corners]).sum(dim=1)


def _elevate(features: Tensor) -> Tensor:
    """Map (N, d) to the plane of d + 1 coordinates that sum to 0, scaled so that the blur has unit variance."""
    d = features.shape[1]
    k = torch.arange(1, d + 1, dtype=features.dtype, device=features.device)
    scaled = features * (d + 1) * math.sqrt(2 / 3) / (k * (k + 1)).sqrt()
    sums = scaled.flip(1).cumsum(1).flip(1)  # of coordinate i and all after it
    zero = torch.zeros_like(scaled[:, :1])
    return torch.cat((sums, zero), dim=1) - torch.cat((zero, k * scaled), dim=1)


def _enclosing_simplex(elevated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the simplex around each point (N, d + 1) of the plane.

    Returns:
        The lattice point nearest to it whose coordinates are multiples of d + 1 (N, d + 1) int64; the rank of each
        coordinate's remainder, from largest to smallest (N, d + 1) int64; and the barycentric weights of the corners.
    """
    n, size = elevated.shape  # size = d + 1
    rounded = (elevated / size).round()
    excess = rounded.sum(dim=1, keepdim=True).long()  # 0 for a point of the plane
    order = (elevated / size - rounded).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(size, device=order.device).expand(n, size)) + excess
    # Of the coordinates with the smallest remainders as many are too large as the sum exceeds 0, and the reverse.
    correction = (rank < 0).long() - (rank >= size).long()
    rank = rank + size * correction
    nearest = size * (rounded.long() + correction)
    remainder = (elevated - nearest) / size
    sorted_remainder = torch.empty_like(remainder).scatter_(1, rank, remainder)  # descending
    steps = sorted_remainder[:, :-1] - sorted_remainder[:, 1:]  # weight of corner d, d - 1, ..., 1 (N, d)
    first = 1 + sorted_remainder[:, -1:] - sorted_remainder[:, :1]
    return nearest, rank, torch.cat((first, steps.flip(1)), dim=1)


def _corner_offsets(rank: Tensor) -> Tensor:
    """Return the corners of each simplex relative to its nearest point: (N, corner, coordinate) int64."""
    size = rank.shape[1]
    corner = torch.arange(size, device=rank.device)[:, None]
    return torch.where(rank[:, None] < size - corner, corner, corner - size)


class _Numbering:
    """A number for every lattice point of a region, such that all neighbors along an axis differ by the same step."""

    def __init__(self, corners: Tensor) -> None:
        flat = corners.flatten(0, 1)[:, :-1]  # the last coordinate follows from the others
        margin = corners.shape[-1]  # neighbors lie up to d further
        self.lowest = flat.amin(dim=0) - margin
        extent = (flat.amax(dim=0) + margin - self.lowest + 1).tolist()
        if math.prod(extent) >= 2**63:
            raise ValueError(f"the points spread over {extent} lattice steps, too many to number; use wider Gaussians")
        places = [math.prod(extent[axis + 1 :]) for axis in range(len(extent))]
        self.places = torch.tensor(places, device=corners.device)

    def __call__(self, corners: Tensor) -> Tensor:
        """Return the number of each lattice point: (..., d + 1) to (...)."""
        return ((corners[..., :-1] - self.lowest) * self.places).sum(dim=-1)

    def step(self, axis: int) -> int:
        """Return the difference of numbers to the next point along an axis: +1 in all coordinates, -d in one."""
        direction = torch.ones_like(self.places)
        if axis < len(direction):
            direction[axis] = -len(direction)
        return int((direction * self.places).sum())


def _neighbors(points: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return the rows of both neighbors of each lattice point; M where there is none in use."""
    return _rows_of(points - step, points), _rows_of(points + step, points)


def _rows_of(wanted: Tensor, points: Tensor) -> Tensor:
    row = torch.searchsorted(points, wanted).clamp(max=len(points) - 1)
    return torch.where(points[row] == wanted, row, len(points))
