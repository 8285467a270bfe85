"""Image of box-supervised segmentation: photo, boxes and whatever maps and labels of it a file holds.

Shapes: H, W height and width of an image, K boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

VOID = 255  # a pixel that does not count
# Of each array its axes; a letter has one size throughout a file.
_AXES = {"image": "HW3", "classes": "C", "boxes": "K4", "box_classes": "K", "truth": "HW", "attention": "HW",
         "activation": "HW", "crf": "HW", "retrieved": "HW", "confidence": "HW", "bilinear": "HW",
         "prediction": "HW"}  # fmt: skip
_REQUIRED = ("image", "classes")
_LABELS = ("truth", "crf", "retrieved", "bilinear", "prediction")
_REALS = ("attention", "activation", "confidence")

Use = Literal["validation", "training"]


@dataclass(frozen=True, kw_only=True)
class SegmentedImage:
    """One image at one step; a map or label that its file does not hold is None.

    Attributes:
        name: Name of the image, the same in all runs.
        step: Step of the evaluation, or of the checkpoint that made the labels.
        use: What the image is for: "validation" or "training".
        classes: Names of all classes, the background's first.
        image: The photo, (H, W, 3) uint8.
        boxes: x0, y0, x1, y1 in pixels, ends exclusive, (K, 4).
        box_classes: Number of the class of each box, (K,).
        truth: Class of each pixel, (H, W) uint8; VOID does not count.
        attention: Background attention A, (H, W).
        activation: Largest class activation, (H, W).
        crf: Pseudo label of the CRF, (H, W) uint8.
        retrieved: Pseudo label by retrieval, (H, W) uint8.
        confidence: Confidence of the network in the label of the CRF, from 0 to 1, (H, W).
        bilinear: Class of the network's scores, only up-sampled, (H, W) uint8.
        prediction: Class that the network predicts, (H, W) uint8.
    """

    name: str
    step: int
    use: Use
    classes: tuple[str, ...]
    image: np.ndarray
    boxes: np.ndarray
    box_classes: np.ndarray
    truth: np.ndarray | None = None
    attention: np.ndarray | None = None
    activation: np.ndarray | None = None
    crf: np.ndarray | None = None
    retrieved: np.ndarray | None = None
    confidence: np.ndarray | None = None
    bilinear: np.ndarray | None = None
    prediction: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def disagreement(self) -> np.ndarray | None:
        """Where the two pseudo labels differ, (H, W) bool; None without both."""
        if self.crf is None or self.retrieved is None:
            return None
        return (self.crf != self.retrieved) & (self.crf != VOID) & (self.retrieved != VOID)

    @property
    def numbers(self) -> list[int]:
        """Numbers of the classes that occur in any label or box, ascending; VOID last."""
        labels = [np.unique(label) for key in _LABELS if (label := getattr(self, key)) is not None]
        return sorted({int(number) for part in (*labels, self.box_classes) for number in part})

    def class_name(self, number: int) -> str:
        """Return the name of a class; of a number that has none, the number."""
        return self.classes[number] if number < len(self.classes) else f"class {number}"

    def right_share(self, label: np.ndarray) -> float:
        """Return the share of the truth's pixels that a label names rightly; NaN without any truth."""
        known = np.zeros(self.size, dtype=bool) if self.truth is None else self.truth != VOID
        return float((label == self.truth)[known].mean()) if known.any() else float("nan")


def segmented_image(
    arrays: Mapping[str, np.ndarray], *, name: str, step: int, use: Use | None = None
) -> SegmentedImage:
    """Return an image from the arrays of its file.

    Args:
        arrays: The arrays.
        name: Name of the file, without the prefix that tasks give to images of training and to labels.
        step: As in SegmentedImage.
        use: As in SegmentedImage; None: training, where there is a confidence, else validation.

    Raises:
        ValueError: The arrays do not belong together.
        KeyError: One is missing.
    """
    own = {key: arrays[key] for key in _AXES if key in arrays or key in _REQUIRED}
    own.setdefault("boxes", np.zeros((0, 4), np.int32))
    own.setdefault("box_classes", np.zeros(len(own["boxes"]), np.int32))
    _check(own)
    classes = tuple(str(word) for word in own.pop("classes"))
    is_training = use == "training" or (use is None and "confidence" in own)
    prefix = "training-" if "confidence" in own else "labels-" if "crf" in own else ""
    own |= {key: own[key].astype(np.float32) for key in _REALS if key in own}  # float16 overflows when it is summed
    return SegmentedImage(
        name=name.removeprefix(prefix),
        step=step,
        use="training" if is_training else "validation",
        classes=classes,
        **own,
    )


def _check(found: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError where an array has other axes or values than it should, or another size than its neighbors."""
    sizes: dict[str, tuple[int, str]] = {"3": (3, "the layout"), "4": (4, "the layout")}
    for name, array in found.items():
        axes = _AXES[name]
        if array.ndim != len(axes):
            raise ValueError(f"{name} has shape {array.shape}, not {len(axes)} axes")
        kinds = "U" if name == "classes" else "biuf" if name in (*_REALS, "boxes") else "biu"
        if array.dtype.kind not in kinds:
            what = {"U": "words", "biu": "whole numbers"}.get(kinds, "numbers")
            raise ValueError(f"{name} holds {array.dtype}, not {what}")
        for letter, size in zip(axes, array.shape, strict=True):
            expected, whose = sizes.setdefault(letter, (size, name))
            if size != expected:
                raise ValueError(f"{name} has shape {array.shape}, which does not fit {whose} ({letter} is {expected})")
    if 0 in found["image"].shape or found["image"].dtype != np.uint8:
        raise ValueError(
            f"image holds {found['image'].dtype} of shape {found['image'].shape}, not the bytes of a photo"
        )
    if any(name in found and found[name].dtype != np.uint8 for name in _LABELS):
        raise ValueError("a label does not hold bytes")
    if (found["box_classes"] < 0).any():
        raise ValueError("a box has no class")
