"""Folders in the layout of PASCAL VOC: list files, images, boxes in XML, masks with a palette.

ROOT/ImageSets/Segmentation/train.txt   names, one a line; or a path of an image and one of a mask
ROOT/JPEGImages/NAME.jpg
ROOT/Annotations/NAME.xml               boxes, 1-based and inclusive
ROOT/SegmentationClass/NAME.png         numbers of classes; optional
ROOT/classes.txt                        names of all classes with the background first; optional
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageOps

from modeling.segmentation.facts_bap import BACKGROUND, VOID
from train.config.errors import ConfigError
from train.data.annotated.images import Annotated

if TYPE_CHECKING:
    from hashlib import blake2b

_SETS = ("ImageSets/Segmentation", "ImageSets/Main")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_MOST_FAULTS = 5  # of one kind in a message
_AT_A_TIME = 1 << 20  # bytes read for a hash


class Files(NamedTuple):
    """The files of an image."""

    name: str
    image: Path
    boxes: Path
    mask: Path | None


class VocFolder:
    """The images that a list of a folder names; each file is read when it is asked for."""

    def __init__(self, files: Sequence[Files], classes: Sequence[str]) -> None:
        """Initialize from files and the names of all classes, the background's first."""
        self.files, self.classes = files, classes
        self.names: Sequence[str] = [each.name for each in files]

    def has_mask(self, index: int) -> bool:
        """Return whether an image has a mask in SegmentationClass."""
        return self.files[index].mask is not None

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width, as EXIF turns the image; does not decode it."""
        with Image.open(self.files[index].image) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # orientations with sides exchanged
            return (image.width, image.height) if turned else (image.height, image.width)

    def most_boxes(self) -> int:
        """Return the most boxes of an image; reads all files of boxes."""
        return max(sum(1 for _ in named_boxes(files.boxes)) for files in self.files)

    def read(self, index: int) -> Annotated:
        """Return an image with its annotations.

        Raises:
            ConfigError: A file is damaged, or they do not go together.
        """
        files = self.files[index]
        try:
            with Image.open(files.image) as opened:
                image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise ConfigError([f"{files.image}: cannot be read as an image ({error})"]) from None
        boxes, classes = self._boxes(files.boxes, image.shape[:2])
        return Annotated(files.name, image, boxes, classes, self._mask(files, image.shape[:2]))

    def check(self, index: int) -> None:
        """Check boxes and the size of the mask against the size of the image, without decoding either.

        Raises:
            ConfigError: A file is damaged, or they do not go together.
        """
        files = self.files[index]
        try:
            size = self.size(index)
        except (OSError, SyntaxError, ValueError) as error:
            raise ConfigError([f"{files.image}: cannot be read as an image ({error})"]) from None
        self._boxes(files.boxes, size)
        if files.mask is not None:
            self._opened_mask(files.mask, size).close()

    def update(self, digest: blake2b, index: int, *, with_mask: bool) -> None:
        """Hash the bytes of all files, and the names of the classes."""
        digest.update("\0".join(self.classes).encode())
        files = self.files[index]
        for path in (files.image, files.boxes, files.mask if with_mask else None):
            if path is None:
                continue
            digest.update(f"{path.suffix.lower()} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while block := file.read(_AT_A_TIME):
                    digest.update(block)

    def _boxes(self, path: Path, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes (K, 4), 0-based and exclusive, cut at the image's edges, and their classes (K,)."""
        height, width = size[:2]
        places: list[tuple[int, int, int, int]] = []
        numbers: list[int] = []
        for name, (left, top, right, bottom) in named_boxes(path):
            if name not in self.classes[1:]:
                raise ConfigError([_unknown_class(path, name, self.classes)])
            place = (
                *(max(0, math.floor(left) - 1), max(0, math.floor(top) - 1)),
                *(min(width, math.ceil(right)), min(height, math.ceil(bottom))),
            )
            if place[0] >= place[2] or place[1] >= place[3]:
                at = f"{left:g}, {top:g}, {right:g}, {bottom:g}"
                raise ConfigError([f"{path}: the box {at} of {name} is empty in an image of {width} x {height} pixels"])
            places.append(place)
            numbers.append(list(self.classes).index(name))
        return np.array(places, np.int64).reshape(-1, 4), np.array(numbers, np.int64)

    @staticmethod
    def _opened_mask(path: Path, size: tuple[int, ...]) -> Image.Image:
        try:
            opened = Image.open(path)
        except (OSError, SyntaxError, ValueError) as error:
            raise ConfigError([f"{path}: cannot be read as an image ({error})"]) from None
        if opened.mode not in ("P", "L") or (opened.height, opened.width) != tuple(size[:2]):
            wanted = f"a palette or gray image of {size[1]} x {size[0]} pixels with the number of a class at each"
            given = f"{opened.mode} of {opened.width} x {opened.height} pixels"
            opened.close()
            raise ConfigError([f"{path}: {given}; give {wanted}"])
        return opened

    def _mask(self, files: Files, size: tuple[int, ...]) -> np.ndarray | None:
        if files.mask is None:
            return None
        with self._opened_mask(files.mask, size) as opened:
            try:
                mask = np.asarray(opened)
            except (OSError, SyntaxError, ValueError) as error:
                raise ConfigError([f"{files.mask}: cannot be read as an image ({error})"]) from None
        largest = int(np.where(mask == VOID, 0, mask).max(initial=0))
        if largest >= len(self.classes):
            count = f"there are {len(self.classes)} classes with the background"
            raise ConfigError([f"{files.mask}: holds the class number {largest}, but {count}"])
        return mask


def open_voc(path: str, list_name: str | None, classes: Sequence[str] | None, *, key: str) -> VocFolder:
    """Return the images that a list names, in its order.

    Args:
        path: The folder, the one with JPEGImages.
        list_name: Name of a list in ImageSets, such as train_aug, or path of a file; None is a fault that names the
            lists there are.
        classes: Names of the object classes, in the order of the masks' numbers from 1. None: those of classes.txt,
            or else all names in Annotations, sorted, which is VOC's own order.
        key: Path of the source in the configuration, for messages.

    Raises:
        ConfigError: With every fault: missing lists, images, boxes, masks.
    """
    root = Path(path).expanduser()
    if missing := [name for name in ("JPEGImages", "Annotations") if not (root / name).is_dir()]:
        hint = _nested(root)
        raise ConfigError([f"{key}.path: {path} has no {' and no '.join(missing)} folder{hint}"])
    entries = list(_listed(root, list_name, key=key))
    masks = (root / "SegmentationClass").is_dir()
    files, faults = [], []
    for name, mask in entries:
        found = _files_of(root, name, mask, with_masks=masks)
        if isinstance(found, str):
            faults.append(found)
        else:
            files.append(found)
    if faults:
        more = [f"... and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else []
        raise ConfigError([f"{key}.list: {fault}" for fault in faults[:_MOST_FAULTS]] + more)
    names = list(classes) if classes is not None else _classes_of(root)
    return VocFolder(files, [BACKGROUND, *names])


def named_boxes(path: Path) -> Iterator[tuple[str, tuple[float, float, float, float]]]:
    """Yield class and place of each box of an XML file: left, top, right, bottom, 1-based and inclusive.

    Raises:
        ConfigError: It is no XML, or a box lacks its name or a side.
    """
    try:
        for number, entry in enumerate(ElementTree.parse(path).getroot().findall("object")):
            name, sides = (entry.findtext("name") or "").strip(), [entry.findtext(f"bndbox/{s}") for s in _SIDES]
            if not name or None in sides:
                lacks = "a name" if not name else "a side of its bndbox"
                raise ConfigError([f"{path}: object {number + 1} lacks {lacks}"])
            left, top, right, bottom = (float(side or "") for side in sides)
            yield name, (left, top, right, bottom)
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise ConfigError([f"{path}: cannot be read as boxes ({error})"]) from None


_SIDES = ("xmin", "ymin", "xmax", "ymax")


def _listed(root: Path, list_name: str | None, *, key: str) -> Iterator[tuple[str, str | None]]:
    """Yield the name of each image that a list names, and the path of its mask where the list states one."""
    place = None if list_name is None else _place_of_list(root, list_name)
    if place is None:
        there = sorted({each.stem for folder in _SETS for each in (root / folder).glob("*.txt")})
        have = f"it has {', '.join(there)}" if there else f"it has none in {' or '.join(_SETS)}"
        if list_name is None:
            raise ConfigError([f"{key}.list: missing; name one of the lists of {root} ({have}), or a file"])
        why = " (the 10,582 names of train_aug come with SBD, not with VOC)" if list_name == "train_aug" else ""
        raise ConfigError([f"{key}.list: {root} has no list {list_name}{why}; {have}; or write the path of a file"])
    lines = [line.split() for line in place.read_text().splitlines() if line.strip()]
    if not lines:
        raise ConfigError([f"{key}.list: {place} is empty"])
    for words in lines:
        # -1 in lists of Main: the image does not hold the class of the list
        yield Path(words[0]).stem, words[1] if len(words) > 1 and "/" in words[1] else None


def _place_of_list(root: Path, list_name: str) -> Path | None:
    places = [Path(list_name).expanduser(), *(root / folder / f"{list_name}.txt" for folder in _SETS)]
    return next((each for each in places if each.is_file()), None)


def _files_of(root: Path, name: str, mask: str | None, *, with_masks: bool) -> Files | str:
    """Return the files of an image, or what is missing."""
    images = [root / "JPEGImages" / f"{name}{suffix}" for suffix in _IMAGE_SUFFIXES]
    image = next((each for each in images if each.is_file()), None)
    boxes = root / "Annotations" / f"{name}.xml"
    masks = root / mask.lstrip("/") if mask is not None else root / "SegmentationClass" / f"{name}.png"
    if image is None:
        return f"{images[0]} does not exist"
    if not boxes.is_file():
        return f"{boxes} does not exist: the boxes of {name}"
    if mask is not None and not masks.is_file():
        return f"{masks} does not exist: the mask that the list names for {name}"
    return Files(name, image, boxes, masks if with_masks and masks.is_file() else None)


def _classes_of(root: Path) -> list[str]:
    listed = root / "classes.txt"
    if listed.is_file():
        return [line.strip() for line in listed.read_text().splitlines() if line.strip()][1:]
    return sorted({name for path in sorted((root / "Annotations").glob("*.xml")) for name, _ in named_boxes(path)})


def _nested(root: Path) -> str:
    inside = sorted(each.parent for each in root.glob("*/JPEGImages")) or sorted(
        each.parent for each in root.glob("*/*/JPEGImages")
    )
    return f"; did you mean {inside[0]}?" if inside else "; give the folder that holds JPEGImages and Annotations"


def _unknown_class(path: Path, name: str, classes: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, classes[1:], n=1)
    return f"{path}: {name!r} is none of the classes {', '.join(classes[1:])}" + (
        f"; did you mean {near[0]}?" if near else ""
    )
