"""Holes in a target: which pixels are some, whether their rule takes values for holes, and what fills them.

Shapes: C channels, h height, w width.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from .images_dkn import WHITE_OF_16_BITS
from .purpose_dkn import HoleRule

SILENT_SHARE = 0.01  # of the finite pixels: fewer may be taken for holes without a word
REFUSED_SHARE = 0.25  # more are not taken for holes
NEAR = 0.01  # of the greatest value: what lies so near to a marker speaks against its being one


def valid_pixels(pixels: Tensor, rule: HoleRule) -> Tensor:
    """Return which pixels of (C, h, w) fp64 are no holes, (h, w) bool; the rule is for one channel only."""
    finite = pixels.isfinite().all(dim=0)
    if rule == "none" or len(pixels) != 1:
        return finite
    return finite & (pixels[0] > 0 if rule == "zero" else pixels[0].float() != rule)


def check_rule(pixels: Tensor, known: Tensor) -> None:
    """Check that the rule `zero`, which takes what is not positive for holes, does not take values.

    Zero is what the rule declares to be a hole, so any number of zeros is accepted: often more than a quarter of a
    depth map is unmeasured. Negative values are no depth. A few that are all equal, such as -1, mark holes; different
    ones, or a great many, are values.

    Args:
        pixels: (1, h, w), in the target's own type.
        known: (h, w) bool, false where the user masks a pixel.

    Warns:
        UserWarning: Different negative values are taken for holes, or the many zeros of a mask or saliency map: bytes
            or floats up to 1 that go down to zero, or are all equal otherwise.

    Raises:
        ValueError: More than a quarter of the finite pixels are negative.
    """
    finite = pixels[0].double()[known & pixels[0].isfinite()]
    negative = finite[finite < 0]
    share = len(negative) / max(len(finite), 1)
    is_marker = len(negative) > 0 and bool((negative == negative[0]).all())
    if share > REFUSED_SHARE:
        marker = f", or invalid={negative[0].item():g} if that marks holes" if is_marker else ""
        raise ValueError(
            f"target: {share:.0%} of its finite pixels are negative, and the hole rule `zero` would take them for "
            f"holes; write invalid='none' if they are values{marker}"
        )
    if share > SILENT_SHARE and not is_marker:
        warnings.warn(
            f"target: {share:.0%} of its finite pixels are negative, and the hole rule `zero` takes them for holes; "
            f"write invalid='none' if they are values",
            stacklevel=2,
        )
    zeros = (finite == 0).double().mean().item() if len(finite) else 0.0
    positive = finite[finite > 0]
    if zeros > REFUSED_SHARE and len(positive) and _looks_like_mask(positive, pixels.dtype):
        warnings.warn(
            f"target: {zeros:.0%} of its finite pixels are zero, and the hole rule `zero` takes them for holes, though "
            f"it looks like a mask; write invalid='none' if zero is a value",
            stacklevel=2,
        )


def _looks_like_mask(positive: Tensor, dtype: torch.dtype) -> bool:
    """Return whether positive values are those of a mask or saliency map; a camera measures no depth so near."""
    least, greatest = positive.aminmax()
    has_its_range = dtype == torch.uint8 or (dtype.is_floating_point and bool(greatest <= 1))
    return has_its_range and bool(least < NEAR * greatest or least == greatest)


def check_marker(pixels: Tensor, valid: Tensor) -> None:
    """Warn if the greatest value of 16 bits, or of an integer type, stands apart from all others, as a marker does.

    Args:
        pixels: (1, h, w), in the target's own type; bytes are not looked at, where 255 is a common value.
        valid: (h, w) bool; what is a hole already is not looked at.
    """
    values = pixels[0].double()[valid]
    if pixels.element_size() == 1 or not len(values):
        return
    greatest = values.max().item()
    limit = WHITE_OF_16_BITS if pixels.is_floating_point() else torch.iinfo(pixels.dtype).max
    if greatest not in (WHITE_OF_16_BITS, limit):
        return
    others = values[values < greatest]
    if len(others) and others.max() < (1 - NEAR) * greatest:
        share = 1 - len(others) / len(values)
        warnings.warn(
            f"target: {share:.1%} of its pixels are {greatest:.0f}, far above all others, and count as values; write "
            f"invalid={greatest:.0f} if that marks missing pixels",
            stacklevel=2,
        )


# ------------------------------------------------------------------------------------------------------------ filling


def repeated(pixels: Tensor, like: Tensor) -> Tensor:
    """Return (C, h, w) at the height and width of another, each of its pixels the nearest; on the other's device."""
    wanted = pixels.to(like.device, torch.float64)
    return F.interpolate(wanted[None], size=tuple(like.shape[-2:]), mode="nearest-exact")[0]


def filled(image: Tensor, valid: Tensor) -> Tensor:
    """Return (..., h, w) with the nearest valid value in each hole; zeros where there is no valid one at all."""
    if valid.all():
        return image
    if not valid.any():
        return torch.zeros_like(image)
    rows, columns = _nearest(valid)
    return image[..., rows, columns]


def _nearest(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column of the valid pixel nearest to each, (h, w) each; somewhere must be one.

    Exact in Euclid's sense, along columns and then along rows (as Saito and Toriwaki, Pattern Recognition 1994): the
    second pass looks ever farther to both sides, until nothing there can be nearer. Of several, any.
    """
    height, width = valid.shape
    row = torch.arange(height, device=valid.device)[:, None]
    column = torch.arange(width, device=valid.device).expand(height, -1)
    far = 2 * (height + width)  # farther than any pixel
    above = torch.where(valid, row, -far).cummax(dim=0).values
    below = torch.where(valid, row, far).flip(0).cummin(dim=0).values.flip(0)
    rows = torch.where(row - above <= below - row, above, below)
    alone = (rows - row).square()  # squared distance to the nearest of the same column
    best, columns = alone.clone(), column.clone()
    for step in range(1, width):
        if step**2 >= best.max():
            break
        for here, there in ((slice(step, None), slice(None, -step)), (slice(None, -step), slice(step, None))):
            distance = alone[:, there] + step**2
            nearer = distance < best[:, here]
            best[:, here] = torch.where(nearer, distance, best[:, here])
            columns[:, here] = torch.where(nearer, column[:, there], columns[:, here])
    return rows.gather(1, columns), columns
