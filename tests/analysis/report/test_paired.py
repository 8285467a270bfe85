"""Paired statistics against closed forms and an independent integration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from analysis.report.arms import Arm, arms_of
from analysis.report.paired import (
    T_975,
    Difference,
    at_best,
    sensitivity_difference,
    sign_test,
    spread_sign,
    t_quantile,
)
from analysis.runs import Record
from tests.analysis.report.swept import run


def two_arms(records: list[Record]) -> tuple[Arm, Arm]:
    arms = {arm.placement: arm for arm in arms_of(records)}
    return arms["peri"], arms["pre"]


@pytest.mark.parametrize("degrees", [*range(1, 31)])
def test_the_quantiles_of_t_leave_a_fortieth_above_them(degrees: int) -> None:
    """The density, integrated from 0 to the quantile by Simpson's rule, is 0.475; a last digit more or less is not."""
    factor = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))

    def below(quantile: float) -> float:
        x = np.linspace(0, quantile, 20001)
        density = factor * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
        weights = np.ones(len(x))
        weights[1:-1:2], weights[2:-1:2] = 4, 2
        return float(weights @ density) * (x[1] - x[0]) / 3

    quantile = T_975[degrees - 1]
    assert below(quantile - 6e-5) < 0.475 < below(quantile + 6e-5)


def test_beyond_the_table_the_last_quantile_counts() -> None:
    assert t_quantile(31) == t_quantile(1000) == T_975[29]
    assert T_975[29] / 1.959964 < 1.043


def test_three_pairs_have_the_interval_of_the_textbook() -> None:
    """-0.0123, -0.0167, -0.0166: mean -0.0152, standard deviation 0.002512, so t = 4.3027 gives +- 0.00624."""
    found = Difference(values=(-0.0123, -0.0167, -0.0166))
    assert found.mean == pytest.approx(-0.0152)
    assert found.interval == pytest.approx((-0.02144, -0.00896), abs=1e-5)
    assert found.sign == -1
    assert Difference(values=(-0.01, 0.02)).sign == 0
    assert Difference(values=(-1e-16, -1e-16, -1e-16)).sign == 0
    assert Difference(values=(-0.01,)).interval is None
    assert math.isnan(Difference(values=()).mean)


def test_each_arm_is_taken_at_its_own_best_rate() -> None:
    records = [run("pre", 3.0 + seed / 10 + (lr > 1e-3), lr=lr, seed=seed) for seed in range(3) for lr in (1e-3, 1e-2)]
    records += [
        run("peri", 2.9 + seed / 10 + (lr < 1e-2), lr=lr, seed=seed) for seed in range(3) for lr in (1e-3, 1e-2)
    ]
    peri, pre = two_arms(records)
    assert peri.best is not None
    assert pre.best is not None
    assert (peri.best.rate, pre.best.rate) == (1e-2, 1e-3)
    found = at_best(peri, pre)
    assert found.values == pytest.approx((-0.1, -0.1, -0.1))
    assert found.sign == -1


def test_only_runs_with_equal_seeds_are_paired() -> None:
    records = [run("pre", 3.0, seed=seed) for seed in (0, 1, 2)] + [run("peri", 2.5, seed=seed) for seed in (1, 2, 3)]
    assert at_best(*two_arms(records)).count == 2


def test_runs_that_saw_other_samples_are_not_paired() -> None:
    records = [run("pre", 3.0, seed=0), run("pre", 3.0, seed=1), run("pre", 3.0, seed=2, samples=None)]
    records += [run("peri", 2.5, seed=0), run("peri", 2.5, seed=1, samples="other"), run("peri", 2.5, seed=2)]
    found = at_best(*two_arms(records))
    assert (found.count, found.other_data) == (2, 1)  # without hashes, nothing speaks against a pair


def test_unfinished_and_diverged_runs_are_not_paired() -> None:
    records = [run("pre", 3.0, seed=seed) for seed in range(3)]
    records += [run("peri", 2.5), run("peri", 2.5, seed=1, steps_done=5), run("peri", None, seed=2)]
    assert at_best(*two_arms(records)).count == 1


def test_a_constant_added_to_all_runs_of_a_seed_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        seeds, rates = range(4), (1e-3, 3e-3)
        losses = {key: rng.uniform(2, 5) for key in itertools.product(("pre", "peri"), rates, seeds)}
        shifts = rng.uniform(-1, 1, len(seeds))
        before, after = (
            two_arms([run(p, loss + by[s], lr=lr, seed=s) for (p, lr, s), loss in losses.items()])
            for by in (np.zeros(len(seeds)), shifts)
        )
        assert at_best(*after).values == pytest.approx(at_best(*before).values)
        assert sensitivity_difference(*after, rates).values == pytest.approx(
            sensitivity_difference(*before, rates).values
        )


def test_the_order_of_the_runs_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    records = [
        run(p, rng.uniform(2, 5), lr=lr, seed=seed)
        for p, lr, seed in itertools.product(("pre", "peri"), (1e-3, 3e-3, 1e-2), range(3))
    ]
    before = at_best(*two_arms(records))
    for _ in range(10):
        shuffled = [records[i] for i in rng.permutation(len(records))]
        assert at_best(*two_arms(shuffled)) == before


def test_the_sign_test_is_binomial() -> None:
    assert sign_test([-1] * 6) == pytest.approx(2 / 2**6)
    assert sign_test([-1] * 5) == pytest.approx(2 / 2**5)
    assert sign_test([-1, -1, 1, 0, 0]) == 1.0
    assert sign_test([0, 0]) == 1.0


def test_spread_over_seeds_is_compared_in_pairs() -> None:
    seeds = np.array([-1.0, 0.3, 0.9, -0.2, 0.1])
    assert spread_sign(3 + 0.1 * seeds, 3 + seeds) == -1
    assert spread_sign(3 + seeds, 3 + 0.1 * seeds) == 1
    assert spread_sign(3 + seeds, 3 + seeds[::-1]) == 0  # equal variances
    assert spread_sign(seeds[:2], 9 * seeds[:2]) == 0  # two pairs
    assert spread_sign(np.full(3, 3.0), np.full(3, 3.0)) == 0


def test_two_samples_of_one_distribution_are_told_apart_in_one_of_twenty() -> None:
    """Measured: 0.047 of 4,000; a one-sided quantile would give 0.1."""
    rng = np.random.default_rng(2)
    told = [spread_sign(rng.normal(size=5), rng.normal(size=5)) != 0 for _ in range(4000)]
    assert np.mean(told) == pytest.approx(0.05, abs=0.012)
