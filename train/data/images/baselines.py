"""Baseline joint filters: OpenCV's joint bilateral and guided filters.

H, W  height and width
C     channels of the image to filter, 1 or 3
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from train.data.images.resize import fill_holes

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


class Filters(NamedTuple):
    """The baselines with the parameters for a task, near the best of a grid on other images than are judged.

    Args:
        guided: The guided filter.
        bilateral: The joint bilateral filter.
        rolling: Whether each output of the guided filter guides the next; the other keeps its guidance.
    """

    guided: _Guided
    bilateral: _Bilateral
    rolling: bool = False


def depth_upsampling(scale: int) -> Filters:
    """Return the filters for depth.

    On Middlebury 11 to 25 (bicubic input, 6 border pixels excluded), x4, x8 and x16, where the input itself has an RMSE
    of 2.26, 3.94 and 6.30, the guided filter has 2.11, 3.59, 5.79 and the joint bilateral one 2.05, 3.40, 5.45.
    """
    return Filters(_Guided(max(1, scale // 2), 0.0003), _Bilateral(scale / 2, 0.06))


# For textures, 4 times, on procedural-textures 100 to 105, where the input has 24.3 dB: the guided filter has 32.5
# (31.8 where the input guides all), the joint bilateral one 32.3 (31.4 where each output guides the next).
TEXTURE = Filters(_Guided(2, 0.01), _Bilateral(2, 0.4), rolling=True)


def mask_upsampling(scale: int) -> Filters:
    """Return the filters for masks.

    On procedural-objects 500 to 503, x8, where bicubic upsampling has a mean absolute error of 0.0207, the guided
    filter has 0.0184 and the joint bilateral one 0.0137.
    """
    return Filters(_Guided(scale, 0.0001), _Bilateral(1.5 * scale, 0.06))


def denoising(deviation: float) -> Filters:
    """Return the filters for images with noise of a known standard deviation, relative to the range of values.

    On procedural-modalities 500 to 505 with noise of 0.05, 0.1 and 0.2, which has 26.0, 20.0 and 14.0 dB, the guided
    filter has 36.3, 33.5 and 31.0 dB; on 500 to 502 the joint bilateral one has 39.1, 36.6 and 33.7 dB.
    """
    sigma_space, sigma_color = 4 + 40 * deviation, max(0.03, 0.25 * deviation)
    return Filters(_Guided(round(1 + 25 * deviation), 0.0001), _Bilateral(sigma_space, sigma_color))


def baselines(
    guidance: np.ndarray, image: np.ndarray, valid: np.ndarray, filters: Filters, *, iterations: int = 1
) -> dict[str, np.ndarray]:
    """Return an image filtered by the baselines.

    Args:
        guidance: float32 (H, W, 3), from 0 to 1.
        image: The image to filter, float32 (H, W) or (H, W, C), about 0 to 1.
        valid: bool (H, W); invalid pixels are replaced by the nearest valid value.
        filters: The parameters.
        iterations: Number of times the filter is applied.

    Returns:
        `joint_bilateral` and `guided_filter`, in the shape and type of `image`.
    """
    cv2.setNumThreads(1)  # ranks share the cores
    if valid.any():
        image = fill_holes(image, valid)
    return {
        "joint_bilateral": _repeated(filters.bilateral, guidance, image, iterations=iterations, rolling=False),
        "guided_filter": _repeated(filters.guided, guidance, image, iterations=iterations, rolling=filters.rolling),
    }


def _repeated(
    joint_filter: _Filter, guidance: np.ndarray, image: np.ndarray, *, iterations: int, rolling: bool
) -> np.ndarray:
    shape, guidance, image = image.shape, np.ascontiguousarray(guidance), np.ascontiguousarray(image)
    for _ in range(iterations):
        image = joint_filter.filtered(guidance, image)
        guidance = image if rolling else guidance
    return image.reshape(shape)
