"""Fits against curves whose answer can be written down."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.fits import DESCRIBES_FROM, Fit, Growth, fit_exponential, fit_growth, fit_line, uniformity

DEPTH = np.arange(1, 49) / 2  # a 24-block decoder: half a block per sub-layer


def test_an_exact_line_is_found() -> None:
    growth = fit_growth(DEPTH, 0.7 + 2.5 * DEPTH)
    assert growth is not None
    assert (growth.linear.rate, growth.linear.intercept) == pytest.approx((2.5, 0.7), rel=1e-12)
    assert growth.linear.r2 == pytest.approx(1.0, abs=1e-12)
    assert growth.exponential.r2 < 0.97
    assert growth.verdict == "linear"


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.7, -0.4])
def test_an_exact_exponential_is_found(rate: float) -> None:
    fit = fit_exponential(DEPTH, 0.05 * np.exp(rate * DEPTH))
    # A golden section stops at the square root of the precision.
    assert (fit.rate, fit.intercept) == pytest.approx((rate, 0.05), rel=1e-5)
    assert fit.doubling_depth == pytest.approx(math.log(2) / rate, rel=1e-5)
    assert fit.r2 == pytest.approx(1.0, abs=1e-9)
    assert fit(DEPTH) == pytest.approx(0.05 * np.exp(rate * DEPTH), rel=1e-4)


def test_a_doubling_per_block_is_called_exponential() -> None:
    growth = fit_growth(DEPTH, 0.05 * 2.0**DEPTH)
    assert growth is not None
    assert growth.verdict == "exponential"
    assert growth.exponential.doubling_depth == pytest.approx(1.0, rel=1e-6)
    assert growth.linear.r2 < 0.4


def test_a_constant_is_neither() -> None:
    growth = fit_growth(DEPTH, np.full(48, 0.998))
    assert growth is not None
    assert growth.verdict == "constant"
    assert growth.ratio == 1.0
    assert math.isnan(growth.linear.r2)
    assert abs(growth.linear.rate) < 1e-12


def test_noise_is_described_by_neither() -> None:
    values = np.random.default_rng(0).uniform(1, 2, len(DEPTH))
    growth = fit_growth(DEPTH, values)
    assert growth is not None
    assert growth.verdict == "neither"


def test_a_plateau_is_neither() -> None:
    """It rises over ten blocks and then stays: a line is the better fit, and no good one."""
    growth = fit_growth(DEPTH, np.minimum(DEPTH, 10.0))
    assert growth is not None
    assert 0.5 < growth.exponential.r2 < growth.linear.r2 < DESCRIBES_FROM
    assert growth.verdict == "neither"


def test_a_fit_just_good_enough_counts_alone() -> None:
    def of(line: float, exponential: float) -> str:
        fits = [Fit(kind="linear", intercept=0, rate=1, r2=r2) for r2 in (line, exponential)]
        return Growth(linear=fits[0], exponential=fits[1], ratio=9.0, points=48).verdict

    assert of(0.901, 0.899) == "linear"
    assert of(0.899, 0.901) == "exponential"
    assert of(0.904, 0.901) == "either"
    assert of(0.899, 0.5) == "neither"
    assert of(math.nan, math.nan) == "neither"


def test_a_short_line_does_not_decide() -> None:
    growth = fit_growth(DEPTH, 100 + DEPTH)
    assert growth is not None
    assert growth.verdict == "either"


def test_r2_is_that_of_the_variance_not_of_its_logarithm() -> None:
    values = np.array([1.0, 2.0, 4.0, 20.0])
    fit = fit_line(np.arange(4.0), values)
    residual = values - np.polyval(np.polyfit(np.arange(4), values, 1), np.arange(4))
    assert fit.r2 == pytest.approx(1 - (residual**2).sum() / ((values - values.mean()) ** 2).sum())


def test_the_exponential_is_the_least_squares_one() -> None:
    values = 3.0 * np.exp(0.2 * DEPTH) * np.random.default_rng(1).uniform(0.8, 1.2, len(DEPTH))
    fit = fit_exponential(DEPTH, values)
    best = ((values - fit(DEPTH)) ** 2).sum()
    for factor, rate in ((1.01, 1.0), (0.99, 1.0), (1.0, 1.01), (1.0, 0.99), (1.02, 0.995)):
        near = fit.intercept * factor * np.exp(fit.rate * rate * DEPTH)
        assert ((values - near) ** 2).sum() > best


def test_gaps_are_left_out_and_two_points_are_not_fitted() -> None:
    with_gap = np.where(DEPTH == 3.0, np.nan, 1.0 + DEPTH)
    growth = fit_growth(DEPTH, with_gap)
    assert growth is not None
    assert growth.linear.rate == pytest.approx(1.0)
    assert fit_growth(DEPTH[:2], DEPTH[:2]) is None
    assert fit_growth(DEPTH[:3], np.array([1.0, np.nan, 2.0])) is None


def test_uniformity_of_equal_and_of_two_layers() -> None:
    equal = uniformity(np.full(6, 0.3))
    assert equal is not None
    assert (equal.max_over_min, equal.coefficient_of_variation) == pytest.approx((1.0, 0.0))
    spread = uniformity(np.array([1.0, 3.0, np.nan]))
    assert spread is not None
    assert (spread.max_over_min, spread.coefficient_of_variation) == pytest.approx((3.0, 0.5))
    dead = uniformity(np.array([0.0, 1.0]))
    assert dead is not None
    assert math.isinf(dead.max_over_min)
    assert uniformity(np.array([1.0])) is None
