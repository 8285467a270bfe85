"""Validation metrics: the method each belongs to, the direction that is better, and by which one a task is ranked.

A column of metrics.jsonl is called `validation_METRIC` for the trained model and `validation_METHOD_METRIC` for a
baseline, or for a control (the trained model with a different guidance).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from analysis.runs import Record, column, setting

METHODS = {
    "input": "Input",
    "bicubic": "Bicubic",
    "bilinear": "Bilinear",
    "joint_bilateral": "Joint bilateral",
    "guided_filter": "Guided filter",
    "crf": "Dense CRF",
}
CONTROLS = {"constant_guidance": "constant guidance", "shifted_guidance": "shifted guidance"}
_SHORT = {"rmse": "RMSE", "psnr": "PSNR", "ssim": "SSIM", "mae": "MAE", "iou": "IoU", "miou": "mIoU", "f": "F"}
_LOWER = {"rmse", "loss", "perplexity", "mae", "mse", "error", "bits"}
_HIGHER = {"psnr", "ssim", "iou", "miou", "accuracy", "measure", "delta1", "delta2", "delta3"}


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
        if self.is_of_class:
            return False
        words = set(self.name.split("_"))
        return True if words & _LOWER else False if words & _HIGHER else None

    @property
    def is_of_class(self) -> bool:
        """Whether it is the IoU of one class: iou_CLASS."""
        return self.name.startswith("iou_")

    @property
    def best_word(self) -> str:
        """The word for the best value: "lowest" or "highest"."""
        return "highest" if self.is_lower_better is False else "lowest"

    @property
    def phrase(self) -> str:
        """The metric of a trained model in a sentence: "validation loss"."""
        return f"validation {self.words}"

    @property
    def sign(self) -> int:
        """1 if lower is better, -1 if higher is: times a value, lower is better."""
        return -1 if self.is_lower_better is False else 1


LOSS = ValidationMetric("", "loss")
# Tasks whose aim another metric than the loss measures: a network may be surer of its mistakes and yet make fewer.
_MAIN = {
    "box_classification": ValidationMetric("", "box_accuracy"),
    "semantic_segmentation": ValidationMetric("", "miou"),
    "score_upsampling": ValidationMetric("", "band_miou"),
}


def main_metric(records: Sequence[Record]) -> ValidationMetric:
    """Return the metric by which runs of one task are ranked: the loss, unless the task aims at another."""
    return _MAIN.get(records[0].kind, LOSS) if records else LOSS


def class_ious(record: Record) -> dict[str, float]:
    """Return the IoU of each class at the last validation, by the class's name in metrics; NaN where it is null."""
    names = [str(name) for name in record.metrics.columns if str(name).startswith("validation_iou_")]
    return {name.removeprefix("validation_iou_"): final(record, name) for name in names}


def class_in_metrics(name: str) -> str:
    """Return the name of a class as part of a metric's name: what is no letter, digit or underscore becomes one."""
    return re.sub(r"\W+", "_", name)


def metric_of(column_name: str) -> ValidationMetric:
    """Return the metric in a column called validation_*."""
    rest = column_name.removeprefix("validation_")
    method = next((method for method in (*METHODS, *CONTROLS) if rest.startswith(f"{method}_")), "")
    return ValidationMetric(method, rest.removeprefix(f"{method}_") if method else rest)


def validation_metrics(records: Sequence[Record]) -> list[ValidationMetric]:
    """Return all metrics with a finite value in some run, by method: the loss, the main metric, the rest by name.

    Those of a part follow those of the whole: edge_psnr after psnr, LABEL_rmse after rmse.
    """
    metrics = {
        metric_of(name)
        for record in records
        for name in map(str, record.metrics.columns)
        if name.startswith("validation_") and np.isfinite(column(record.metrics, name).astype(float)).any()
    }
    methods, main = ["", *CONTROLS, *METHODS], main_metric(records).name
    names = {metric.name for metric in metrics}
    parts = {name for name in names if any(name.endswith(f"_{whole}") for whole in names)}

    def place(metric: ValidationMetric) -> tuple[int, bool, bool, bool, str]:
        name = metric.name
        return methods.index(metric.method), name != "loss", name != main, name in parts, name

    return sorted(metrics, key=place)


def title_with_unit(metric: ValidationMetric, records: Sequence[Record]) -> str:
    """Return a metric's display name, with its unit if all runs share one: "RMSE (cm)"."""
    words = set(metric.name.split("_"))
    units = {_unit(record, metric) for record in records} if words & {"rmse", "mae"} else {None}
    unit = "dB" if "psnr" in words else units.pop() if len(units) == 1 else None
    return f"{metric.words} ({unit})" if unit else metric.words


def _unit(record: Record, metric: ValidationMetric) -> Any:
    """Return the unit of a run's errors: that of the metric's label, LABEL_rmse, if its sources have one."""
    sources = setting(record.config, "task.data.validation_sources") or ()
    of_label = {source.get("label"): source.get("unit") for source in sources if isinstance(source, dict)}
    label = metric.name.rpartition("_")[0]
    return of_label.get(label) or setting(record.config, "task.data.unit")


def own_metrics(records: Sequence[Record]) -> list[ValidationMetric]:
    """Return the metrics of the trained models, without those of baselines, controls and single classes."""
    return [metric for metric in validation_metrics(records) if not metric.method and not metric.is_of_class]


def final(record: Record, name: str) -> float:
    """Return the last value of a validation column, or NaN if there is none."""
    if name not in record.metrics.columns or record.validation.empty:
        return float("nan")
    return float(column(record.validation, name)[-1])
