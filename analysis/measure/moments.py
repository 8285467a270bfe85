"""Exact, mergeable statistics of tensors over micro-batches, ranks and windows of text.

A row of statistics is a tensor of `len(Moments._fields)` fp64 numbers; several rows form a matrix. `merge` combines
them, and the result does not depend on how the elements were partitioned (beyond rounding): no average of averages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

FP16_MAX = 65504.0

_CHUNK_ELEMENTS = 2**24  # measured at a time: 64 MiB in fp32
_FIRST_TOKENS = 4  # tried first in the search for the largest ratio


class Moments(NamedTuple):
    """Statistics of a set of elements that belong to tokens (vectors along the feature dimension)."""

    elements: float
    mean: float
    squares: float  # sum of squared distances from the mean
    abs_sum: float
    max_abs: float
    overflow: float  # elements whose magnitude is beyond FP16_MAX or not a number
    top1_over_median: float  # of a token's magnitudes, the largest over tokens

    def described(self) -> dict[str, float]:
        """Return the metrics to log.

        `variance` is over all elements of all tokens, not the mean of the tokens' variances. `top1_over_median` is
        infinite where half of a token's features are zero.
        """
        if not self.elements:
            return {"numel": 0}
        variance = self.squares / self.elements
        return {
            "numel": int(self.elements),
            "variance": variance,
            "mean_abs": self.abs_sum / self.elements,
            "max_abs": self.max_abs,
            "rms": math.sqrt(variance + self.mean**2),
            "fp16_overflow_share": self.overflow / self.elements,
            "top1_over_median": self.top1_over_median,
        }


def measure(values: Tensor, *, feature_dim: int = -1) -> Tensor:
    """Return the statistics of a tensor as a row, (7,) fp64 on its device.

    Args:
        values: Any shape and floating dtype; elements along `feature_dim` are a token's features.
        feature_dim: -1 for the (B, T, D) of transformers, 1 for the (B, C, H, W) of convolutions.
    """
    values = values.detach()
    tokens = (
        values.movedim(feature_dim, -1).reshape(-1, values.shape[feature_dim]) if values.ndim else values.view(1, 1)
    )
    rows = max(1, _CHUNK_ELEMENTS // max(1, tokens.shape[1]))
    return merge(_measure_chunk(chunk) for chunk in tokens.split(rows) if chunk.numel())


def merge(parts: Iterable[Tensor]) -> Tensor:
    """Join statistics of disjoint elements, in the order given.

    Mean and squares by the pairwise formulas of Chan, Golub and LeVeque (1979).

    Args:
        parts: (..., 7) fp64 each, on one device; a part of count 0 changes nothing.
    """
    parts = iter(parts)
    first = next(parts, torch.zeros(len(Moments._fields), dtype=torch.float64))
    return reduce(_merge_two, parts, first)


def _merge_two(a: Tensor, b: Tensor) -> Tensor:
    count_a, mean_a, squares_a, abs_a, max_a, overflow_a, ratio_a = a.unbind(-1)
    count_b, mean_b, squares_b, abs_b, max_b, overflow_b, ratio_b = b.unbind(-1)
    count = count_a + count_b
    share = count_b / count.clamp(min=1)
    distance = mean_b - mean_a
    joined = (
        count,
        mean_a + distance * share,
        squares_a + squares_b + distance.square() * count_a * share,
        abs_a + abs_b,
        torch.maximum(max_a, max_b),
        overflow_a + overflow_b,
        torch.maximum(ratio_a, ratio_b),
    )
    return torch.stack(torch.broadcast_tensors(*joined), dim=-1)


def _measure_chunk(tokens: Tensor) -> Tensor:
    """Measure (N, D) in fp32, or in the fp64 that they have; the sums are in fp64."""
    tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
    numel, rough_mean = tokens.numel(), tokens.mean()
    centered = tokens - rough_mean
    rest = centered.sum(dim=1).double().sum() / numel  # what fp32 lost of the mean
    magnitudes = tokens.abs()
    tops = magnitudes.amax(dim=1)
    sums = magnitudes.sum(dim=1)
    max_abs = tops.max()
    largest = max_abs.item()  # each number that is read makes the host wait for the device
    within = numel if largest <= FP16_MAX else (magnitudes <= FP16_MAX).sum()
    top1_over_median = _largest_top1_over_median(magnitudes, tops, sums) if math.isfinite(largest) else math.nan
    row = (
        rest.new_full((), numel),
        rough_mean.double() + rest,
        centered.square_().sum(dim=1).double().sum() - numel * rest.square(),
        sums.double().sum(),
        max_abs,
        rest.new_full((), numel) - within,
        rest.new_full((), top1_over_median),
    )
    return torch.stack([figure.double() for figure in row])


def _largest_top1_over_median(magnitudes: Tensor, tops: Tensor, sums: Tensor) -> float:
    """Return the largest ratio of a token's largest magnitude to its (lower) median.

    Sorting every token costs ten times as much as all other statistics. The few tokens whose largest element stands
    out most give a ratio R; another token can only beat it if at least half of its magnitudes lie below its
    largest / R, which is a cheap comparison. Only tokens that pass it are sorted; the result is the same as sorting
    all of them.

    Args:
        magnitudes: (N, D), finite, not negative.
        tops: (N,) the largest of each token.
        sums: (N,) their sums.
    """
    size = magnitudes.shape[1]
    middle = (size + 1) // 2  # rank of the lower median, from 1
    first = (tops / sums).nan_to_num().topk(min(_FIRST_TOKENS, len(tops))).indices
    largest = _top1_over_median(magnitudes[first], middle).max().item()
    if not 0 < largest < math.inf:
        return largest
    above_less_below = (magnitudes - (tops / largest).unsqueeze(1)).sign_().sum(dim=1)
    candidates = magnitudes[above_less_below <= size - 2 * middle]
    return max(largest, _top1_over_median(candidates, middle).max().item()) if len(candidates) else largest


def _top1_over_median(magnitudes: Tensor, middle: int) -> Tensor:
    """Return the ratio of each token; 0 for one that is all zeros."""
    ordered = magnitudes.sort(dim=1).values
    return torch.where(ordered[:, -1] > 0, ordered[:, -1] / ordered[:, middle - 1], 0.0)


HISTOGRAM_BINS = 256  # one per exponent of fp32


def exponent_histogram(values: Tensor) -> Tensor:
    """Count the elements by the exponent of their magnitude, (256,) int64; such counts add up exactly.

    Bin e holds 2^(e-127) <= |x| < 2^(e-126); bin 0 zeros and subnormals, bin 255 infinities and NaN.
    """
    bits = values.detach().float().reshape(-1).view(torch.int32)
    return torch.bincount(bits.bitwise_right_shift(23).bitwise_and_(0xFF), minlength=HISTOGRAM_BINS)
