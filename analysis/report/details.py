"""Measurements of an arm at its best learning rate: stability, variance, gradients, fp16 and single layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from analysis.figures.depth import GrowthOfGroup, growth_of, largest_over_depth
from analysis.figures.gradients import uniformity_of
from analysis.figures.layers import last_mean
from analysis.figures.training import spikes
from analysis.fits import Growth, Uniformity
from analysis.groups import Group, band, group_records
from analysis.page.contents import Table, number_text
from analysis.report.arms import Arm, Cell, Run
from analysis.runs import column


def details(arms: Sequence[Arm]) -> list[Table]:
    """Return tables by subject with a row per arm, without the columns that no arm has."""
    tables = (
        _table("Stability", arms, _stability, ["diverged", "diverged, all rates", "loss spikes",
            "loss spikes, all rates", "gradient spikes", "gradient spikes, all rates"],
            caption="At the best learning rate of each arm, and at all rates."),
        _table("Variance of the residual stream over depth", arms, _variance, ["fit, first step", "fit, last step",
            "largest, first step", "largest, last step"],
            caption="At the best learning rate, means over the seeds: its fit over depth at the first and the last "
            "measured step, and its largest value over depth."),
        _table("Gradients and range", arms, _range, ["gradient, largest / smallest layer",
            "gradient, standard deviation / mean", "share beyond fp16", "share beyond fp16, all rates", "largest |x|",
            "largest |x|, all rates"],
            caption="At the best learning rate, unless the column is for all rates. Gradient norms of the layers are "
            "those of the last measured step; 1 and 0 where all layers are equal. Share beyond fp16: largest share of "
            "a site's elements above 65,504, ever; |x|: of any site, ever."),
        _table("Single layers", arms, _layers, ["angular distance (units of pi)", "loss increase without a layer"],
            caption="At the best learning rate: means over the layers at the last measured step."),
    )  # fmt: skip
    return [table for table in tables if len(table.header) > 1]


def _table(
    title: str, arms: Sequence[Arm], cells: Callable[[Arm], list[Any]], header: Sequence[str], *, caption: str
) -> Table:
    rows = [cells(arm) for arm in arms]
    filled = [i for i in range(len(header)) if any(row[i] is not None for row in rows)]
    return Table(
        title=title,
        header=["arm", *(header[i] for i in filled)],
        rows=[[arm.name, *(row[i] for i in filled)] for arm, row in zip(arms, rows, strict=True)],
        caption=caption,
    )


def spike_count(runs: Iterable[Run], quantity: str) -> int:
    """Return the number of spikes of "loss" or "grad_norm" in all runs."""
    return sum(str(event.get("quantity")) == quantity for run in runs for event in spikes(run.record))


def growths(cell: Cell) -> list[GrowthOfGroup]:
    """Return the fits of the variance over depth at the first and last measured step, averaged over the seeds."""
    return growth_of([cell.group])


def largest_variance(cell: Cell) -> tuple[float, float] | None:
    """Return the largest variance over depth at the first and last measured step, averaged over the seeds."""
    curve = band(cell.group, largest_over_depth("variance"))
    finite = curve.mean[np.isfinite(curve.mean)]
    return (float(finite[0]), float(finite[-1])) if len(finite) else None


def last_uniformity(group: Group) -> Uniformity | None:
    """Return how evenly the gradient norm is spread over layers at the last measured step."""
    of_steps = uniformity_of([group])
    return of_steps[-1].uniformity if of_steps else None


def gradient_variation(run: Run) -> float | None:
    """Return a run's standard deviation over mean of the layers' gradient norms at its last measured step."""
    measured = last_uniformity(group_records([run.record])[0])
    return measured.coefficient_of_variation if measured else None


def overflow_share(runs: Iterable[Run]) -> float | None:
    """Return the largest share of a site's elements beyond fp16 at any step of any run; None if never measured."""
    return _largest(runs, "fp16_overflow_share")


def mean_of_layers(runs: Sequence[Run], quantity: str) -> float | None:
    """Return the mean over layers and runs of "loss" or "angle" at the last measured step."""
    return _mean(last_mean(run.record, quantity) for run in runs)


def growth_text(growth: Growth) -> str:
    """Return a fit in words: "linear, 2.1 per block (R2 0.998)"."""
    rate, both = growth.slope_text, growth.r2_text
    words = {
        "constant": f"constant (largest / smallest {growth.ratio:.3f})",
        "linear": f"linear, {rate} ({both})",
        "exponential": f"exponential, {growth.doubling_text} ({both})",
        "either": f"linear or exponential, {rate} ({both})",
        "neither": f"neither linear nor exponential ({both})",
    }
    return words[growth.verdict]


def _stability(arm: Arm) -> list[Any]:
    at_best = arm.best.runs if arm.best else ()
    both: list[Any] = []
    counts: tuple[Callable[[Sequence[Run]], int], ...] = (
        lambda runs: sum(run.outcome == "diverged" for run in runs),
        lambda runs: spike_count(runs, "loss"),
        lambda runs: spike_count(runs, "grad_norm"),
    )
    for count in counts:
        both += [
            f"{count(at_best)} in {_runs(len(at_best))}" if at_best else None,
            f"{count(arm.runs)} in {_runs(len(arm.runs))}",
        ]
    return both


def _variance(arm: Arm) -> list[Any]:
    if arm.best is None:
        return [None] * 4
    fits, largest = growths(arm.best), largest_variance(arm.best)
    first, last = largest or (None, None)
    return [
        growth_text(fits[0].growth) if fits else None,
        growth_text(fits[-1].growth) if len(fits) > 1 else None,
        first,
        last,
    ]


def _range(arm: Arm) -> list[Any]:
    runs = arm.best.runs if arm.best else ()
    gradients = last_uniformity(arm.best.group) if arm.best else None
    return [
        gradients.max_over_min if gradients else None,
        gradients.coefficient_of_variation if gradients else None,
        overflow_share(runs),
        overflow_share(arm.runs),
        _largest(runs, "max_abs"),
        _largest(arm.runs, "max_abs"),
    ]


def _layers(arm: Arm) -> list[Any]:
    runs = arm.best.runs if arm.best else ()
    return [mean_of_layers(runs, "angle"), mean_of_layers(runs, "loss")]


def _largest(runs: Iterable[Run], name: str) -> float | None:
    values = [column(run.record.activations, name) for run in runs]
    finite = np.concatenate([*(part[np.isfinite(part)] for part in values), np.empty(0)])
    return float(finite.max()) if len(finite) else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{number_text(count)} runs"
