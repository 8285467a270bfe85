"""The annotated images of several sources as one numbered collection."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from train.config.errors import ConfigError
from train.config.tasks.box_segmentation import PROCEDURAL_OBJECTS, PROCEDURAL_SIZE, AnnotatedSourceConfig
from train.data.annotated.drawn import DrawnObjects
from train.data.annotated.images import Annotated, AnnotatedSource
from train.data.annotated.voc_folder import open_voc
from train.data.drawn.series import series_faults

MOST_FAULTS = 10
_SMALLEST = 32  # pixels
_FORMAT = "annotated images 1"


class AnnotatedImages:
    """Images of one or more sources, by index."""

    def __init__(self, entries: Sequence[tuple[AnnotatedSource, int]]) -> None:
        """Initialize from sources, and the index in its source of each image."""
        self._entries = entries
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def classes(self) -> list[str]:
        """Names of all classes, the background's first."""
        return list(self._entries[0][0].classes)

    @property
    def have_masks(self) -> bool:
        """Whether the mask of every image is known."""
        return all(source.has_mask(i) for source, i in self._entries)

    def has_mask(self, index: int) -> bool:
        """Return whether an image's mask is known."""
        source, i = self._entries[index]
        return source.has_mask(i)

    def name(self, index: int) -> str:
        """Return an image's name."""
        source, i = self._entries[index]
        return source.names[i]

    def repeated_names(self) -> list[str]:
        """Return the names that more than one image has."""
        return [name for name, count in Counter(map(self.name, range(len(self)))).items() if count > 1]

    @cached_property
    def most_boxes(self) -> int:
        """A number of boxes that no image exceeds; the first access reads all boxes."""
        sources = {id(source): source for source, _ in self._entries}
        return max(source.most_boxes() for source in sources.values())

    def size(self, index: int) -> tuple[int, int]:
        """Return an image's height and width; does not decode it."""
        source, i = self._entries[index]
        return source.size(i)

    def read(self, index: int) -> Annotated:
        """Return an image with its annotations.

        Raises:
            ConfigError: A file is damaged.
        """
        source, i = self._entries[index]
        return source.read(i)

    def faults(self, *, decode: bool) -> list[str]:
        """Return what is wrong with the files, a line per fault, at most MOST_FAULTS.

        Args:
            decode: Also decode every image and mask.
        """
        found: list[str] = []
        for source, i in self._entries:
            try:
                source.read(i) if decode else source.check(i)
            except ConfigError as error:
                found += error.faults
            if len(found) >= MOST_FAULTS:
                return [*found[:MOST_FAULTS], "... (later files were not looked at)"]
        return found

    def identity(self, index: int) -> str:
        """Return a hash (16 hex digits) of an image and its boxes, from which pseudo labels are made."""
        source, i = self._entries[index]
        digest = hashlib.blake2b(f"{_FORMAT}\n".encode(), digest_size=8)
        source.update(digest, i, with_mask=False)
        return digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        """A hash (32 hex digits) of everything that determines the result of `read`; the first access reads all files.

        The names count too: pseudo labels are found by them.
        """
        if self._fingerprint is None:
            digest = hashlib.blake2b(f"{_FORMAT}\n".encode(), digest_size=16)
            for source, i in self._entries:
                digest.update(f"{source.names[i]}\n".encode())
                source.update(digest, i, with_mask=True)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def open_annotated(
    sources: Sequence[AnnotatedSourceConfig], *, classes: Sequence[str] | None, path: str
) -> AnnotatedImages:
    """Open the images of several sources.

    Args:
        sources: One or more sources.
        classes: Names of the object classes; None: those of the sources.
        path: Path of the sources in the configuration (`task.data.sources`), for messages.

    Raises:
        ConfigError: With every fault of any source: missing lists or files, ranges without images, different classes.
    """
    entries: list[tuple[AnnotatedSource, int]] = []
    opened: dict[str, AnnotatedSource] = {}  # by path in the configuration
    faults: list[str] = []
    for number, config in enumerate(sources):
        key = f"{path}.{number}"
        try:
            source = _open(config, classes, key=key)
            entries += [(source, i) for i in _chosen(len(source.names), config, key=key)]
            opened[key] = source
        except ConfigError as error:
            faults += error.faults
    faults += _class_faults(opened)
    if faults:
        raise ConfigError(faults)
    return AnnotatedImages(entries)


def _open(config: AnnotatedSourceConfig, classes: Sequence[str] | None, *, key: str) -> AnnotatedSource:
    if config.path == PROCEDURAL_OBJECTS:
        return _open_drawn(config, classes, key=key)
    place = Path(config.path).expanduser()
    if not place.is_dir():
        problem = "is a file" if place.is_file() else "does not exist"
        raise ConfigError(
            [f"{key}.path: {config.path} {problem}; use {PROCEDURAL_OBJECTS}, or a folder in the layout of PASCAL VOC"]
        )
    return open_voc(config.path, config.list, classes, key=key)


def _open_drawn(config: AnnotatedSourceConfig, classes: Sequence[str] | None, *, key: str) -> DrawnObjects:
    start, stop, size = config.start or 0, config.stop, config.size or PROCEDURAL_SIZE
    faults = list(series_faults(config.path, start=start, stop=stop, size=size, smallest=_SMALLEST, path=key))
    if faults or stop is None:
        raise ConfigError(faults)
    source = DrawnObjects(range(stop), size)
    if classes is not None and list(classes) != source.classes[1:]:
        names = ", ".join(source.classes[1:])
        raise ConfigError([f"task.data.classes: those of {config.path} are {names}; write null"])
    return source


def _chosen(count: int, config: AnnotatedSourceConfig, *, key: str) -> range:
    """Return the images that `start` and `stop` select, as in a Python slice."""
    selected = range(*slice(config.start, config.stop).indices(count))
    if selected:
        return selected
    raise ConfigError(
        [
            f"{key}.start: {config.start or 0} to stop {config.stop} selects none of the {count} images in "
            f"{config.path}; choose a range within 0 to {count}"
        ]
    )


def _class_faults(opened: dict[str, AnnotatedSource]) -> list[str]:
    """Return a fault for each source whose classes differ from the first one's."""
    if not opened:
        return []
    (first, source), *others = opened.items()
    expected = list(source.classes)
    return [
        f"{key}: its classes are {', '.join(other.classes[1:])}, those of {first} {', '.join(expected[1:])}; "
        "list the names in task.data.classes"
        for key, other in others
        if list(other.classes) != expected
    ]
