"""Validation image of a joint filter: its arrays as a file holds them, and errors from them.

Shapes: H, W height and width of an image, C channels of what is filtered (1 depth, 3 color), P chosen pixels,
K samples of a pixel's kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Of each array its axes; a letter has one size throughout a file.
_AXES = {"guidance": "HW3", "input": "HWC", "output": "HWC", "truth": "HWC", "valid": "HW", "offset_length": "HW",
         "pixel": "P2", "positions": "PK2", "weights": "PK", "units_per_value": "", "unit": ""}  # fmt: skip


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


def filtered_image(arrays: Mapping[str, np.ndarray], *, name: str, step: int, border: int = 0) -> FilteredImage:
    """Return an image from the arrays of its file; `border` pixels along its edges are not counted in errors.

    Raises:
        ValueError: The arrays do not belong together.
        KeyError: One is missing.
    """
    own = {key: arrays[key] for key in _AXES}
    _check(own)
    return FilteredImage(
        name=name,
        step=step,
        border=border,
        units_per_value=float(own.pop("units_per_value")),
        unit=str(own.pop("unit")),
        valid=own.pop("valid").astype(bool),
        offset_length=own.pop("offset_length").astype(float),
        **own,
    )


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
