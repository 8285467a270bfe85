"""IoU of each class: of the pseudo labels of box classifiers, and of what segmentation networks predict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from analysis.images.pseudo_labels import AGREEING, KINDS, LabelFacts
from analysis.images.saved import saved_classes
from analysis.metrics import class_in_metrics, class_ious, final
from analysis.runs import Record, column, setting

PREDICTION = "prediction"


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """IoU of one kind of label, or of a network's predictions.

    Attributes:
        run: The run's label; empty if several runs share the scores.
        kind: A key of KINDS, AGREEING, or PREDICTION.
        miou: Mean over the classes that occur; NaN if unknown.
        iou: IoU by the name of the class, in the order of the classes; NaN where it does not occur.
        pixel_accuracy: Share of the pixels that are named rightly; NaN if unknown.
        num_images: Number of images that it was measured on; None if unknown.
        step: Step of the weights.
    """

    run: str
    kind: str
    miou: float
    iou: Mapping[str, float]
    pixel_accuracy: float = math.nan
    num_images: int | None = None
    step: int | None = None

    @property
    def label(self) -> str:
        """Display name: "CRF, RUN" for labels, the run's own for predictions."""
        if self.kind == PREDICTION:
            return self.run
        words = "agreeing pixels only" if self.kind == AGREEING else KINDS[self.kind]
        return f"{words}, {self.run}" if self.run else words


def label_scores(facts: LabelFacts) -> list[ClassScores]:
    """Return the scores of each kind of label that was judged, the agreeing pixels last."""
    return [
        ClassScores(
            run=facts.record.label,
            kind=kind,
            miou=facts.miou.get(kind, math.nan),
            iou=facts.iou.get(kind, {}),
            num_images=facts.num_judged,
            step=facts.step,
        )
        for kind in (*KINDS, AGREEING)
        if kind in facts.miou or kind in facts.iou
    ]


def prediction_scores(record: Record, names: Iterable[str] = ()) -> ClassScores | None:
    """Return the scores of a segmentation run's last validation; None where it has none.

    Args:
        record: The run.
        names: Names of classes as other runs have them, should this run not have its own.
    """
    ious = class_ious(record)
    miou = final(record, "validation_miou")
    if not ious and not math.isfinite(miou):
        return None
    own = ("background", *map(str, setting(record.config, "task.data.classes") or ()))
    name_of = {class_in_metrics(name): name for name in (*names, *own, *saved_classes(record))}
    images = record.environment.get("data", {}).get("validation_images")
    return ClassScores(
        run=record.label,
        kind=PREDICTION,
        miou=miou,
        iou={name_of.get(name, name): value for name, value in ious.items()},
        pixel_accuracy=final(record, "validation_pixel_accuracy"),
        num_images=images if isinstance(images, int) else None,
        step=int(column(record.validation, "step")[-1]),
    )


def class_names(scores: Sequence[ClassScores]) -> list[str]:
    """Return the names of all classes, each once, in their own order."""
    return list(dict.fromkeys(name for each in sorted(scores, key=lambda one: -len(one.iou)) for name in each.iou))


def without_repetition(scores: Sequence[ClassScores]) -> list[ClassScores]:
    """Return scores without those that repeat another run's: labels that learn nothing are the same for all runs."""
    found: dict[str, ClassScores] = {}
    for each in scores:
        key = repr((each.kind, each.miou, sorted(each.iou.items())))
        if each.kind not in ("filled_boxes", "grabcut"):
            found[f"{key} {each.run}"] = each
        elif key not in found:
            found[key] = each
    kinds = [each.kind for each in found.values()]
    return [
        ClassScores(**{**vars(each), "run": ""})
        if each.kind in ("filled_boxes", "grabcut") and kinds.count(each.kind) == 1
        else each
        for each in found.values()
    ]
