"""Exhibits of image tasks: arrays with the kernel of one pixel for the report, and an image strip for TensorBoard.

H, W height and width, C channels, K * K samples of a kernel.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.joint_filter.modeling_dkn import DKNModel, DKNOutput
from train.tasks.joint_filter.image_batch import Images
from train.tasks.task import Gallery


class Exhibit(NamedTuple):
    """One image with the filter's output and the kernels behind it."""

    name: str
    image: Images
    output: Tensor  # (1, C, H, W)
    kernels: DKNOutput  # of the first channel, if channels are filtered separately
    units: float  # units per error of 1.0
    unit: str | None


def show(exhibit: Exhibit, model: nn.Module, gallery: Gallery, *, pixel: tuple[int, int] | None) -> None:
    """Add an exhibit to a gallery: arrays as read by analysis/, and a strip of guidance, input, output and truth.

    Args:
        exhibit: The exhibit to show.
        model: The filter, possibly wrapped by the engine.
        gallery: The destination.
        pixel: Row and column of the pixel whose kernel is saved; None for the steepest point of the truth.
    """
    filter_model = getattr(model, "module", model)
    assert isinstance(filter_model, DKNModel)
    row, column = _inside(pixel, exhibit.image.truth) if pixel is not None else steepest(exhibit.image)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", exhibit.name).strip("-.") or "image"
    gallery.image(name, _strip(exhibit))
    gallery.arrays(name, _arrays(exhibit, filter_model, row, column))


def steepest(image: Images) -> tuple[int, int]:
    """Return row and column of the valid pixel with the largest slope of the truth, away from the image's edges."""
    truth, valid = image.truth.mean(dim=1)[0].double(), image.valid[0, 0]
    height, width = truth.shape
    if min(height, width) < 3:
        return height // 2, width // 2
    is_known = valid[1:-1, 2:] & valid[1:-1, :-2] & valid[2:, 1:-1] & valid[:-2, 1:-1] & valid[1:-1, 1:-1]
    across, down = truth[1:-1, 2:] - truth[1:-1, :-2], truth[2:, 1:-1] - truth[:-2, 1:-1]
    slope = torch.where(is_known, across.square() + down.square(), -1.0)
    margin = min(16, (min(slope.shape) - 1) // 2)
    middle = slope[margin : slope.shape[0] - margin, margin : slope.shape[1] - margin]
    place = int(middle.argmax())
    return place // middle.shape[1] + margin + 1, place % middle.shape[1] + margin + 1


def _inside(pixel: tuple[int, int], truth: Tensor) -> tuple[int, int]:
    """Return the pixel, clamped to the image."""
    return min(pixel[0], truth.shape[-2] - 1), min(pixel[1], truth.shape[-1] - 1)


def _arrays(exhibit: Exhibit, model: DKNModel, row: int, column: int) -> dict[str, Any]:
    image, kernels = exhibit.image, exhibit.kernels
    weights, offsets = kernels.weights, kernels.offsets
    assert weights is not None
    assert offsets is not None
    length = offsets[:1].unflatten(1, (-1, 2)).norm(dim=2).mean(dim=1)[0]
    return {
        "guidance": (_pixels(image.guidance) * 255).round().astype(np.uint8),
        "input": _pixels(image.input),
        "output": _pixels(exhibit.output),
        "truth": _pixels(image.truth),
        "valid": image.valid[0, 0].cpu().numpy(),
        "units_per_value": np.float32(exhibit.units),
        "unit": np.array(exhibit.unit or ""),
        "offset_length": length.cpu().numpy().astype(np.float16),
        "pixel": np.array([[row, column]], np.int32),
        "positions": model.sample_places(offsets[:1], row, column).cpu().numpy()[None].astype(np.float32),
        "weights": weights[0, :, row, column].cpu().numpy()[None].astype(np.float32),
    }


def _pixels(planes: Tensor) -> np.ndarray:
    """Return (1, C, H, W) as (H, W, C) float32."""
    return np.ascontiguousarray(planes[0].permute(1, 2, 0).float().cpu().numpy())


def _strip(exhibit: Exhibit) -> Tensor:
    """Return guidance, input, output, truth, and the errors of input and output on a common scale, (3, H, 6 W)."""
    image = exhibit.image
    before, after = (
        (x - image.truth).abs().mean(dim=1, keepdim=True) * image.valid for x in (image.input, exhibit.output)
    )
    scale = before.max().clamp(min=1e-12)
    panels = [image.guidance, image.input, exhibit.output, image.truth, before / scale, after / scale]
    return torch.cat([panel.expand(1, 3, -1, -1).clamp(0, 1) for panel in panels], dim=3)[0]


def averaged(guidance: Tensor) -> Tensor:
    """Return a guidance with its mean color everywhere: (B, C, H, W)."""
    return guidance.mean(dim=(2, 3), keepdim=True).expand_as(guidance)


def shifted(guidance: Tensor, pixels: int) -> Tensor:
    """Return a guidance shifted down and to the right, with its first row and column repeated: (B, C, H, W).

    It is shifted along both axes, as edges parallel to a shift stay in place: shifted only to the right, the guidance
    would still show every horizontal edge correctly.
    """
    return F.pad(guidance, (pixels, 0, pixels, 0), mode="replicate")[..., : guidance.shape[-2], : guidance.shape[-1]]
