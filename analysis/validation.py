"""Validation metrics: the method each belongs to, the runs they compare, and the direction that is better.

A column of metrics.jsonl is called `validation_METRIC` for the trained model and `validation_METHOD_METRIC` for a
baseline, or for a control (the trained model with a different guidance).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from analysis.groups import Group, differing_keys, group_records, leaves
from analysis.runs import Record, column, setting
from analysis.setting_facts import merged

METHODS = {
    "input": "Input",
    "bicubic": "Bicubic",
    "joint_bilateral": "Joint bilateral",
    "guided_filter": "Guided filter",
}
CONTROLS = {"constant_guidance": "constant guidance", "shifted_guidance": "shifted guidance"}
_SHORT = {"rmse": "RMSE", "psnr": "PSNR", "ssim": "SSIM", "mae": "MAE", "iou": "IoU", "miou": "mIoU"}
_LOWER = {"rmse", "loss", "perplexity", "mae", "mse", "error", "bits"}
_HIGHER = {"psnr", "ssim", "iou", "miou", "accuracy", "delta1", "delta2", "delta3"}


class ValidationMetric(NamedTuple):
    """The metric in a validation column."""

    method: str  # a key of METHODS or CONTROLS; empty for the trained model
    name: str  # like "rmse"

    @property
    def column(self) -> str:
        """Name of the column in metrics.jsonl."""
        return "_".join(filter(None, ("validation", self.method, self.name)))

    @property
    def words(self) -> str:
        """Display name: "edge PSNR" for edge_psnr."""
        return " ".join(_SHORT.get(word, word) for word in self.name.split("_"))

    @property
    def is_lower_better(self) -> bool | None:
        """Whether lower is better; None if unknown."""
        words = set(self.name.split("_"))
        return True if words & _LOWER else False if words & _HIGHER else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Groups of runs validated on the same data; `label` names the data if a report has several comparisons."""

    label: str
    groups: tuple[Group, ...]

    @property
    def records(self) -> list[Record]:
        """The runs of all groups."""
        return [record for group in self.groups for record in group.records]


def metric_of(column_name: str) -> ValidationMetric:
    """Return the metric in a column called validation_*."""
    rest = column_name.removeprefix("validation_")
    method = next((method for method in (*METHODS, *CONTROLS) if rest.startswith(f"{method}_")), "")
    return ValidationMetric(method, rest.removeprefix(f"{method}_") if method else rest)


def validation_metrics(records: Sequence[Record]) -> list[ValidationMetric]:
    """Return all metrics with a finite value in some run, by method, then the loss first and the rest by name."""
    metrics = {
        metric_of(name)
        for record in records
        for name in map(str, record.metrics.columns)
        if name.startswith("validation_") and np.isfinite(column(record.metrics, name).astype(float)).any()
    }
    methods = ["", *CONTROLS, *METHODS]
    return sorted(metrics, key=lambda it: (methods.index(it.method), it.name != "loss", it.name))


def title_with_unit(metric: ValidationMetric, records: Sequence[Record]) -> str:
    """Return a metric's display name, with its unit if all runs share one: "RMSE (cm)"."""
    words = set(metric.name.split("_"))
    units = {setting(record.config, "task.data.unit") for record in records} if words & {"rmse", "mae"} else {None}
    unit = "dB" if "psnr" in words else units.pop() if len(units) == 1 else None
    return f"{metric.words} ({unit})" if unit else metric.words


def own_metrics(records: Sequence[Record]) -> list[ValidationMetric]:
    """Return the metrics of the trained models, without those of baselines and controls."""
    return [metric for metric in validation_metrics(records) if not metric.method]


def final(record: Record, name: str) -> float:
    """Return the last value of a validation column, or NaN if there is none."""
    if name not in record.metrics.columns or record.validation.empty:
        return float("nan")
    return float(column(record.validation, name)[-1])


def comparisons(records: Sequence[Record]) -> list[Comparison]:
    """Return the groups of runs, separated by the data they were validated on."""
    facts = merged(record.setting_facts for record in records)
    together: dict[str, list[Group]] = {}
    for group in group_records(records):
        settings = {key: value for key, value in leaves(group.records[0].config).items() if facts.judges(key)}
        together.setdefault(repr(sorted(settings.items(), key=lambda item: item[0])), []).append(group)
    firsts = [groups[0].records[0] for groups in together.values()]
    keys = [key for key in differing_keys(firsts) if facts.judges(key)]
    return [
        Comparison(label=", ".join(_setting_text(groups[0].records[0], key) for key in keys), groups=tuple(groups))
        for groups in together.values()
    ]


def final_values(records: Sequence[Record], metric: ValidationMetric) -> list[float]:
    """Return the last value in each run that has the metric; a baseline's may predate the last validation."""
    last = []
    for record in records:
        if metric.column not in record.metrics.columns:
            continue
        values = column(record.validation, metric.column)
        finite = values[np.isfinite(values)]
        if len(finite):
            last.append(float(finite[-1] if metric.method in METHODS else values[-1]))
    return last


def baselines(comparison: Comparison, name: str) -> dict[str, float]:
    """Return a metric's value by baseline method, averaged over the runs that measured it."""
    by_method = {method: final_values(comparison.records, ValidationMetric(method, name)) for method in METHODS}
    return {method: float(np.mean(values)) for method, values in by_method.items() if values}


def _setting_text(record: Record, key: str) -> str:
    return f"{key.rpartition('.')[2]} {leaves(record.config).get(key)}"
