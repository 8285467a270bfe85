"""Section on box-supervised segmentation: pseudo labels beside predictions, in total and by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from analysis.figures.class_iou import class_bars
from analysis.images.class_scores import (
    PREDICTION,
    ClassScores,
    class_names,
    label_scores,
    prediction_scores,
    without_repetition,
)
from analysis.images.pseudo_labels import AGREEING, LabelFacts, read_label_facts
from analysis.page.contents import Section, Table
from analysis.runs import Record

_KINDS = ("semantic_segmentation", "score_upsampling")
_MOST_VANISHED = 3  # boxes that a note lists


def segmentation_sections(records: Sequence[Record]) -> list[Section]:
    """Return the section, or none if no run has pseudo labels or segments images."""
    made, notes = _labels_of(records)
    names = [name for facts in made for name in facts.classes]
    networks = [record for record in records if record.kind in _KINDS]
    found = [prediction_scores(record, names) for record in networks]
    scores = [*(each for facts in made for each in label_scores(facts)), *(each for each in found if each is not None)]
    if not made and not networks and not notes:
        return []
    missing = [
        f"{record.label}: not validated yet" for record, of_run in zip(networks, found, strict=True) if of_run is None
    ]
    missing += [
        f"{facts.record.label}: no mask of the labeled images is known, so the quality of their labels is unknown"
        for facts in made
        if not facts.miou
    ]
    tables = [table for table in (quality(scores), labels(made), by_class(scores)) if table.rows]
    vanished = [sentence for facts in made if (sentence := _vanished(facts))]
    plate = replace(class_bars(scores, missing), findings=vanished)
    title = "Pseudo labels and predictions" if made or notes else "Predictions"
    return [Section(title=title, notes=notes, tables=tables, plates=[plate])]


def quality(scores: Sequence[ClassScores]) -> Table:
    """Return a row per kind of label of each run, and per segmentation run."""
    rows = [
        [
            each.label,
            "validation" if each.kind == PREDICTION else "training",
            *(_known(value) for value in (each.miou, each.pixel_accuracy)),
            each.num_images,
            each.step,
        ]
        for each in scores
    ]
    kinds = {each.kind for each in scores}
    caption = "mIoU: mean IoU over the classes that occur."
    if kinds - {PREDICTION}:
        caption += " Pseudo labels are compared with the masks of training images."
    if PREDICTION in kinds:
        caption += " Predictions are compared with the masks of validation images, at the last evaluation."
    if len(kinds) > 1 and PREDICTION in kinds:
        caption += " The two are measured on different images and do not rank each other."
    if any(each.kind == AGREEING for each in scores):
        caption += (
            " Agreeing pixels only: where the label of the CRF and that by retrieval are the same; this leaves the "
            "difficult pixels out, so it cannot be compared with the others."
        )
    header = ["labels or run", "images of", "mIoU", "pixel accuracy", "images", "step"]
    return Table(title="Quality of pseudo labels and predictions", header=header, rows=rows, caption=caption)


def labels(made: Sequence[LabelFacts]) -> Table:
    """Return a row per run that made pseudo labels."""
    rows = [
        [facts.record.label, facts.step, facts.num_images, _known(facts.agreement), len(facts.vanished),
         _known(facts.seconds_per_image)]
        for facts in made
    ]  # fmt: skip
    return Table(
        title="Pseudo labels",
        header=["run", "step", "images", "agreement", "vanished boxes", "seconds per image"],
        rows=rows,
        caption="Agreement: share of pixels on which the label of the CRF and that by retrieval are the same. Vanished "
        "boxes: those that the CRF left without a pixel of their class, and that were filled.",
    )


def by_class(scores: Sequence[ClassScores]) -> Table:
    """Return a row per class."""
    series = [each for each in without_repetition(scores) if each.kind != AGREEING]
    rows: list[list[Any]] = [
        [name, *(_known(each.iou.get(name, math.nan)) for each in series)] for name in class_names(series)
    ]
    return Table(
        title="IoU of each class", header=["class", *(each.label for each in series)], rows=rows, is_folded=True,
        caption="The figures of the bars below. A dash: the class occurs neither in the truth nor in what is compared "
        "with it.",
    )  # fmt: skip


def _labels_of(records: Sequence[Record]) -> tuple[list[LabelFacts], list[str]]:
    made: list[LabelFacts] = []
    notes: list[str] = []
    for record in records:
        facts, of_run = read_label_facts(record)
        notes += [f"{record.label}: {note}" for note in of_run]
        made += [] if facts is None else [facts]
    return made, notes


def _vanished(facts: LabelFacts) -> str:
    count = len(facts.vanished)
    if not count:
        return ""
    listed = [
        f"{each.get('image')}, box {each.get('box')} ({each.get('class')}): {each.get('why')}"
        for each in facts.vanished[:_MOST_VANISHED]
    ]
    more = f"; and {count - len(listed)} more" if count > len(listed) else ""
    boxes = "1 box" if count == 1 else f"{count} boxes"
    return (
        f"{facts.record.label}: the CRF left {boxes} without a pixel of their class; such boxes are filled: "
        f"{'; '.join(listed)}{more}."
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
