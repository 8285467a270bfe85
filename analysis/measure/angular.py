"""Angular distance between vectors, such as the residual stream before and after a layer.

d(x, y) = arccos(cos(x, y)) / pi (Gromov et al. 2024, arXiv 2403.17887, eq. 4): 0 for the same direction, 0.5 for
orthogonal vectors, 1 for opposite ones. Shapes: N tokens, D model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 2**22  # measured at a time: 32 MiB in fp64


def directions(vectors: Tensor) -> Tensor:
    """Return the unit vectors along the last dimension, fp64; a zero vector has no direction and stays zero."""
    vectors = vectors.double()
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / lengths.where(lengths != 0, 1.0)


def between(one: Tensor, other: Tensor) -> Tensor:
    """Return the angular distances of unit vectors along the last dimension.

    The angle is 2 atan2(||u - v||, ||u + v||) of the unit vectors u and v (Kahan), which is exact where arccos is not:
    near 0 and pi.
    """
    return 2 / math.pi * torch.atan2((one - other).norm(dim=-1), (one + other).norm(dim=-1))


def angular_distance(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the angular distances over tokens and the number of these tokens, () fp64 each.

    A token whose vector is zero on either side is left out; one that is not finite makes the sum NaN.

    Args:
        before: (..., D), any floating dtype.
        after: (..., D), the same tokens.
    """
    total = torch.zeros((), dtype=torch.float64, device=before.device)
    count = torch.zeros_like(total)
    rows = max(1, _CHUNK_ELEMENTS // max(1, before.shape[-1]))
    pairs = zip(before.flatten(0, -2).split(rows), after.flatten(0, -2).split(rows), strict=True)
    for x, y in pairs:  # (N, D)
        u, v = directions(x), directions(y)
        counted = u.any(dim=-1) & v.any(dim=-1)  # NaN is not zero
        total += between(u, v).where(counted, 0.0).sum()
        count += counted.sum()
    return total, count
