"""Intersection over union of classes, summed over images.

H, W height and width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from train.tasks.task import Sums

_PREFIX = "iou_"


def class_ious(found: Tensor, truth: Tensor, counted: Tensor, classes: Iterable[str], *, prefix: str = "") -> Sums:
    """Return intersection and union of each class: sums over images, whose ratio is the IoU over all of them.

    Args:
        found: (H, W) int64, the predicted class of each pixel.
        truth: (H, W) int64; what pixels that do not count have does not matter.
        counted: (H, W) bool.
        classes: Names, in the order of the numbers from 0.
        prefix: Of the metrics' names.
    """
    sums: Sums = {}
    for number, name in enumerate(classes):
        predicted, true = (found == number) & counted, (truth == number) & counted
        both, either = (predicted & true).sum().float(), (predicted | true).sum().float()
        sums[f"{prefix}{_PREFIX}{metric_name(name)}"] = (both, either)
    return sums


def mean_iou(means: Mapping[str, float], classes: Sequence[str], *, prefix: str = "") -> float:
    """Return the mean over the classes that occur in truth or prediction; 0 if none does."""
    ious = [means[f"{prefix}{_PREFIX}{metric_name(name)}"] for name in classes]
    occurring = [value for value in ious if value == value]  # not nan: a union of no pixel
    return sum(occurring) / max(1, len(occurring))


def metric_name(name: str) -> str:
    """Return the name of a class as part of a metric's."""
    return re.sub(r"\W+", "_", name)
