"""Tables of a report: facts of the runs, what differs between them, fits and uniformity in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.figures.depth import variance_growth
from analysis.figures.gradients import gradient_uniformity
from analysis.figures.training import outcome, skipped_steps, spikes
from analysis.groups import differing_keys, leaves
from analysis.page import Spread, Table
from analysis.runs import Record, column, rows_where, setting
from analysis.style import NAMES
from analysis.validation import (
    CONTROLS,
    METHODS,
    Arena,
    Figure,
    arenas,
    figures,
    final,
    measured,
    own_figures,
    with_unit,
)

_FACTS = ("run", "placement", "parameters", "steps", "state", "tokens", "samples", "training loss", "validation loss",
          "best validation loss")  # fmt: skip
_MACHINE = ("gradient spikes", "loss spikes", "skipped steps", "tokens/s", "samples/s", "peak memory (GiB)", "lr",
            "seed", "device", "ranks", "precision", "commit")  # fmt: skip


def facts(records: Sequence[Record]) -> Table:
    """Return a row of facts per run; columns that no run can fill are left out."""
    own = [figure for figure in own_figures(records) if figure.name != "loss"]
    header = [*_FACTS, *(f"validation {figure.words}" for figure in own), *_MACHINE]
    rows = [
        [*_learned(record), *(_shown(final(record, figure.column)) for figure in own), *_measured(record)]
        for record in records
    ]
    kept = [i for i in range(len(header)) if i == 0 or any(row[i] is not None for row in rows)]
    return Table(
        title="Facts",
        header=[header[i] for i in kept],
        rows=[[row[i] for i in kept] for row in rows],
        caption="Losses are those of the last logged step and the last validation; speed is the median over logged "
        "steps, memory the most that any rank held.",
    )


def differences(records: Sequence[Record]) -> Table | None:
    """Return the settings in which the runs differ, a row per key; None for a single run or equal ones."""
    known = [record for record in records if record.config]
    keys = [key for key in differing_keys(known) if key != "name"]
    if len(known) < 2 or not keys:
        return None
    flat = [leaves(record.config) for record in known]
    rows = [[key, *(_value(config, key) for config in flat)] for key in keys]
    return Table(
        title="What differs",
        header=["setting", *(record.label for record in known)],
        rows=rows,
        caption="All settings of config.yaml whose values are not the same in every run.",
    )


def validation(records: Sequence[Record]) -> list[Table]:
    """Return the figures of the last validation: methods that do not learn, then ours, a row each.

    Runs that are judged by different data have a table each. No table where nothing was validated.
    """
    found = arenas([record for record in records if figures([record])])
    return [_validation_of(arena, several=len(found) > 1) for arena in found]


def _validation_of(arena: Arena, *, several: bool) -> Table:
    found = figures(arena.records)
    shown = [Figure("", name) for name in dict.fromkeys(figure.name for figure in found)]
    methods = [method for method in METHODS if any(figure.method == method for figure in found)]
    rows = [[METHODS[method], *_row(arena.records, method, shown), None] for method in methods]
    for group in arena.groups:
        rows.append([group.label, *_row(group.records, "", shown), _last_steps(group.records)])
        for control in CONTROLS:
            cells = _row(group.records, control, shown)
            if any(value is not None for value in cells):
                rows.append([f"{group.label}, {CONTROLS[control]}", *cells, _last_steps(group.records)])
    return Table(
        title=f"Validation, {arena.label}" if several and arena.label else "Validation",
        header=["method" if methods else "runs", *(with_unit(figure, arena.records) for figure in shown), "step"],
        rows=rows,
        caption=_validation_caption(shown, methods, len(rows)),
        best=[place for i, figure in enumerate(shown, start=1) for place in _best(rows, i, figure)],
    )


def _row(records: Sequence[Record], method: str, shown: Sequence[Figure]) -> list[Any]:
    return [_over(records, figure._replace(method=method)) for figure in shown]


def _validation_caption(shown: Sequence[Figure], methods: Sequence[str], count: int) -> str:
    sentences = ["Figures of the last validation; of runs that differ only in seed the mean, and the least to the "
                 "greatest in brackets."]  # fmt: skip
    if methods:
        sentences.append(f"{', '.join(METHODS[method] for method in methods)}: not learned, on the same samples.")
    if count > 1:
        lower = [figure.words for figure in shown if figure.is_lower_better]
        higher = [figure.words for figure in shown if figure.is_lower_better is False]
        ways = [
            f"{way} is better for {', '.join(words)}" for way, words in (("lower", lower), ("higher", higher)) if words
        ]
        if ways:
            sentences.append(f"Bold: the best of a column; {'; '.join(ways)}.")
    return " ".join(sentences)


def _over(records: Sequence[Record], figure: Figure) -> Spread | float | str | None:
    """Return a figure over the runs that have it; words where one of them is not finite."""
    values = np.array(measured(records, figure))
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


def _best(rows: Sequence[Sequence[Any]], at: int, figure: Figure) -> list[tuple[int, int]]:
    """Return the places of the best value of a column, none where nothing is compared."""
    means = [row[at].mean if isinstance(row[at], Spread) else row[at] for row in rows]
    values = {n: mean for n, mean in enumerate(means) if isinstance(mean, float)}
    if len(values) < 2 or figure.is_lower_better is None:
        return []
    best = min(values.values()) if figure.is_lower_better else max(values.values())
    return [(n, at) for n, value in values.items() if value == best]


def fits(records: Sequence[Record]) -> Table | None:
    """Return slope, R2 and doubling depth of the variance's fits; None where nothing could be fitted."""
    rows = [
        [
            found.group.label,
            int(found.step) or None,  # 0: a model that was not seen in training
            found.growth.verdict,
            found.growth.linear.rate,
            found.growth.linear.r2,
            found.growth.exponential.doubling_depth if found.growth.verdict != "constant" else None,
            found.growth.exponential.r2,
            found.growth.ratio,
        ]
        for found in variance_growth(records)
    ]
    header = ["runs", "step", "described by", "slope per block", "linear R2", "doubling depth (blocks)",
              "exponential R2", "largest / smallest"]  # fmt: skip
    if not rows:
        return None
    return Table(
        title="Fits of the variance against depth",
        header=header,
        rows=rows,
        caption="Both fits are least squares in the variance itself, so their R2 compare. A negative doubling depth is "
        "the depth in which the variance halves. Constant: largest over smallest is at most 1.05.",
    )


def uniformity(records: Sequence[Record]) -> Table | None:
    """Return how evenly the gradient norm is spread over layers; None where it was not measured."""
    rows = [
        [found.group.label, int(found.step) or None, found.found.max_over_min, found.found.coefficient_of_variation]
        for found in gradient_uniformity(records)
    ]
    header = ["runs", "step", "largest / smallest layer", "standard deviation / mean"]
    return Table(title="Uniformity of the gradient norm over layers", header=header, rows=rows) if rows else None


def _learned(record: Record) -> list[Any]:
    losses = column(record.training, "loss")
    validation = column(record.validation, "validation_loss")
    finite = validation[np.isfinite(validation)]
    asked = f" of {record.steps_asked:,}" if record.steps_asked is not None else ""
    return [
        record.label,
        NAMES[record.placement] if record.placement != "unknown" else None,
        parameter_count(record),
        f"{record.steps_done:,}{asked}",
        outcome(record),
        _whole(_greatest(record, "tokens")),
        _whole(_greatest(record, "samples")),
        _last(losses),
        _last(validation),
        float(finite.min()) if len(finite) else None,
    ]


def _measured(record: Record) -> list[Any]:
    found = spikes(record)
    of_loss = sum(event.get("quantity") == "loss" for event in found)
    commit = record.environment.get("git_sha")
    dirty = " (changed)" if record.environment.get("git_dirty") else ""
    return [
        len(found) - of_loss,
        of_loss,
        len(skipped_steps(record)),
        _median(record, "tokens_per_second"),
        _median(record, "samples_per_second"),
        _greatest(record, "peak_memory_gib"),
        setting(record.config, "optim.lr"),
        record.config.get("seed"),
        record.environment.get("device"),
        record.environment.get("world_size"),
        record.environment.get("precision"),
        f"{str(commit)[:9]}{dirty}" if commit else None,
    ]


def parameter_count(record: Record) -> int | None:
    """Return the parameters that environment.json states, else the sum over gradients.jsonl, else None."""
    stated = record.environment.get("parameters")
    if isinstance(stated, int):
        return stated
    steps = column(record.gradients, "step")
    return _whole(float(column(rows_where(record.gradients, step=steps[0]), "numel").sum())) if len(steps) else None


def _last(values: np.ndarray) -> float | str | None:
    if not len(values):
        return None
    return float(values[-1]) if np.isfinite(values[-1]) else "not finite"


def _shown(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _whole(value: float | None) -> int | None:
    return int(value) if value is not None and np.isfinite(value) else None


def _greatest(record: Record, name: str) -> float | None:
    values = column(record.metrics, name)
    return float(np.nanmax(values)) if np.isfinite(values).any() else None


def _median(record: Record, name: str) -> float | None:
    values = column(record.training, name)
    return float(np.nanmedian(values)) if np.isfinite(values).any() else None


def _value(config: dict[str, Any], key: str) -> str:
    if key not in config:
        return "(not given)"
    return "null" if config[key] is None else str(config[key])
