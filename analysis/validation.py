"""Comparisons of validation metrics: which runs were validated on the same data, and what baselines reach there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.groups import Group, differing_keys, group_records, leaves
from analysis.metrics import METHODS, ValidationMetric
from analysis.runs import Record, column
from analysis.setting_facts import merged


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Groups of runs validated on the same data; `label` names the data if a report has several comparisons."""

    label: str
    groups: tuple[Group, ...]

    @property
    def records(self) -> list[Record]:
        """The runs of all groups."""
        return [record for group in self.groups for record in group.records]


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
