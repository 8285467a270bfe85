"""Folders of pseudo labels: RUN/labels/step_NNNNNN, which `python -m train.pseudo_labels` writes and a run trains on.

crf/NAME.png, retrieved/NAME.png   the two labels of an image, with the VOC palette
labels.json                        how and from what they were made, and how good they are
shown/NAME.npz                     what led to the labels of some images, for reports
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from train.config.errors import ConfigError
from train.config.facts.run_layout import LABELS, LABELS_RECORD
from train.data.annotated.collection import AnnotatedImages

CRF, RETRIEVED, SHOWN = "crf", "retrieved", "shown"  # folders
FORMAT = 1
_MOST_FAULTS = 5


class PseudoLabels(NamedTuple):
    """The two labels of an image, uint8 (H, W)."""

    crf: np.ndarray
    retrieved: np.ndarray


class LabelFolder:
    """The pseudo labels of a collection of images."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], images: AnnotatedImages) -> None:
        """Initialize from a folder that `open_labels` has checked."""
        self.folder, self.facts = folder, facts
        self._images = images

    def read(self, index: int) -> PseudoLabels:
        """Return the labels of an image.

        Raises:
            ConfigError: A file is damaged, or does not have the size of the image.
        """
        name, size = self._images.name(index), self._images.size(index)
        return PseudoLabels(*(_labels_of(self.folder / kind / f"{name}.png", size) for kind in (CRF, RETRIEVED)))

    def shown(self, index: int) -> dict[str, np.ndarray] | None:
        """Return the arrays that led to the labels of an image, as kept for reports; None if they were not."""
        path = self.folder / SHOWN / f"{self._images.name(index)}.npz"
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    def shown_images(self) -> list[int]:
        """Return the images of which `shown` has arrays."""
        kept = {path.stem for path in (self.folder / SHOWN).glob("*.npz")}
        return [index for index in range(len(self._images)) if self._images.name(index) in kept] if kept else []

    @property
    def fingerprint(self) -> str:
        """A hash (32 hex digits) of the bytes of all labels of these images."""
        digest = hashlib.blake2b(digest_size=16)
        for index in range(len(self._images)):
            name = self._images.name(index)
            digest.update(f"{name}\n".encode())
            for kind in (CRF, RETRIEVED):
                digest.update((self.folder / kind / f"{name}.png").read_bytes())
        return digest.hexdigest()


def open_labels(path: str, images: AnnotatedImages, *, key: str) -> LabelFolder:
    """Open the labels of images, and check that they were made from these images and boxes.

    Args:
        path: The folder RUN/labels/step_NNNNNN.
        images: The images that are to have labels.
        key: Path of the setting in the configuration, for messages.

    Raises:
        ConfigError: The folder is none of labels, is not finished, or its labels are those of other images, boxes or
            classes.
    """
    folder = Path(path).expanduser()
    facts = _facts(folder, key)
    if facts["classes"] != images.classes:
        theirs, ours = (", ".join(names[1:]) for names in (facts["classes"], images.classes))
        raise ConfigError([f"{key}: {path} has labels of the classes {theirs}; the images have {ours}"])
    if faults := _image_faults(folder, facts["images"], images, key):
        raise ConfigError(faults)
    return LabelFolder(folder, facts, images)


def _facts(folder: Path, key: str) -> dict[str, Any]:
    place = folder / LABELS_RECORD
    if not place.is_file():
        raise ConfigError([f"{key}: {folder} {_why_no_labels(folder)}"])
    try:
        facts = json.loads(place.read_text())
        if facts["format"] != FORMAT or not isinstance(facts["images"], dict):
            raise ValueError(f"format {facts['format']}, not {FORMAT}")
        return facts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError([f"{key}: {place} cannot be read ({error}); make the labels again"]) from None


def _why_no_labels(folder: Path) -> str:
    again = "run `python -m train.pseudo_labels RUN` again"
    if folder.with_name(f"{folder.name}.partial").is_dir():
        return f"is not finished; {again}, which goes on where it stopped"
    records = (*folder.glob(f"step_*/{LABELS_RECORD}"), *folder.glob(f"{LABELS}/*/{LABELS_RECORD}"))
    inside = sorted(each.parent for each in records)
    if inside:
        return f"holds no labels itself; did you mean {inside[-1]}?"
    if not folder.exists():
        return "does not exist; `python -m train.pseudo_labels RUN` makes it from a run of the task box_classification"
    return f"has no {LABELS_RECORD}; give a folder RUN/labels/step_NNNNNN"


def _image_faults(folder: Path, labeled: Mapping[str, Any], images: AnnotatedImages, key: str) -> list[str]:
    """Return a fault for each image without labels of its own, at most _MOST_FAULTS."""
    faults, repeated = [], images.repeated_names()
    if repeated:
        return [f"{key}: labels are found by the names of images, and {repeated[0]} is the name of more than one"]
    for index in range(len(images)):
        name = images.name(index)
        if name not in labeled:
            faults.append(f"{key}: {folder} has no labels of {name}")
        elif labeled[name] != images.identity(index):
            faults.append(f"{key}: the labels of {name} were made from another image or other boxes")
        else:
            paths = [folder / kind / f"{name}.png" for kind in (CRF, RETRIEVED)]
            faults += [f"{key}: {path} does not exist" for path in paths if not path.is_file()]
    more = len(faults) - _MOST_FAULTS
    return [*faults[:_MOST_FAULTS], *([f"... and {more} more of {len(images)} images"] if more > 0 else [])]


def _labels_of(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(path) as opened:
            labels = np.asarray(opened)
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError([f"{path}: cannot be read as labels ({error}); make them again"]) from None
    if labels.shape != size or labels.dtype != np.uint8:
        given = f"{labels.dtype} of {' x '.join(map(str, labels.shape))}"
        raise ConfigError(
            [f"{path}: {given} pixels, not the {size[0]} x {size[1]} of the image; make the labels again"]
        )
    return labels
