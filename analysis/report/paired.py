"""Paired comparison of two arms: differences between runs with the same seeds and the same data order.

Pairing removes what both runs share, the initial weights and the order of the samples, which between seeds moves the
loss more than a placement does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.report.arms import Arm, Cell, Run
from analysis.runs import Record, column

CONFIDENCE = "95 %"
# Quantiles 0.975 of Student's t for 1 to 30 degrees of freedom (a test integrates the density); beyond 30, that of 30,
# which is at most 4 % too large.
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604,
         2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555,
         2.0518, 2.0484, 2.0452, 2.0423)  # fmt: skip
_ROUNDING = 1e-9
Sign = Literal[-1, 0, 1]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Differences of a quantity over pairs of runs, first arm minus second.

    Attributes:
        values: The difference of each pair.
        other_data: Number of runs with equal seeds that are not paired, because their samples_hash differ.
    """

    values: tuple[float, ...]
    other_data: int = 0

    @property
    def count(self) -> int:
        """Number of pairs."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean difference; NaN without pairs."""
        return math.fsum(self.values) / self.count if self.values else math.nan

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean by Student's t; None for fewer than two pairs."""
        if self.count < 2:
            return None
        half = t_quantile(self.count - 1) * float(np.std(self.values, ddof=1)) / math.sqrt(self.count)
        return self.mean - half, self.mean + half

    @property
    def sign(self) -> Sign:
        """-1 or 1 where the interval lies below or above zero; 0 where it includes zero or does not exist.

        Equal differences have an interval without width; if they are rounding errors, they are zero.
        """
        if self.interval is None:
            return 0
        low, high = self.interval
        return 1 if low > _ROUNDING else -1 if high < -_ROUNDING else 0


def t_quantile(degrees: int) -> float:
    """Return the 0.975 quantile of Student's t; beyond 30 degrees of freedom, that for 30."""
    return T_975[min(degrees, len(T_975)) - 1]


def pairs(first: Cell, second: Cell) -> tuple[list[tuple[Run, Run]], int]:
    """Return the pairs of runs with the same seeds and the same samples, and how many differ in samples alone."""
    matched, other_data = [], 0
    remaining = list(second.runs)
    for run in first.runs:
        partners = [other for other in remaining if other.seeds == run.seeds]
        partner = next((other for other in partners if have_same_samples(run.record, other.record)), None)
        if partner is not None:
            remaining.remove(partner)
            matched.append((run, partner))
        elif partners:
            other_data += 1
    return matched, other_data


def have_same_samples(first: Record, second: Record) -> bool:
    """Return whether two runs saw the same samples at every step that both logged, as far as samples_hash is there."""
    one, other = _hashes(first), _hashes(second)
    return all(one[step] == other[step] for step in one.keys() & other.keys())


def difference(first: Cell, second: Cell, value: Callable[[Run], float | None]) -> Difference:
    """Return the paired differences of a quantity; pairs in which a run lacks it do not count."""
    matched, other_data = pairs(first, second)
    found = [(value(one), value(other)) for one, other in matched]
    finite = [one - other for one, other in found if _is_finite(one) and _is_finite(other)]  # type: ignore[operator]
    return Difference(values=tuple(finite), other_data=other_data)


def score_difference(first: Cell | None, second: Cell | None) -> Difference:
    """Return the paired difference in the final score between the finished runs of two cells."""
    if first is None or second is None:
        return Difference(values=())
    return difference(first, second, lambda run: run.score if run.has_final_score else None)


def at_best(first: Arm, second: Arm) -> Difference:
    """Return the paired difference in the final score, each arm at its own best learning rate."""
    return score_difference(first.best, second.best)


def sensitivity_difference(first: Arm, second: Arm, rates: Sequence[float]) -> Difference:
    """Return the paired difference in learning-rate sensitivity over `rates`: one value per choice of seeds."""
    if len(rates) < 2:
        return Difference(values=())
    by_seeds: dict[str, list[tuple[float, float]]] = {}
    other_data = 0
    for rate in rates:
        one, other = first.at(rate), second.at(rate)
        if one is None or other is None:
            return Difference(values=())
        matched, differing = pairs(one, other)
        other_data += differing
        for a, b in matched:
            by_seeds.setdefault(a.seeds, []).append((a.capped_loss, b.capped_loss))
    whole = [np.array(losses).T for losses in by_seeds.values() if len(losses) == len(rates)]  # (2, rates) each
    values = [float((a.mean() - a.min()) - (b.mean() - b.min())) for a, b in whole]
    return Difference(values=tuple(value for value in values if math.isfinite(value)), other_data=other_data)


def sign_test(values: Sequence[float]) -> float:
    """Return the two-sided p-value of the exact sign test: how likely so uneven a split is, if both were equal.

    Zeros do not count. It takes at least six differences of one sign to get below 0.05.
    """
    above, below = sum(value > 0 for value in values), sum(value < 0 for value in values)
    count, few = above + below, min(above, below)
    tail = sum(math.comb(count, k) for k in range(few + 1)) / 2**count
    return min(1.0, 2 * tail)


def spread_sign(first: np.ndarray, second: np.ndarray) -> Sign:
    """Return which of two paired samples, (N,) each, varies less: -1 the first, 1 the second, 0 if it cannot be told.

    The test of Pitman (1939) and Morgan (1939) for equal variances of pairs: sums and differences of the pairs are
    uncorrelated if the variances are equal. It needs three pairs.
    """
    if len(first) < 3:
        return 0
    sums, differences = first + second, first - second
    sums, differences = sums - sums.mean(), differences - differences.mean()
    scale = math.sqrt(float(sums @ sums) * float(differences @ differences))
    if scale <= 1e-24:
        return 0
    r = float(sums @ differences) / scale
    t = r * math.sqrt((len(first) - 2) / max(1.0 - r * r, 1e-15))
    return 0 if abs(t) <= t_quantile(len(first) - 2) else (1 if t > 0 else -1)


def _hashes(record: Record) -> dict[int, str]:
    rows = record.training
    both = zip(column(rows, "step"), column(rows, "samples_hash"), strict=True)
    return {int(step): str(text) for step, text in both if text is not None}


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
