"""Runs of box-supervised segmentation with known numbers: box classifiers, their pseudo labels, and networks."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.analysis.synthetic import ROOT, write_run
from train.config.load import load
from train.config.report_facts import report_facts

CLASSES = ("background", "cat", "dog")
LAST = "step_000040"
# IoU of background, cat and dog by kind of label; the dog does not occur where it is None.
IOU: dict[str, list[float | None]] = {
    "filled_boxes": [0.6, 0.4, 0.2],
    "grabcut": [0.7, 0.5, 0.3],
    "unary": [0.5, 0.3, 0.1],
    "crf": [0.8, 0.6, 0.4],
    "retrieved": [0.9, 0.5, 0.4],
}


@functools.cache
def settings(kind: str) -> str:
    """Return what a run of one of the two tasks writes as settings.json."""
    path = ROOT / "configs/box_segmentation/quickstart-boxes.yaml"
    changes = [] if kind == "box_classification" else [f"task.kind={kind}", "task.loss=truth"]
    return json.dumps(report_facts(load(path, changes)))


def write_box_run(
    folder: Path,
    *,
    accuracy: float = 0.9,
    pooling: str = "background",
    images: Mapping[str, Mapping[str, Any]] | None = None,
    **changes: Any,
) -> Path:
    """Write the run of a box classifier that ends at a box accuracy; its background accuracy is 0.05 above."""
    rows: list[dict[str, Any]] = []
    for step in range(1, 41):
        now = accuracy * (1 - 1 / (1 + step)) / (1 - 1 / 41)
        row = {"step": step, "samples": 8 * step, "loss": 2 / step, "grad_norm": 0.5, "lr": 0.002}
        rows.append({**row, "box_accuracy": now, "background_accuracy": now + 0.05})
        if step % 10 == 0:
            named = {"loss": 3 / step, "box_accuracy": now, "background_accuracy": now + 0.05}
            rows.append({"step": step, "samples": 8 * step, **_validation(named)})
    task = {
        "kind": "box_classification",
        "model": {"backbone": "lite0", "pooling": pooling},
        "data": {"sources": [{"path": "photos"}], "validation_sources": [{"path": "photos"}], "seed": 0},
        "shown_images": 2,
    }
    return _write(folder, rows, task, images, **changes)


def write_segmentation_run(
    folder: Path,
    *,
    iou: Mapping[str, float | None] | None = None,
    accuracy: float = 0.95,
    loss: float = 0.5,
    labels: str | None = "runs/boxes/labels/step_000040",
    images: Mapping[str, Mapping[str, Any]] | None = None,
    **changes: Any,
) -> Path:
    """Write the run of a segmentation network that ends at these figures; at step 10 n the IoU are n / 4 of them."""
    iou = dict(zip(CLASSES, (0.9, 0.6, 0.3), strict=True)) if iou is None else iou
    rows: list[dict[str, Any]] = []
    for step in range(1, 41):
        row = {"step": step, "samples": 8 * step, "loss": 2 / step, "grad_norm": 0.5, "lr": 0.002}
        parts = {"agreeing_loss": 1.5 / step, "disagreeing_loss": 5 / step, "disagreement": 0.1}
        rows.append({**row, **parts})
        if step % 10 == 0:
            found = {name: None if value is None else value * step / 40 for name, value in iou.items()}
            known = [value for value in found.values() if value is not None]
            named = {"loss": loss, "miou": sum(known) / len(known), "pixel_accuracy": accuracy * step / 40}
            rows.append(
                {
                    "step": step,
                    "samples": 8 * step,
                    **_validation({**named, **{f"iou_{name}": value for name, value in found.items()}}),
                }
            )
    data: dict[str, Any] = {
        "sources": [{"path": "photos"}],
        "validation_sources": [{"path": "photos"}],
        "labels": labels,
        "seed": 0,
    }
    task = {"kind": "semantic_segmentation", "model": {"backbone": "lite0"}, "data": data, "loss": "noise_aware",
            "shown_images": 2}  # fmt: skip
    return _write(folder, rows, task, images, **changes)


def write_labels(
    run: Path,
    *,
    iou: Mapping[str, Sequence[float | None]] | None = IOU,
    classes: Sequence[str] = CLASSES,
    step: int = 40,
    shown: Mapping[str, Mapping[str, Any]] | None = None,
    **changes: Any,
) -> Path:
    """Write labels.json of a run, with the arrays of some images; `iou=None`: no truth is known."""
    folder = run / f"labels/step_{step:06d}"
    (folder / "shown").mkdir(parents=True)
    quality = None
    if iou is not None:
        known = {kind: [value for value in values if value is not None] for kind, values in iou.items()}
        quality = {
            "images": 7,
            "miou": {**{kind: sum(values) / len(values) for kind, values in known.items()}, "agreeing": 0.85},
            "iou": {kind: dict(zip(classes, values, strict=True)) for kind, values in iou.items()},
        }
    facts = {
        "format": 1,
        "run": run.name,
        "step": step,
        "settings": {},
        "classes": list(classes),
        "images": {f"photo{i}": f"{i:032x}" for i in range(9)},
        "quality": quality,
        "agreement": 0.93,
        "class_shares": {"crf": dict.fromkeys(classes, 0.1)},
        "vanished": [],
        "seconds_per_image": 0.25,
        **changes,
    }
    (folder / "labels.json").write_text(json.dumps(facts))
    for name, arrays in (shown or {}).items():
        np.savez_compressed(folder / f"shown/{name}.npz", allow_pickle=False, **arrays)
    return folder


def segmented_image(size: tuple[int, int] = (24, 32), **changes: Any) -> dict[str, Any]:
    """Return the arrays of one image with everything there is: a cat in the left half, labels that are off by columns.

    The last column's truth does not count. The label of the CRF starts 2 columns late, that by retrieval one column;
    `None` leaves an array out.
    """
    height, width = size
    truth = np.zeros(size, np.uint8)
    truth[:, : width // 2] = 1
    crf, retrieved = truth.copy(), truth.copy()
    crf[:, :2] = 0
    retrieved[:, :1] = 0
    truth[:, -1] = 255
    arrays: dict[str, Any] = {
        "image": np.full((height, width, 3), 128, np.uint8),
        "classes": np.array(CLASSES),
        "boxes": np.array([[0, 0, width // 2, height]], np.int32),
        "box_classes": np.array([1], np.int32),
        "truth": truth,
        "attention": np.full(size, 0.25, np.float16),
        "activation": np.full(size, 0.5, np.float16),
        "crf": crf,
        "retrieved": retrieved,
        "confidence": np.full(size, 0.75, np.float16),
        "prediction": truth % 255,
    }
    return {name: value for name, value in {**arrays, **changes}.items() if value is not None}


def _validation(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    return {f"validation_{name}": value for name, value in figures.items()}


def _write(
    folder: Path, rows: Sequence[Mapping[str, Any]], task: Mapping[str, Any], images: Any, **changes: Any
) -> Path:
    files = {"metrics": rows, "activations": [], "gradients": [], "settings": settings(task["kind"])}
    run = write_run(folder, **{"task": dict(task), **files, **changes})
    for path, arrays in (images or {}).items():
        (run / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(run / "images" / path, allow_pickle=False, **arrays)
    return run
