"""Exhibits of box-supervised segmentation: arrays for the report, and an image strip for TensorBoard.

Each file has `image` (H, W, 3) uint8, `classes`, the names of all classes with the background first, and those of

    boxes (K, 4), box_classes (K,)     of the image
    truth (H, W) uint8                 its mask, where it is known
    attention, activation (H, W)       A; and the largest u_c over classes, float16
    crf, retrieved (H, W) uint8        pseudo labels
    confidence (H, W) float16          sigma of the label of the CRF
    prediction (H, W) uint8            what the network says
    bilinear (H, W) uint8              the same of scores that were only up-sampled

that there are. H, W height and width, K boxes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from modeling.segmentation.images_bap import voc_palette
from modeling.segmentation.labels_bap import Labels
from train.data.annotated.images import Annotated
from train.data.annotated.label_folder import PseudoLabels
from train.tasks.task import Gallery

Arrays = dict[str, np.ndarray]


def boxes_with_classes(sample: Annotated) -> list[tuple[int, ...]]:
    """Return the boxes as `BoxClassifier.labels` takes them: class, x0, y0, x1, y1."""
    return [(int(number), *map(int, box)) for number, box in zip(sample.classes, sample.boxes, strict=True)]


def annotated_arrays(sample: Annotated, classes: Sequence[str]) -> Arrays:
    """Return an image with its annotations."""
    arrays = {
        "image": sample.image,
        "classes": np.array(classes),
        "boxes": sample.boxes.astype(np.int32),
        "box_classes": sample.classes.astype(np.int32),
    }
    return arrays if sample.mask is None else arrays | {"truth": sample.mask}


def label_arrays(labels: Labels) -> Arrays:
    """Return labels and what led to them."""
    return {
        "attention": labels.attention.cpu().numpy().astype(np.float16),
        "activation": labels.activation.amax(dim=0).cpu().numpy().astype(np.float16),
        "crf": labels.crf.cpu().numpy().astype(np.uint8),
        "retrieved": labels.retrieved.cpu().numpy().astype(np.uint8),
    }


def show_labels(sample: Annotated, labels: Labels, classes: Sequence[str], gallery: Gallery) -> None:
    """Show what a box classifier makes of an image."""
    _show(f"labels-{sample.name}", annotated_arrays(sample, classes) | label_arrays(labels), gallery)


def show_prediction(sample: Annotated, found: Tensor, classes: Sequence[str], gallery: Gallery) -> None:
    """Show a segmented image: `found` is (H, W)."""
    prediction = found.cpu().numpy().astype(np.uint8)
    _show(sample.name, annotated_arrays(sample, classes) | {"prediction": prediction}, gallery)


def show_upsampled(sample: Annotated, before: Tensor, found: Tensor, classes: Sequence[str], gallery: Gallery) -> None:
    """Show the labels (H, W) of scores that were up-sampled bilinearly, and of filtered ones."""
    labels = {"bilinear": before, "prediction": found}
    arrays = {name: label.cpu().numpy().astype(np.uint8) for name, label in labels.items()}
    _show(sample.name, annotated_arrays(sample, classes) | arrays, gallery)


def show_training(
    sample: Annotated,
    labels: PseudoLabels,
    confidence: Tensor,
    kept: Mapping[str, np.ndarray] | None,
    classes: Sequence[str],
    gallery: Gallery,
) -> None:
    """Show a training image with its labels and the network's confidence in them.

    Args:
        sample: The image.
        labels: Its labels.
        confidence: Sigma of the label of the CRF, (H, W).
        kept: `attention` and `activation` that led to the labels, if they were kept.
        classes: Names of all classes.
        gallery: The destination.
    """
    arrays = annotated_arrays(sample, classes) | {"crf": labels.crf, "retrieved": labels.retrieved}
    arrays |= {name: kept[name] for name in ("attention", "activation")} if kept is not None else {}
    arrays["confidence"] = confidence.float().cpu().numpy().astype(np.float16)
    _show(f"training-{sample.name}", arrays, gallery)


def _show(name: str, arrays: Arrays, gallery: Gallery) -> None:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "image"
    gallery.image(name, _strip(arrays))
    gallery.arrays(name, arrays)


def _strip(arrays: Arrays) -> Tensor:
    """Return the image and all maps of its size side by side, (3, H, n W)."""
    panels = [arrays["image"]]
    for key in ("truth", "attention", "activation", "crf", "retrieved", "confidence", "bilinear", "prediction"):
        if key in arrays:
            panels.append(_colored(arrays[key]))
    return torch.from_numpy(np.concatenate(panels, axis=1)).movedim(-1, 0) / 255


def _colored(values: np.ndarray) -> np.ndarray:
    """Return labels in the colors of VOC, and values from 0 to 1 in gray: (H, W, 3) uint8."""
    if values.dtype == np.uint8:
        return np.array(voc_palette(), np.uint8).reshape(-1, 3)[values]
    gray = (values.astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)
