"""Labels of one image after another, by a trained box classifier: what each worker does."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from modeling.segmentation.facts_bap import VOID
from modeling.segmentation.images_bap import palette_image
from modeling.segmentation.labels_bap import CRFSettings, Labels, LabelSettings
from modeling.segmentation.modeling_bap import BoxClassifier
from train.config.commands.pseudo_labels import PseudoLabelConfig
from train.config.errors import ConfigError
from train.data.annotated.baselines import filled_boxes, grabcut
from train.data.annotated.collection import AnnotatedImages
from train.data.annotated.images import Annotated
from train.data.annotated.label_folder import CRF, RETRIEVED, SHOWN
from train.pseudo_labels.quality import counts
from train.tasks.segmentation.exhibits import annotated_arrays, boxes_with_classes, label_arrays

ROWS = "rows"  # folder of what is known of each image, while labels are being made


class Labeler:
    """Labels images and writes what it finds to a folder; a file of `rows` says that an image is done."""

    def __init__(
        self, model: BoxClassifier, images: AnnotatedImages, settings: PseudoLabelConfig, folder: Path
    ) -> None:
        """Initialize from a trained model; on a GPU if there is one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.eval().to(device)  # type: ignore[arg-type]
        self._images, self._settings, self._folder = images, settings, folder
        crf = settings.crf
        own = {name: getattr(crf, name) for name in ("weight", "xy", "rgb", "smooth_weight", "smooth_xy", "steps")}
        self._how = LabelSettings(attention_threshold=settings.attention_threshold, crf=CRFSettings(**own))

    def label(self, index: int) -> dict[str, Any]:
        """Label an image, write its files, and return its row.

        Raises:
            ConfigError: The image cannot be read or labeled.
        """
        sample, began = self._images.read(index), time.monotonic()
        try:
            labels = self._model.labels(
                sample.image, boxes_with_classes(sample), settings=self._how, grid=self._settings.grid
            )
        except ValueError as error:  # positions too far apart for the lattice of the CRF
            raise ConfigError([f"{sample.name}: {error}"]) from None
        seconds = time.monotonic() - began
        row = self._row(index, sample, labels) | {"seconds": seconds}
        _write_image(self._folder / CRF / f"{sample.name}.png", palette_image(labels.crf))
        _write_image(self._folder / RETRIEVED / f"{sample.name}.png", palette_image(labels.retrieved))
        if index < self._settings.shown_images:
            arrays = annotated_arrays(sample, self._images.classes) | label_arrays(labels)
            np.savez_compressed(self._folder / SHOWN / f"{sample.name}.npz", **arrays)  # type: ignore[arg-type]
        _write_text(self._folder / ROWS / f"{sample.name}.json", json.dumps(row))
        return row

    def _row(self, index: int, sample: Annotated, labels: Labels) -> dict[str, Any]:
        crf, retrieved = (each.cpu().numpy().astype(np.uint8) for each in (labels.crf, labels.retrieved))
        classes = self._images.classes
        return {
            "name": sample.name,
            "identity": self._images.identity(index),
            "agreeing": int((crf == retrieved).sum()),
            "pixels": np.bincount(crf.ravel(), minlength=len(classes)).tolist(),
            "vanished": [
                {"box": each.box, "class": classes[sample.classes[each.box]], "why": each.why}
                for each in labels.vanished
            ],
            "counts": self._counts(sample, labels, crf, retrieved),
        }

    def _counts(
        self, sample: Annotated, labels: Labels, crf: np.ndarray, retrieved: np.ndarray
    ) -> dict[str, Any] | None:
        if sample.mask is None:
            return None
        ways = {"filled_boxes": filled_boxes(sample)}
        if self._settings.grabcut:
            ways["grabcut"] = grabcut(sample)
        ways |= {
            "unary": labels.unary.argmax(dim=0).cpu().numpy().astype(np.uint8),
            CRF: crf,
            RETRIEVED: retrieved,
            "agreeing": np.where(crf == retrieved, crf, np.uint8(VOID)),
        }
        return {way: counts(found, sample.mask, len(self._images.classes)) for way, found in ways.items()}


def _write_image(path: Path, image: Image.Image) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    image.save(partial, format="PNG")
    partial.replace(path)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)
