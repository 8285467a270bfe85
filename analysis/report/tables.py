"""Tables of a report: validation, fits and uniformity; those that describe the runs are in facts.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.figures.depth import variance_growth
from analysis.figures.gradients import gradient_uniformity
from analysis.metrics import CONTROLS, METHODS, ValidationMetric, title_with_unit, validation_metrics
from analysis.page.contents import Spread, Table
from analysis.runs import Record, column
from analysis.validation import Comparison, comparisons, final_values


def validation(records: Sequence[Record]) -> list[Table]:
    """Return tables of the last validation's metrics: baselines first, then the runs, one row each.

    Runs validated on different data are in separate tables; there is no table if nothing was validated.
    """
    tables = comparisons([record for record in records if validation_metrics([record])])
    return [_validation_of(comparison, several=len(tables) > 1) for comparison in tables]


def _validation_of(comparison: Comparison, *, several: bool) -> Table:
    measured = [metric for metric in validation_metrics(comparison.records) if not metric.is_of_class]
    columns = [ValidationMetric("", name) for name in dict.fromkeys(metric.name for metric in measured)]
    methods = [method for method in METHODS if any(metric.method == method for metric in measured)]
    rows = [[METHODS[method], *_row(comparison.records, method, columns), None] for method in methods]
    for group in comparison.groups:
        rows.append([group.label, *_row(group.records, "", columns), _last_steps(group.records)])
        for control in CONTROLS:
            cells = _row(group.records, control, columns)
            if any(value is not None for value in cells):
                rows.append([f"{group.label}, {CONTROLS[control]}", *cells, _last_steps(group.records)])
    return Table(
        title=f"Validation, {comparison.label}" if several and comparison.label else "Validation",
        header=[
            "method" if methods else "runs",
            *(title_with_unit(metric, comparison.records) for metric in columns),
            "step",
        ],
        rows=rows,
        caption=_validation_caption(columns, methods, len(rows)),
        best=[place for i, metric in enumerate(columns, start=1) for place in _best(rows, i, metric)],
    )


def _row(records: Sequence[Record], method: str, columns: Sequence[ValidationMetric]) -> list[Any]:
    return [_over(records, metric._replace(method=method)) for metric in columns]


def _validation_caption(columns: Sequence[ValidationMetric], methods: Sequence[str], count: int) -> str:
    sentences = ["Metrics of the last validation. Runs that differ only in seed are averaged, with their range in "
                 "parentheses."]  # fmt: skip
    if methods:
        sentences.append(f"Not learned, on the same samples: {', '.join(METHODS[method] for method in methods)}.")
    if count > 1:
        lower = [metric.words for metric in columns if metric.is_lower_better]
        higher = [metric.words for metric in columns if metric.is_lower_better is False]
        ways = [
            f"{way} is better for {', '.join(words)}" for way, words in (("lower", lower), ("higher", higher)) if words
        ]
        if ways:
            sentences.append(f"Bold: best of its column; {'; '.join(ways)}.")
    return " ".join(sentences)


def _over(records: Sequence[Record], metric: ValidationMetric) -> Spread | float | str | None:
    """Return a metric over the runs that have it, or "not finite" if one of them is not."""
    values = np.array(final_values(records, metric))
    if not len(values):
        return None
    if not np.isfinite(values).all():
        return "not finite"
    low, high = float(values.min()), float(values.max())
    return low if low == high else Spread(float(values.mean()), low, high)


def _last_steps(records: Sequence[Record]) -> int | str | None:
    steps = sorted({int(column(record.validation, "step")[-1]) for record in records if len(record.validation)})
    if not steps:
        return None
    return steps[0] if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"


def _best(rows: Sequence[Sequence[Any]], at: int, metric: ValidationMetric) -> list[tuple[int, int]]:
    """Return the cells with the best value of a column; none if there is nothing to compare."""
    means = [row[at].mean if isinstance(row[at], Spread) else row[at] for row in rows]
    values = {n: mean for n, mean in enumerate(means) if isinstance(mean, float)}
    if len(values) < 2 or metric.is_lower_better is None:
        return []
    best = min(values.values()) if metric.is_lower_better else max(values.values())
    return [(n, at) for n, value in values.items() if value == best]


def fits(records: Sequence[Record]) -> Table | None:
    """Return slope, R2 and doubling depth of the fits to the variance, or None if nothing could be fitted."""
    rows = [
        [
            of_group.group.label,
            int(of_group.step) or None,  # 0: a model without training steps
            of_group.growth.verdict,
            of_group.growth.linear.rate,
            of_group.growth.linear.r2,
            of_group.growth.exponential.doubling_depth if of_group.growth.verdict != "constant" else None,
            of_group.growth.exponential.r2,
            of_group.growth.ratio,
        ]
        for of_group in variance_growth(records)
    ]
    header = ["runs", "step", "best fit", "slope per block", "linear R2", "doubling depth (blocks)",
              "exponential R2", "largest / smallest"]  # fmt: skip
    if not rows:
        return None
    return Table(
        title="Fits of the variance against depth",
        header=header,
        rows=rows,
        caption="Both are least-squares fits to the variance itself, so their R2 are comparable. A negative doubling "
        "depth is the depth over which the variance halves. Constant: largest over smallest is at most 1.05. A fit "
        "describes the variance from an R2 of 0.9; either: both do, and differ by less than 0.005; neither: none does.",
    )


def uniformity(records: Sequence[Record]) -> Table | None:
    """Return the uniformity of the gradient norm over layers, or None if it was not measured."""
    rows = [
        [
            of_group.group.label,
            int(of_group.step) or None,
            of_group.uniformity.max_over_min,
            of_group.uniformity.coefficient_of_variation,
        ]
        for of_group in gradient_uniformity(records)
    ]
    header = ["runs", "step", "largest / smallest layer", "standard deviation / mean"]
    return Table(title="Uniformity of the gradient norm over layers", header=header, rows=rows) if rows else None
