"""Quality of labels: intersections and unions with the truth, summed over images.

C classes with the background, H, W height and width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from modeling.segmentation.facts_bap import VOID

Counts = tuple[list[int], list[int]]  # pixels of intersection and union by class


def counts(labels: np.ndarray, truth: np.ndarray, num_classes: int) -> Counts:
    """Return intersection and union of labels with the truth for each class, where neither is VOID.

    Args:
        labels: uint8 (H, W).
        truth: uint8 (H, W).
        num_classes: C.
    """
    counted = (labels != VOID) & (truth != VOID)
    pairs = truth[counted].astype(np.int64) * num_classes + labels[counted]
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    right = confusion.diagonal()
    return right.tolist(), (confusion.sum(axis=0) + confusion.sum(axis=1) - right).tolist()


def quality(rows: Iterable[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, Any] | None:
    """Return the IoU of each class, over all images whose truth is known, for each way to make labels.

    Args:
        rows: Of images: `counts` by way, None where the truth is not known.
        classes: Names of all classes.

    Returns:
        `images`, how many are judged; `miou` by way; and `iou` by way and class, None for a class that occurs nowhere.
        None if no truth is known.
    """
    judged = [row["counts"] for row in rows if row["counts"] is not None]
    if not judged:
        return None
    totals = {way: np.array([each[way] for each in judged]).sum(axis=0) for way in judged[0]}  # (2, C)
    ious = {
        way: {
            name: float(right / union) if union else None
            for name, right, union in zip(classes, *total.tolist(), strict=True)
        }
        for way, total in totals.items()
    }
    return {"images": len(judged), "miou": {way: _mean(iou.values()) for way, iou in ious.items()}, "iou": ious}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def shares(rows: Iterable[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, float]:
    """Return the share of pixels that each class has in the labels of the CRF."""
    pixels: Counter[str] = Counter()
    for row in rows:
        pixels.update(dict(zip(classes, row["pixels"], strict=True)))
    total = max(1, pixels.total())
    return {name: pixels[name] / total for name in classes}
