"""Other joint filters, beside which ours is measured: OpenCV's joint bilateral and guided filter.

H, W  height and width
C     channels of what is filtered, 1 or 3
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from train.data.images.resize import fill_holes

# Parameters, all but the best of a grid. For up-sampling: on Middlebury 11 to 25 (bicubic input, 6 pixels of the border
# left out), x4, x8 and x16, where the input alone is at an RMSE of 2.26, 3.94 and 6.30:
#   guided filter    radius scale / 2, eps 0.0003              2.11, 3.59, 5.79
#   joint bilateral  sigma_space scale / 2, sigma_colour 0.06  2.05, 3.40, 5.45
# For texture removal: on procedural-textures 100 to 105, 4 times, where the input is at 24.3 dB:
#   guided filter    radius 2, eps 0.01               32.5, each output guiding the next (31.8 where the input does)
#   joint bilateral  sigma_space 2, sigma_colour 0.4  32.3, the input guiding all (31.4 where each output does)

# OpenCV takes a determinant of 1e-6 for the smallest, which changes every eps below 0.01 where colours go from 0 to 1:
# by up to 0.4 at eps 0.003. In 8-bit units no determinant is that small, and the filter is the published one.
_OPENCV_UNITS = 255


class _Guided(NamedTuple):
    """He, Sun and Tang 2013; `eps` is a variance of colours from 0 to 1."""

    radius: int
    eps: float

    def filtered(self, guidance: np.ndarray, image: np.ndarray) -> np.ndarray:
        scaled = guidance * np.float32(_OPENCV_UNITS)
        return cv2.ximgproc.guidedFilter(scaled, image, self.radius, self.eps * _OPENCV_UNITS**2)


class _Bilateral(NamedTuple):
    """Petschnigg et al. 2004; colours differ by the sum over channels, from 0 to 3."""

    sigma_space: float
    sigma_colour: float

    def filtered(self, guidance: np.ndarray, image: np.ndarray) -> np.ndarray:
        diameter = 2 * int(np.ceil(2 * self.sigma_space)) + 1
        return cv2.ximgproc.jointBilateralFilter(guidance, image, diameter, self.sigma_colour, self.sigma_space)


_Filter = _Guided | _Bilateral


def baselines(
    guidance: np.ndarray, given: np.ndarray, valid: np.ndarray, *, scale: int | None, iterations: int = 1
) -> dict[str, np.ndarray]:
    """Return what other filters make of an image.

    Args:
        guidance: float32 (H, W, 3), from 0 to 1.
        given: float32 (H, W) or (H, W, C), about 0 to 1: what is to be filtered.
        valid: bool (H, W); elsewhere the nearest valid value is filtered.
        scale: how much smaller `given` was made before; null: not at all, its texture is to go.
        iterations: how often the filter is applied, with the same guidance for the joint bilateral filter and, where
            texture is to go, each time the last output for the guided one.

    Returns:
        `joint_bilateral` and `guided_filter`, the shape and type of `given`.
    """
    cv2.setNumThreads(1)  # ranks share the cores
    if valid.any():
        given = fill_holes(given, valid)
    guided: _Filter = _Guided(2, 0.01) if scale is None else _Guided(max(1, scale // 2), 0.0003)
    bilateral: _Filter = _Bilateral(2, 0.4) if scale is None else _Bilateral(scale / 2, 0.06)
    return {
        "joint_bilateral": _repeated(bilateral, guidance, given, iterations=iterations, rolling=False),
        "guided_filter": _repeated(guided, guidance, given, iterations=iterations, rolling=scale is None),
    }


def _repeated(
    chosen: _Filter, guidance: np.ndarray, given: np.ndarray, *, iterations: int, rolling: bool
) -> np.ndarray:
    guidance, image = np.ascontiguousarray(guidance), np.ascontiguousarray(given)
    for _ in range(iterations):
        image = chosen.filtered(guidance, image)
        guidance = image if rolling else guidance
    return image.reshape(given.shape)
