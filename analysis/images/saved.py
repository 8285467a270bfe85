"""Images that an image task saves in RUN/images/step_000500/NAME.npz, and a run's labels in RUN/labels.

The content of a file says which task wrote it. Half-written and foreign files are skipped, with a note on the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.images.archive import UNREADABLE, archives, read_arrays, reason, steps_in
from analysis.images.filtered import FilteredImage, filtered_image
from analysis.images.segmented import SegmentedImage, segmented_image
from analysis.runs import Record, setting


@dataclass(frozen=True, kw_only=True)
class RunImages:
    """The images of a run's last evaluation that could be read, and those of its last pseudo labels.

    Attributes:
        record: The run.
        images: Images of a joint filter.
        segmented: Images of box-supervised segmentation.
        notes: Remarks on files that were skipped.
        absence: Why there are no images; empty where there are.
    """

    record: Record
    images: Sequence[FilteredImage] = ()
    segmented: Sequence[SegmentedImage] = ()
    notes: Sequence[str] = ()
    absence: str = ""


def keeps_images(record: Record) -> bool:
    """Return whether a run has images, or is of a task that keeps some."""
    has_some = any((record.folder / name).is_dir() for name in ("images", "labels"))
    return has_some or setting(record.config, "task.shown_images") is not None


def read_images(record: Record) -> RunImages:
    """Read the images of the latest evaluation and labels with any readable one; unreadable files are noted."""
    notes: list[str] = []
    found = _latest(record, "images", notes)
    labels = [image for image in _latest(record, "labels", notes, below="shown") if isinstance(image, SegmentedImage)]
    return RunImages(
        record=record,
        images=[image for image in found if isinstance(image, FilteredImage)],
        segmented=[*(image for image in found if isinstance(image, SegmentedImage)), *labels],
        notes=notes,
        absence="" if found or labels else _absence(record),
    )


def read_image(path: Path, *, step: int, border: int = 0) -> FilteredImage | SegmentedImage:
    """Read one file; `border` pixels along a filtered image's edges are not counted in errors.

    Raises:
        ValueError: Its arrays do not belong together.
        KeyError: It lacks an array.
        OSError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error: It is broken.
    """
    arrays = read_arrays(path)
    if "classes" in arrays:
        use = "training" if path.parent.name == "shown" else None
        return segmented_image(arrays, name=path.stem, step=step, use=use)
    return filtered_image(arrays, name=path.stem, step=step, border=border)


def saved_classes(record: Record) -> tuple[str, ...]:
    """Return the names of a run's classes as its latest images have them, the background's first; none if unknown."""
    for _, folder in reversed(steps_in(record.folder / "images")):
        for path in archives(folder):
            try:
                return tuple(str(name) for name in read_arrays(path, only=("classes",))["classes"])
            except UNREADABLE:
                continue
    return ()


def _latest(
    record: Record, kind: str, notes: list[str], *, below: str = ""
) -> Sequence[FilteredImage | SegmentedImage]:
    border = setting(record.config, "task.border") or 0
    for step, folder in reversed(steps_in(record.folder / kind)):
        images = []
        for path in archives(folder / below):
            try:
                images.append(read_image(path, step=step, border=border))
            except UNREADABLE as error:
                notes.append(f"{path.relative_to(record.folder)} cannot be read ({reason(error)}); skipped.")
        if images:
            return images
    return []


def _absence(record: Record) -> str:
    if setting(record.config, "task.shown_images") == 0:
        return f"{record.label}: no images, because task.shown_images was 0"
    if (record.folder / "images").is_dir():
        return f"{record.label}: no readable image in {record.folder / 'images'}"
    return f"{record.label}: no images in {record.folder} yet"
