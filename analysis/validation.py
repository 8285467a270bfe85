"""Figures of a validation: whose they are (ours or a baseline's), which runs they compare, and which way is better.

A column of metrics.jsonl is `validation_FIGURE` for what is trained, `validation_METHOD_FIGURE` for a method beside it,
which is a baseline, or what is trained with another guidance (a control).
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


class Figure(NamedTuple):
    """What a validation column holds."""

    method: str  # a key of METHODS or CONTROLS; empty for what is trained
    name: str  # like "rmse"

    @property
    def column(self) -> str:
        """The column of metrics.jsonl."""
        return "_".join(filter(None, ("validation", self.method, self.name)))

    @property
    def words(self) -> str:
        """The name for people: "edge PSNR" for edge_psnr."""
        return " ".join(_SHORT.get(word, word) for word in self.name.split("_"))

    @property
    def is_lower_better(self) -> bool | None:
        """Which way is better; None where that is not known."""
        words = set(self.name.split("_"))
        return True if words & _LOWER else False if words & _HIGHER else None


@dataclass(frozen=True, kw_only=True)
class Arena:
    """Groups of runs that are judged by the same data; `label` says by which, where a report has several."""

    label: str
    groups: tuple[Group, ...]

    @property
    def records(self) -> list[Record]:
        """The runs of all groups."""
        return [record for group in self.groups for record in group.records]


def figure_of(column_name: str) -> Figure:
    """Return what a column called validation_* holds."""
    rest = column_name.removeprefix("validation_")
    method = next((method for method in (*METHODS, *CONTROLS) if rest.startswith(f"{method}_")), "")
    return Figure(method, rest.removeprefix(f"{method}_") if method else rest)


def figures(records: Sequence[Record]) -> list[Figure]:
    """Return all figures of which some run has a finite value: the loss first, then by name, methods in their order."""
    found = {
        figure_of(name)
        for record in records
        for name in map(str, record.metrics.columns)
        if name.startswith("validation_") and np.isfinite(column(record.metrics, name).astype(float)).any()
    }
    methods = ["", *CONTROLS, *METHODS]
    return sorted(found, key=lambda it: (methods.index(it.method), it.name != "loss", it.name))


def with_unit(figure: Figure, records: Sequence[Record]) -> str:
    """Return a figure's name for people with its unit, where all runs have the same: "RMSE (cm)"."""
    words = set(figure.name.split("_"))
    units = {setting(record.config, "task.data.unit") for record in records} if words & {"rmse", "mae"} else {None}
    unit = "dB" if "psnr" in words else units.pop() if len(units) == 1 else None
    return f"{figure.words} ({unit})" if unit else figure.words


def own_figures(records: Sequence[Record]) -> list[Figure]:
    """Return the figures of what is trained, without those of baselines and controls."""
    return [figure for figure in figures(records) if not figure.method]


def final(record: Record, name: str) -> float:
    """Return the last value of a validation column, NaN where there is none."""
    if name not in record.metrics.columns or record.validation.empty:
        return float("nan")
    return float(column(record.validation, name)[-1])


def arenas(records: Sequence[Record]) -> list[Arena]:
    """Return the groups of runs, apart where they were judged by different data."""
    facts = merged(record.setting_facts for record in records)
    together: dict[str, list[Group]] = {}
    for group in group_records(records):
        settings = {key: value for key, value in leaves(group.records[0].config).items() if facts.judges(key)}
        together.setdefault(repr(sorted(settings.items(), key=lambda item: item[0])), []).append(group)
    firsts = [groups[0].records[0] for groups in together.values()]
    keys = [key for key in differing_keys(firsts) if facts.judges(key)]
    return [
        Arena(label=", ".join(_setting_text(groups[0].records[0], key) for key in keys), groups=tuple(groups))
        for groups in together.values()
    ]


def measured(records: Sequence[Record], figure: Figure) -> list[float]:
    """Return the last value of every run that has the figure; a baseline's may be older than the last validation."""
    found = []
    for record in records:
        if figure.column not in record.metrics.columns:
            continue
        values = column(record.validation, figure.column)
        finite = values[np.isfinite(values)]
        if len(finite):
            found.append(float(finite[-1] if figure.method in METHODS else values[-1]))
    return found


def baselines(arena: Arena, name: str) -> dict[str, float]:
    """Return the value of a figure by method, the mean over the runs that measured it."""
    found = {method: measured(arena.records, Figure(method, name)) for method in METHODS}
    return {method: float(np.mean(values)) for method, values in found.items() if values}


def _setting_text(record: Record, key: str) -> str:
    return f"{key.rpartition('.')[2]} {leaves(record.config).get(key)}"
