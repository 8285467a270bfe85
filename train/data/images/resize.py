"""Downsampling and upsampling of targets, by the methods of the depth-upsampling literature.

H, W  the target's height and width
C     its channels

The image is divided into floor(H / scale) x floor(W / scale) equal cells, and each becomes a pixel. If `scale` does not
divide a side, cells are slightly longer than `scale` pixels: PIL weights fractional pixels, while for block means and
the corner modes cells start and end at whole pixels. Thus the small image covers the whole original without padding or
cropping, and is upsampled to exactly H x W.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image

Downsampling = Literal[
    "bicubic", "bicubic_torch", "nearest_left_top", "nearest_center", "nearest_right_bottom", "block_mean"
]


def degrade(
    target: np.ndarray,
    valid: np.ndarray,
    *,
    scale: int,
    mode: Downsampling,
    disturbed: Callable[[np.ndarray], np.ndarray] = lambda small: small,
) -> np.ndarray:
    """Downsample a target by `scale` and upsample it back to its original size.

    Invalid pixels do not contribute: block means use the valid pixels of a block, and all other modes operate on a
    target whose holes are filled with the nearest valid value, which adds neither edges nor values between foreground
    and background. A target without valid pixels yields zeros.

    Args:
        target: float32 (H, W) or (H, W, C).
        valid: bool (H, W).
        scale: 2 or more.
        mode: Downsampling method.
        disturbed: Applied to the small image, where a sensor would add its noise.

    Returns:
        float32, the target's shape; finite.

    Raises:
        ValueError: A side is shorter than `scale`, or the mode is unknown.
    """
    if not valid.any():
        return np.zeros_like(target, np.float32)
    if mode == "block_mean" and not valid.all():
        small = _masked_block_mean(target, valid, scale)
    else:
        small = downsample(fill_holes(target, valid), scale, mode)
    return upsample(disturbed(small), target.shape[:2])


def downsample(image: np.ndarray, scale: int, mode: Downsampling) -> np.ndarray:
    """Downsample an image by `scale`; see the module docstring for sizes that are not multiples of it.

    Args:
        image: float32 (H, W) or (H, W, C), finite.
        scale: 2 or more.
        mode: `bicubic` is PIL's, with its low-pass filter; `bicubic_torch` is torch's with antialias, equal to it;
            `nearest_center` is PIL's NEAREST; `block_mean` averages.

    Raises:
        ValueError: A side is shorter than `scale`, or the mode is unknown.
    """
    if min(image.shape[:2]) < scale:
        raise ValueError(
            f"an image of {image.shape[0]} x {image.shape[1]} pixels is too small for scale {scale}; "
            "use larger images or a smaller scale"
        )
    if mode not in _MODES:
        raise ValueError(f"downsampling: {mode!r} is unknown; use one of {', '.join(_MODES)}")
    return _MODES[mode](np.asarray(image, np.float32), scale)


def upsample(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize an image to `size` (height, width) with PIL's bicubic interpolation (a = -0.5).

    Args:
        image: float32 (h, w) or (h, w, C), finite.
        size: height and width.
    """
    return _resized(np.asarray(image, np.float32), (size[0], size[1]), Image.Resampling.BICUBIC)


def fill_holes(target: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Replace each invalid pixel of a target by the nearest valid one.

    Args:
        target: float32 (H, W) or (H, W, C).
        valid: bool (H, W), true somewhere.
    """
    if valid.all():
        return target
    import cv2  # imported here, as few targets have holes

    # Each valid pixel (zero in the mask) gets its own label; invalid pixels get that of the nearest valid one.
    _, labels = cv2.distanceTransformWithLabels(
        (~valid).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    labels = labels.astype(np.intp)
    values = np.empty((int(labels.max()) + 1, *target.shape[2:]), np.float32)
    values[labels[valid]] = target[valid]
    return values[labels]


# ----------------------------------------------------------------------------------------------------------- modes


def _small_size(image: np.ndarray, scale: int) -> tuple[int, int]:
    return image.shape[0] // scale, image.shape[1] // scale


def _resized(image: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    """Resize each channel as a 32-bit floating-point PIL image."""
    if image.ndim == 3:
        return np.stack([_resized(image[:, :, c], size, method) for c in range(image.shape[2])], axis=2)
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((size[1], size[0]), method))


def _bicubic(image: np.ndarray, scale: int) -> np.ndarray:
    return _resized(image, _small_size(image, scale), Image.Resampling.BICUBIC)


def _nearest_center(image: np.ndarray, scale: int) -> np.ndarray:
    return _resized(image, _small_size(image, scale), Image.Resampling.NEAREST)


def _bicubic_torch(image: np.ndarray, scale: int) -> np.ndarray:
    import torch  # imported here, as the other modes do not need it

    planes = torch.from_numpy(np.ascontiguousarray(image)).reshape(*image.shape[:2], -1).permute(2, 0, 1)
    small = torch.nn.functional.interpolate(
        planes[None], _small_size(image, scale), mode="bicubic", antialias=True, align_corners=False
    )
    return small[0].permute(1, 2, 0).reshape(*small.shape[2:], *image.shape[2:]).numpy()


def _first_pixels(cells: int, length: int) -> np.ndarray:
    """Return the first pixel of each cell: every `scale`-th pixel if `scale` divides the length."""
    return (2 * np.arange(cells) * length + cells) // (2 * cells)  # rounded half up


def _nearest_left_top(image: np.ndarray, scale: int) -> np.ndarray:
    rows, columns = map(_first_pixels, _small_size(image, scale), image.shape[:2])
    return image[rows][:, columns]


def _nearest_right_bottom(image: np.ndarray, scale: int) -> np.ndarray:
    return np.ascontiguousarray(_nearest_left_top(image[::-1, ::-1], scale)[::-1, ::-1])


def _block_sum(image: np.ndarray, scale: int) -> np.ndarray:
    rows, columns = map(_first_pixels, _small_size(image, scale), image.shape[:2])
    return np.add.reduceat(np.add.reduceat(image.astype(np.float64), rows, axis=0), columns, axis=1)


def _block_mean(image: np.ndarray, scale: int) -> np.ndarray:
    counts = _block_sum(np.ones(image.shape[:2]), scale)
    return (_block_sum(image, scale) / _along(counts, image)).astype(np.float32)


def _masked_block_mean(target: np.ndarray, valid: np.ndarray, scale: int) -> np.ndarray:
    """Average over the valid pixels of each block; blocks without any take the value of the nearest block."""
    counts = _block_sum(valid, scale)
    sums = _block_sum(np.where(_along(valid, target), target, 0), scale)
    means = sums / np.maximum(_along(counts, target), 1)
    return fill_holes(means.astype(np.float32), counts > 0)


def _along(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    return mask[:, :, None] if image.ndim == 3 else mask


_MODES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "bicubic": _bicubic,
    "bicubic_torch": _bicubic_torch,
    "nearest_left_top": _nearest_left_top,
    "nearest_center": _nearest_center,
    "nearest_right_bottom": _nearest_right_bottom,
    "block_mean": _block_mean,
}
