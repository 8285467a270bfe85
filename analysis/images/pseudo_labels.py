"""Facts of pseudo labels: RUN/labels/step_NNNNNN/labels.json, written once all labels of a step exist."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.images.archive import reason, steps_in
from analysis.runs import Record

FORMAT = 1
# Kinds of labels in the order in which they are shown; the first two are baselines that learn nothing.
KINDS = {
    "filled_boxes": "filled boxes",
    "grabcut": "GrabCut",
    "unary": "unary",
    "crf": "CRF",
    "retrieved": "retrieved",
}
AGREEING = "agreeing"  # on part of the pixels, so not one of the kinds


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """The pseudo labels of a run.

    Attributes:
        record: The run that made them.
        step: Step of the weights that made them.
        classes: Names of the classes, the background's first.
        num_images: Number of images that have labels.
        num_judged: Number of images whose truth is known.
        miou: Mean IoU over classes, by kind and for AGREEING; empty where no truth is known.
        iou: IoU of each class by kind, NaN where the class does not occur.
        agreement: Share of pixels on which the labels of the CRF and by retrieval agree; NaN if unknown.
        vanished: Boxes without a pixel of their class, as written.
        seconds_per_image: Seconds that the labels of one image took; NaN if unknown.
    """

    record: Record
    step: int
    classes: tuple[str, ...]
    num_images: int
    num_judged: int = 0
    miou: Mapping[str, float] = field(default_factory=dict)
    iou: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    agreement: float = math.nan
    vanished: Sequence[Mapping[str, Any]] = ()
    seconds_per_image: float = math.nan


def read_label_facts(record: Record) -> tuple[LabelFacts | None, list[str]]:
    """Return the facts of a run's latest labels, None if it has none, and notes on files that were skipped."""
    notes: list[str] = []
    for step, folder in reversed(steps_in(record.folder / "labels")):
        path = folder / "labels.json"
        try:
            return _facts(record, step, json.loads(path.read_text())), notes
        except FileNotFoundError:
            notes.append(f"labels/{folder.name} has no labels.json: its labels are not finished; skipped.")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            notes.append(f"labels/{folder.name}/labels.json cannot be read ({reason(error)}); skipped.")
    return None, notes


def _facts(record: Record, step: int, tree: Any) -> LabelFacts:
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}")
    classes = tuple(str(name) for name in _of_type(tree, "classes", list))
    quality = tree.get("quality")
    if quality is not None and not isinstance(quality, dict):
        raise ValueError("quality is no section")
    vanished = tree.get("vanished") or []
    if not isinstance(vanished, list) or not all(isinstance(each, dict) for each in vanished):
        raise ValueError("vanished is no list of boxes")
    kinds = (*KINDS, AGREEING)
    iou = {} if quality is None else _of_type(quality, "iou", dict)
    by_class = {kind: _of_type(iou, kind, dict) for kind in KINDS if kind in iou}
    return LabelFacts(
        record=record,
        step=step,
        classes=classes,
        num_images=len(_of_type(tree, "images", dict)),
        num_judged=0 if quality is None else int(quality["images"]),
        miou={}
        if quality is None
        else {k: _number(v) for k, v in _of_type(quality, "miou", dict).items() if k in kinds},
        iou={kind: {name: _number(values.get(name)) for name in classes} for kind, values in by_class.items()},
        agreement=_number(tree.get("agreement")),
        vanished=vanished,
        seconds_per_image=_number(tree.get("seconds_per_image")),
    )


def _of_type(tree: Mapping[str, Any], key: str, kind: type) -> Any:
    if not isinstance(tree[key], kind):
        raise ValueError(f"{key} is no {'list' if kind is list else 'section'}")
    return tree[key]


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else math.nan
