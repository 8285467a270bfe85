"""Ranking of the arms of a comparison: the table of arms, and their paired differences at equal learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.groups import axis_of
from analysis.metrics import LOSS, ValidationMetric, final, main_metric
from analysis.page.contents import Spread, Table
from analysis.report.arms import Arm, arms_of, baseline_of, common_rates, ranked, sensitivity
from analysis.report.claims import interval_text
from analysis.report.details import spike_count
from analysis.report.facts import parameter_count
from analysis.report.paired import CONFIDENCE, at_best, score_difference
from analysis.runs import Record, column


@dataclass(frozen=True, kw_only=True)
class Result:
    """The arms of a report; `unit` is that of the metric that ranks them, or empty."""

    arms: tuple[Arm, ...]
    baseline: Arm
    unit: str

    @property
    def metric(self) -> ValidationMetric:
        """The metric that ranks the arms."""
        return self.baseline.metric

    @property
    def records(self) -> list[Record]:
        """The runs of all arms."""
        return [run.record for arm in self.arms for run in arm.runs]

    @property
    def rates(self) -> list[float]:
        """All learning rates, ascending."""
        return sorted({rate for arm in self.arms for rate in arm.rates})


def result_of(records: Sequence[Record], baseline: str | None = None) -> Result | None:
    """Return the result of runs of one task, or None for fewer than two arms.

    Args:
        records: The runs.
        baseline: Arm that the others are compared with; None, or one that is not there: Pre-LN, else the first.
    """
    arms = arms_of(records)
    if len(arms) < 2:
        return None
    unit = "nats per token" if axis_of(records) == "tokens" and main_metric(records) == LOSS else ""
    return Result(arms=tuple(arms), baseline=baseline_of(arms, baseline), unit=unit)


def ranking(result: Result) -> Table:
    """Return the arms by score at the best learning rate, with paired differences from the baseline."""
    metric = result.metric
    score = titled(f"final {metric.phrase}", result.unit)
    several = [arm for arm in result.arms if len(arm.cells) > 1]
    rates = common_rates(several)
    name = result.baseline.name
    rows = [_ranked(arm, result, rates) for arm in ranked(result.arms)]
    own = ["tokens per parameter", "learning-rate sensitivity"] if metric == LOSS else [f"final {LOSS.phrase}"]
    better = f" (positive: higher {metric.words}, which is better)" if metric.sign < 0 else ""
    return Table(
        title=f"Arms by final {metric.phrase}",
        header=["arm", "best learning rate", score, "runs", f"difference from {name}", f"{CONFIDENCE} interval",
                "pairs", *own, "diverged", "loss spikes", "gradient spikes"],
        rows=rows,
        caption=f"Best learning rate: that of the {metric.best_word} mean final {metric.phrase} over the seeds, among "
        f"those at which all runs finished. The {metric.words} is the mean over these runs, with their range in "
        f"parentheses. Differences{better} "
        "are between pairs of runs with the same seeds and samples, each arm at its best learning rate, with the "
        f"{CONFIDENCE} interval of their mean by Student's t; it is not corrected for the number of arms, nor for the "
        f"choice of the learning rate. {_sensitivity_text(rates) if metric == LOSS else ''}Diverged runs and spikes "
        "are counted over all learning rates.",
        best=[(0, 2)] if rows[0][2] is not None else [],
    )  # fmt: skip


def equal_rates(result: Result) -> Table:
    """Return the paired differences from the baseline at equal learning rates, a row per arm and rate."""
    rows = []
    for arm in ranked(result.arms):
        for cell in arm.cells:
            if arm is result.baseline or result.baseline.at(cell.rate) is None:
                continue
            found = score_difference(cell, result.baseline.at(cell.rate))
            mean = found.mean if found.count else None
            rows.append([arm.name, cell.rate, mean, interval_text(found), found.count, cell.remark or None])
    header = ["arm", "learning rate", titled(f"difference from {result.baseline.name}", result.unit),
              f"{CONFIDENCE} interval", "pairs", "remark"]  # fmt: skip
    return Table(
        title="Paired differences at equal learning rates",
        header=header,
        rows=rows,
        caption=f"Final {result.metric.phrase} of finished runs with the same seeds and samples.",
    )


def _ranked(arm: Arm, result: Result, rates: Sequence[float]) -> list:
    cell = arm.best
    head = [
        arm.name,
        cell.rate if cell else None,
        _spread_of(cell.scores) if cell else None,
        len(cell.runs) if cell else None,
    ]
    paired: list = ["baseline", None, None]
    if arm is not result.baseline:
        found = at_best(arm, result.baseline)
        paired = [found.mean if found.count else None, interval_text(found), found.count]
    runs = arm.runs
    diverged = sum(run.outcome == "diverged" for run in runs)
    counts = [f"{diverged} of {len(runs)}", spike_count(runs, "loss"), spike_count(runs, "grad_norm")]
    if result.metric == LOSS:
        return [*head, *paired, tokens_per_parameter([arm]) or None, sensitivity(arm, rates), *counts]
    losses = [final(run.record, LOSS.column) for run in (cell.runs if cell else ()) if run.has_final_score]
    return [*head, *paired, _spread_of(np.array(losses)), *counts]


def _spread_of(values: np.ndarray) -> Spread | float | None:
    """Return the mean of values with their range; None where there is none, or one is not finite."""
    if not len(values) or not np.isfinite(values).all():
        return None
    low, high, mean = float(values.min()), float(values.max()), float(values.mean())
    return mean if low == high else Spread(mean, low, high)


def _sensitivity_text(rates: Sequence[float]) -> str:
    if len(rates) < 2:
        return "Learning-rate sensitivity takes two learning rates that the arms have in common. "
    listed = ", ".join(f"{rate:g}" for rate in rates)
    return (
        "Learning-rate sensitivity: mean over the learning rates of the final loss, or the first where that is lower, "
        f"less the lowest of them (arXiv 2309.14322, section 2), over {listed}. "
    )


def tokens_per_parameter(arms: Sequence[Arm]) -> str:
    """Return the tokens per parameter at the arms' best learning rates: "12.3", "12.3 to 14", or nothing."""
    ratios = []
    for arm in arms:
        for run in arm.best.runs if arm.best else ():
            tokens = column(run.record.metrics, "tokens")
            parameters = parameter_count(run.record)
            if parameters and np.isfinite(tokens).any():
                ratios.append(float(np.nanmax(tokens)) / parameters)
    texts = list(dict.fromkeys(f"{ratio:.3g}" for ratio in sorted(ratios)))
    return texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}" if texts else ""


def titled(words: str, unit: str) -> str:
    """Return the name of a quantity with its unit, if it has one."""
    return f"{words} ({unit})" if unit else words
