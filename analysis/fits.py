"""Fits of a quantity's growth with depth: linear, exponential or constant.

Peri-LN's variance should grow linearly, Pre-LN's may grow exponentially (arXiv 2502.02732, section 3). Both curves have
two parameters and are fitted by least squares to the variance itself, so their R2 are comparable; a line through
log-variances would answer a different question, in which small values count most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

CONSTANT_WITHIN = 1.05  # max / min up to which a quantity is called constant over depth
ALIKE_WITHIN = 0.005  # difference in R2 below which two fits tie
# R2 from which a fit describes a curve. A curve that rises and then stays, as the variance of Peri-LN may, reaches 0.78
# with a line and 0.68 with an exponential: the better of two bad fits is no finding.
DESCRIBES_FROM = 0.9
_MAX_EXPONENT = 60.0  # |rate| times the range of depths that is searched: a factor of 1e26


@dataclass(frozen=True, kw_only=True)
class Fit:
    """`intercept + rate * depth` (linear) or `intercept * exp(rate * depth)` (exponential).

    `r2` is 1 - residual / total sum of squares of the values; NaN where the values do not vary at all.
    """

    kind: Literal["linear", "exponential"]
    intercept: float
    rate: float
    r2: float

    def __call__(self, depth: np.ndarray) -> np.ndarray:
        """Return the curve at these depths."""
        if self.kind == "linear":
            return self.intercept + self.rate * depth
        return self.intercept * np.exp(self.rate * depth)

    @property
    def doubling_depth(self) -> float:
        """Blocks in which an exponential doubles; negative where it halves, inf where it is flat."""
        return math.log(2) / self.rate if abs(self.rate) > 1e-9 else math.inf


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Both fits of one curve, and which of them describes it."""

    linear: Fit
    exponential: Fit
    ratio: float  # largest over smallest value
    points: int  # fitted values

    @property
    def verdict(self) -> Literal["constant", "linear", "exponential", "either", "neither"]:
        """What the curve is.

        Constant within 5 %; else the fit with the higher R2, if that is at least 0.9; either if both fits reach 0.9 and
        tie; neither if none reaches it.
        """
        if self.ratio <= CONSTANT_WITHIN:
            return "constant"
        line, exponential = self.linear.r2, self.exponential.r2
        if not max(line, exponential) >= DESCRIBES_FROM:
            return "neither"
        if min(line, exponential) >= DESCRIBES_FROM and abs(line - exponential) < ALIKE_WITHIN:
            return "either"
        return "linear" if line > exponential else "exponential"

    @property
    def slope_text(self) -> str:
        """The slope of the line in words: "2.1 per block"."""
        return f"{self.linear.rate:.3g} per block"

    @property
    def doubling_text(self) -> str:
        """The rate of the exponential in words: "doubling every 3.2 blocks"."""
        word, depth = ("halving", -1) if self.exponential.rate < 0 else ("doubling", 1)
        return f"{word} every {depth * self.exponential.doubling_depth:.3g} blocks"

    @property
    def r2_text(self) -> str:
        """How well both fit: "R2 0.998 for a line, 0.957 for an exponential"."""
        return f"R2 {self.linear.r2:.3f} for a line, {self.exponential.r2:.3f} for an exponential"


def fit_growth(depth: np.ndarray, values: np.ndarray) -> Growth | None:
    """Fit both curves; None for fewer than three finite values.

    Args:
        depth: Depths in blocks, (N,).
        values: Positive values there, (N,); what is not finite is left out.
    """
    finite = np.isfinite(values) & np.isfinite(depth)
    depth, values = depth[finite].astype(float), values[finite].astype(float)
    if len(np.unique(depth)) < 3:
        return None
    low, high = values.min(), values.max()
    ratio = float(high / low) if low > 0 else math.inf
    return Growth(
        linear=fit_line(depth, values), exponential=fit_exponential(depth, values), ratio=ratio, points=len(values)
    )


def fit_line(depth: np.ndarray, values: np.ndarray) -> Fit:
    """Return the least-squares line through (N,) values."""
    centered = depth - depth.mean()
    rate = float(centered @ (values - values.mean()) / (centered @ centered))
    intercept = float(values.mean() - rate * depth.mean())
    return Fit(kind="linear", intercept=intercept, rate=rate, r2=_r2(values, intercept + rate * depth))


def fit_exponential(depth: np.ndarray, values: np.ndarray) -> Fit:
    """Return the least-squares exponential through (N,) values.

    For a given rate the best factor is known, so one number is searched for: on a grid, then by golden section.
    """
    span = float(depth.max() - depth.min())

    def shape(rates: np.ndarray) -> np.ndarray:  # (R,) -> (R, N), at most 1, so that it cannot overflow
        exponents = rates[:, None] * depth
        return np.exp(exponents - exponents.max(axis=1, keepdims=True))

    def factor(rates: np.ndarray) -> np.ndarray:
        curves = shape(rates)
        return curves @ values / np.square(curves).sum(axis=1)

    def residual(rates: np.ndarray) -> np.ndarray:
        return np.square(values - factor(rates)[:, None] * shape(rates)).sum(axis=1)

    grid = np.linspace(-_MAX_EXPONENT / span, _MAX_EXPONENT / span, 2401)
    best = int(np.argmin(residual(grid)))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    rate = _golden_section(lambda value: float(residual(np.array([value]))[0]), low, high)
    at = np.array([rate])
    intercept = float(factor(at)[0]) * math.exp(-float((rate * depth).max()))
    return Fit(kind="exponential", intercept=intercept, rate=rate, r2=_r2(values, factor(at)[0] * shape(at)[0]))


def _golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function with one valley between `low` and `high` is least."""
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(80):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if function(left) <= function(right) else (left, high)
    return (low + high) / 2


def _r2(values: np.ndarray, fitted: np.ndarray) -> float:
    total = float(np.square(values - values.mean()).sum())
    # If all values are equal, the total is nothing but rounding error, and so would be the quotient.
    if total <= len(values) * (1e-12 * float(np.abs(values).max())) ** 2:
        return math.nan
    return 1.0 - float(np.square(values - fitted).sum()) / total


@dataclass(frozen=True, kw_only=True)
class Uniformity:
    """How evenly a positive quantity is spread over layers: 1 and 0 where all are equal."""

    max_over_min: float
    coefficient_of_variation: float  # population standard deviation over mean


def uniformity(values: np.ndarray) -> Uniformity | None:
    """Return the uniformity of (L,) values over layers, None for fewer than two finite ones."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return None
    low, mean = float(values.min()), float(values.mean())
    return Uniformity(
        max_over_min=float(values.max()) / low if low > 0 else math.inf,
        coefficient_of_variation=float(values.std()) / mean if mean > 0 else math.inf,
    )
