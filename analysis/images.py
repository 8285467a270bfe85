"""Validation images that an image task saves in RUN/images/step_000500/NAME.npz.

Half-written and foreign files are skipped, with a note on the reason.

Shapes: H, W height and width of an image, C channels of what is filtered (1 depth, 3 color), P chosen pixels,
K samples of a pixel's kernel.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from analysis.runs import Record, setting, step_of

# Of each array its axes; a letter has one size throughout a file.
_AXES = {"guidance": "HW3", "input": "HWC", "output": "HWC", "truth": "HWC", "valid": "HW", "offset_length": "HW",
         "pixel": "P2", "positions": "PK2", "weights": "PK", "units_per_value": "", "unit": ""}  # fmt: skip
# Raised by numpy and zipfile for truncated, corrupt or foreign files.
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, kw_only=True)
class FilteredImage:
    """One validation image at one step, as saved by the task.

    Attributes:
        name: Name of the image, the same in all runs validated on it.
        step: Step of the evaluation.
        guidance: Guidance, (H, W, 3) uint8.
        input: Image to filter, (H, W, C) float from 0 to 1.
        output: Filtered image, (H, W, C).
        truth: Ground truth, (H, W, C).
        valid: Whether the truth is known, (H, W) bool.
        units_per_value: Value of 1.0 in `unit`.
        unit: Unit of the error, such as "cm"; empty if there is none.
        offset_length: Mean length of the learned offsets in pixels, (H, W).
        pixel: Row and column of each chosen pixel, (P, 2) integers.
        positions: Rows and columns of that pixel's samples, (P, K, 2).
        weights: Weights of the samples, (P, K): they sum to 0 in the residual form and to 1 otherwise.
        border: Width in pixels of the margin that the task's metrics exclude.
    """

    name: str
    step: int
    guidance: np.ndarray
    input: np.ndarray
    output: np.ndarray
    truth: np.ndarray
    valid: np.ndarray
    units_per_value: float
    unit: str
    offset_length: np.ndarray
    pixel: np.ndarray
    positions: np.ndarray
    weights: np.ndarray
    border: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.guidance.shape[0], self.guidance.shape[1]

    def error(self, of: Literal["input", "output"]) -> np.ndarray:
        """Return the absolute error in units, the mean over channels: (H, W), NaN where the truth is not known."""
        return np.where(self.valid, np.abs(self._difference(of)).mean(axis=2), np.nan)

    def rmse(self, of: Literal["input", "output"]) -> float:
        """Return the root mean squared error in units over valid pixels inside the border; NaN where none is valid."""
        inside = np.zeros_like(self.valid)
        height, width = (slice(self.border, n - self.border) if n > 2 * self.border else slice(None) for n in self.size)
        inside[height, width] = self.valid[height, width]
        squares = np.square(self._difference(of)[inside])
        return float(np.sqrt(squares.mean())) if squares.size else float("nan")

    def _difference(self, of: Literal["input", "output"]) -> np.ndarray:
        values = self.input if of == "input" else self.output
        return (values.astype(float) - self.truth) * self.units_per_value


@dataclass(frozen=True, kw_only=True)
class RunImages:
    """The images of a run's last evaluation that could be read."""

    record: Record
    images: Sequence[FilteredImage] = ()
    notes: Sequence[str] = ()
    absence: str = ""  # why there are none; empty where there are


def keeps_images(record: Record) -> bool:
    """Return whether a run has images, or is of a task that keeps some."""
    return (record.folder / "images").is_dir() or setting(record.config, "task.shown_images") is not None


def read_images(record: Record) -> RunImages:
    """Read the images of the latest evaluation with any readable one; unreadable files are noted."""
    notes: list[str] = []
    border = setting(record.config, "task.border") or 0
    for step, folder in reversed(_steps(record.folder / "images")):
        images = []
        for path in sorted(folder.glob("[!.]*.npz")):  # not those that are just being written under a hidden name
            try:
                images.append(read_image(path, step=step, border=border))
            except _UNREADABLE as error:
                notes.append(f"{path.relative_to(record.folder)} cannot be read ({_reason(error)}); skipped.")
        if images:
            return RunImages(record=record, images=images, notes=notes)
    return RunImages(record=record, notes=notes, absence=_absence(record))


def read_image(path: Path, *, step: int, border: int = 0) -> FilteredImage:
    """Read one file; `border` pixels along its edges are not counted in errors.

    Raises:
        ValueError: Its arrays do not belong together.
        KeyError: It lacks an array.
        OSError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error: It is broken.
    """
    # np.load closes a file that it was given the path of only if it could read it.
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        arrays = {name: file[name] for name in _AXES}
    _check(arrays)
    return FilteredImage(
        name=path.stem,
        step=step,
        border=border,
        units_per_value=float(arrays.pop("units_per_value")),
        unit=str(arrays.pop("unit")),
        valid=arrays.pop("valid").astype(bool),
        offset_length=arrays.pop("offset_length").astype(float),
        **arrays,
    )


def _steps(folder: Path) -> list[tuple[int, Path]]:
    steps = ((step_of(path.name), path) for path in folder.glob("step_*") if path.is_dir())
    return sorted((step, path) for step, path in steps if step is not None)


def _check(found: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError where an array has other axes than it should, or another size than its neighbors."""
    sizes: dict[str, tuple[int, str]] = {"2": (2, "the layout"), "3": (3, "the layout")}
    for name, axes in _AXES.items():
        shape = found[name].shape
        if len(shape) != len(axes):
            raise ValueError(f"{name} has shape {shape}, not {len(axes)} axes")
        if name != "unit" and found[name].dtype.kind not in "biuf":
            raise ValueError(f"{name} holds {found[name].dtype}, not numbers")
        for letter, size in zip(axes, shape, strict=True):
            expected, whose = sizes.setdefault(letter, (size, name))
            if size != expected:
                raise ValueError(f"{name} has shape {shape}, which does not fit {whose} ({letter} is {expected})")
    if 0 in found["guidance"].shape or sizes["C"][0] not in (1, 3):
        raise ValueError(f"output has shape {found['output'].shape}, not that of an image with 1 or 3 channels")
    if ((found["pixel"] < 0) | (found["pixel"] >= found["guidance"].shape[:2])).any():
        raise ValueError("a chosen pixel lies outside the image")


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]}"
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def _absence(record: Record) -> str:
    if setting(record.config, "task.shown_images") == 0:
        return f"{record.label}: no images, because task.shown_images was 0"
    if (record.folder / "images").is_dir():
        return f"{record.label}: no readable image in {record.folder / 'images'}"
    return f"{record.label}: no images in {record.folder} yet"
