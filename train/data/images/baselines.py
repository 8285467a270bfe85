"""Baseline joint filters: OpenCV's joint bilateral and guided filters.

H, W  height and width
C     channels of the image to filter, 1 or 3
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from train.data.images.resize import fill_holes

# Parameters are near the best of a grid. For upsampling: on Middlebury 11 to 25 (bicubic input, 6 border pixels
# excluded), x4, x8 and x16, where the input itself has an RMSE of 2.26, 3.94 and 6.30:
#   guided filter    radius scale / 2, eps 0.0003              2.11, 3.59, 5.79
#   joint bilateral  sigma_space scale / 2, sigma_color 0.06  2.05, 3.40, 5.45
# For texture removal: on procedural-textures 100 to 105, 4 iterations, where the input has 24.3 dB:
#   guided filter    radius 2, eps 0.01               32.5, each output guiding the next (31.8 where the input does)
#   joint bilateral  sigma_space 2, sigma_color 0.4  32.3, the input guiding all (31.4 where each output does)

# OpenCV clamps determinants to 1e-6, which distorts every eps below 0.01 for colors from 0 to 1: by up to 0.4 at
# eps 0.003. In 8-bit units no determinant is that small, and the filter matches the published one.
_OPENCV_UNITS = 255


class _Guided(NamedTuple):
    """He, Sun and Tang 2013; `eps` is a variance of colors from 0 to 1."""

    radius: int
    eps: float

    def filtered(self, guidance: np.ndarray, image: np.ndarray) -> np.ndarray:
        scaled = guidance * np.float32(_OPENCV_UNITS)
        return cv2.ximgproc.guidedFilter(scaled, image, self.radius, self.eps * _OPENCV_UNITS**2)


class _Bilateral(NamedTuple):
    """Petschnigg et al. 2004; colors differ by the sum over channels, from 0 to 3."""

    sigma_space: float
    sigma_color: float

    def filtered(self, guidance: np.ndarray, image: np.ndarray) -> np.ndarray:
        diameter = 2 * int(np.ceil(2 * self.sigma_space)) + 1
        return cv2.ximgproc.jointBilateralFilter(guidance, image, diameter, self.sigma_color, self.sigma_space)


_Filter = _Guided | _Bilateral


def baselines(
    guidance: np.ndarray, image: np.ndarray, valid: np.ndarray, *, scale: int | None, iterations: int = 1
) -> dict[str, np.ndarray]:
    """Return an image filtered by the baselines.

    Args:
        guidance: float32 (H, W, 3), from 0 to 1.
        image: The image to filter, float32 (H, W) or (H, W, C), about 0 to 1.
        valid: bool (H, W); invalid pixels are replaced by the nearest valid value.
        scale: Downsampling factor of `image`; None for texture removal.
        iterations: Number of times the filter is applied. The joint bilateral filter keeps the same guidance; for
            texture removal, the guided filter uses its last output as guidance.

    Returns:
        `joint_bilateral` and `guided_filter`, in the shape and type of `image`.
    """
    cv2.setNumThreads(1)  # ranks share the cores
    if valid.any():
        image = fill_holes(image, valid)
    guided: _Filter = _Guided(2, 0.01) if scale is None else _Guided(max(1, scale // 2), 0.0003)
    bilateral: _Filter = _Bilateral(2, 0.4) if scale is None else _Bilateral(scale / 2, 0.06)
    return {
        "joint_bilateral": _repeated(bilateral, guidance, image, iterations=iterations, rolling=False),
        "guided_filter": _repeated(guided, guidance, image, iterations=iterations, rolling=scale is None),
    }


def _repeated(
    joint_filter: _Filter, guidance: np.ndarray, image: np.ndarray, *, iterations: int, rolling: bool
) -> np.ndarray:
    shape, guidance, image = image.shape, np.ascontiguousarray(guidance), np.ascontiguousarray(image)
    for _ in range(iterations):
        image = joint_filter.filtered(guidance, image)
        guidance = image if rolling else guidance
    return image.reshape(shape)
