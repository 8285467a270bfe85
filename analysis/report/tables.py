"""Tables of a report: facts of the runs, differences between them, validation, fits and uniformity."""

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
    Comparison,
    ValidationMetric,
    comparisons,
    final,
    final_values,
    own_metrics,
    title_with_unit,
    validation_metrics,
)

_FACTS = ("run", "placement", "parameters", "steps", "state", "tokens", "samples", "epochs",
          "tokens per parameter", "training loss", "validation loss",
          "best validation loss")  # fmt: skip
_MACHINE = ("gradient spikes", "loss spikes", "skipped steps", "tokens/s", "samples/s", "peak memory (GiB)", "lr",
            "seed", "device", "ranks", "precision", "commit")  # fmt: skip
_UNITS = ("files", "documents", "bytes", "tokens", "windows", "pairs", "samples")
_DATA = ("run", "part", *_UNITS)


def facts(records: Sequence[Record]) -> Table:
    """Return a row of facts per run, without columns that are empty for all runs."""
    own = [metric for metric in own_metrics(records) if metric.name != "loss"]
    header = [*_FACTS, *(f"validation {metric.words}" for metric in own), *_MACHINE]
    rows = []
    for record in records:
        values = [final(record, metric.column) for metric in own]
        rows.append([*_learned(record), *(v if np.isfinite(v) else None for v in values), *_measured(record)])
    filled = [i for i in range(len(header)) if i == 0 or any(row[i] is not None for row in rows)]
    return Table(
        title="Facts",
        header=[header[i] for i in filled],
        rows=[[row[i] for i in filled] for row in rows],
        caption="Losses are those of the last logged step and the last validation; speed is the median over logged "
        "steps; memory is the peak over all ranks.",
    )


def data(records: Sequence[Record]) -> Table | None:
    """Return a row per run and split or source with its amounts, or None if none are recorded."""
    rows = [row for record in records for row in _data_rows(record)]
    filled = [i for i in range(len(_DATA)) if any(row[i] is not None for row in rows)]
    if not rows:
        return None
    return Table(
        title="Data",
        header=[_DATA[i] for i in filled],
        rows=[[row[i] for i in filled] for row in rows],
        caption="What environment.json records of each run's data. Documents that validation sources contain too are "
        "not trained on.",
    )


def _data_rows(record: Record) -> list[list[Any]]:
    facts = record.environment.get("data")
    if not isinstance(facts, dict):
        return []
    amounts = {split: [facts.get(f"{split}_{unit}") for unit in _UNITS] for split in ("training", "validation")}
    rows = [[record.label, split, *of_split] for split, of_split in amounts.items() if any(of_split)]
    for path, source in facts.get("sources", {}).items():
        tokens = facts.get("tokens_by_source", {}).get(path)
        of_source = {**source, "tokens": source.get("tokens", tokens)}
        rows.append([record.label, f"{path} {source.get('path', '')}", *(of_source.get(unit) for unit in _UNITS)])
    for of_set in facts.get("validation_sets", ()):
        name = f"validation set {of_set.get('label') or 'without a label'}"
        rows.append([record.label, name, *(of_set.get(unit) for unit in _UNITS)])
    return rows


def differences(records: Sequence[Record]) -> Table | None:
    """Return the settings in which the runs differ, one row per key, or None if there are none."""
    configured = [record for record in records if record.config]
    keys = [key for key in differing_keys(configured) if key != "name"]
    if len(configured) < 2 or not keys:
        return None
    flat = [leaves(record.config) for record in configured]
    rows = [[key, *(_value(config, key) for config in flat)] for key in keys]
    return Table(
        title="Differences",
        header=["setting", *(record.label for record in configured)],
        rows=rows,
        caption="All settings in config.yaml whose values differ between the runs.",
    )


def validation(records: Sequence[Record]) -> list[Table]:
    """Return tables of the last validation's metrics: baselines first, then the runs, one row each.

    Runs validated on different data are in separate tables; there is no table if nothing was validated.
    """
    tables = comparisons([record for record in records if validation_metrics([record])])
    return [_validation_of(comparison, several=len(tables) > 1) for comparison in tables]


def _validation_of(comparison: Comparison, *, several: bool) -> Table:
    measured = validation_metrics(comparison.records)
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
        None if (tokens := _maximum(record, "tokens")) is None else int(tokens),
        None if (samples := _maximum(record, "samples")) is None else int(samples),
        _maximum(record, "epoch"),
        None if tokens is None or not (parameters := parameter_count(record)) else tokens / parameters,
        *(None if not len(v) else float(v[-1]) if np.isfinite(v[-1]) else "not finite" for v in (losses, validation)),
        float(finite.min()) if len(finite) else None,
    ]


def _measured(record: Record) -> list[Any]:
    events = spikes(record)
    of_loss = sum(event.get("quantity") == "loss" for event in events)
    commit = record.environment.get("git_sha")
    dirty = " (modified)" if record.environment.get("git_dirty") else ""
    speeds = [column(record.training, name) for name in ("tokens_per_second", "samples_per_second")]
    return [
        len(events) - of_loss,
        of_loss,
        len(skipped_steps(record)),
        *(float(np.nanmedian(speed)) if np.isfinite(speed).any() else None for speed in speeds),
        _maximum(record, "peak_memory_gib"),
        setting(record.config, "optim.lr"),
        record.config.get("seed"),
        record.environment.get("device"),
        record.environment.get("world_size"),
        record.environment.get("precision"),
        f"{str(commit)[:9]}{dirty}" if commit else None,
    ]


def parameter_count(record: Record) -> int | None:
    """Return the parameter count from environment.json, else the sum over gradients.jsonl, else None."""
    stated = record.environment.get("parameters")
    if isinstance(stated, int):
        return stated
    steps = column(record.gradients, "step")
    if not len(steps):
        return None
    total = float(column(rows_where(record.gradients, step=steps[0]), "numel").sum())
    return int(total) if np.isfinite(total) else None


def _maximum(record: Record, name: str) -> float | None:
    values = column(record.metrics, name)
    return float(np.nanmax(values)) if np.isfinite(values).any() else None


def _value(config: dict[str, Any], key: str) -> str:
    if key not in config:
        return "(not set)"
    return "null" if config[key] is None else str(config[key])
