"""Image processor of DKN: converts images of any type to tensors, and back.

Shapes: C channels, H height and W width of the guidance, h and w of the target as it is given.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .holes_dkn import check_marker, check_rule, filled, repeated, valid_pixels
from .images_dkn import Picture, open_image, read_guidance, read_target, unit_range
from .purpose_dkn import HoleRule, check_sizes, is_hole_rule, is_scale


class DKNImageProcessor(BaseImageProcessor):
    """Guidance to [0, 1], target to [0, 1] by its own least and greatest value, and both to one size.

    Images are PIL images of any mode, arrays or tensors of numbers, or paths (those of PIL, .npy, and .npz with one
    array) and URLs, read as they are: 16-bit depth keeps its bits. The orientation that EXIF states is applied.

    - Arrays have one or three channels, or four, of which alpha is dropped; PIL images lose theirs, too. Channels are
      before or behind; where both are possible, as in (3, 480, 3) or (1, 1, 3), they are behind.
    - Masked pixels of a numpy masked array are holes; the result is a masked array.
    - A target in PIL's mode P or PA is a mask of labels: each is filtered alone, as 1 where the image has it and 0
      elsewhere, and the greatest wins, so that no label comes out that did not go in. A guidance becomes RGB.

    Args:
        invalid: Which pixels of a target are holes, besides those with what is no finite number: `zero`: those that are
            not positive; a number: those that equal it in fp32; `none`: no others. The first two only of a target with
            one channel of more than two values: black is a color. Holes take no part in the least and greatest value,
            are filled with the nearest value that is none, as in training, and come back as they were.
        scale: How many times smaller than the guidance the targets were in training; 1: of its size. None: unknown, so
            that a target of any scale will do.

    Raises:
        ValueError: An argument has another value.
    """

    model_input_names = ["guidance", "target"]  # noqa: RUF012
    _auto_class = "AutoImageProcessor"

    def __init__(self, *, invalid: HoleRule = "zero", scale: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not is_hole_rule(invalid):
            raise ValueError(f"invalid: {invalid!r} is none of zero, none, a finite number")
        if not (scale is None or is_scale(scale)):
            raise ValueError(f"scale: {scale!r} is no number of at least 1; write 1 for full resolution")
        self.invalid: HoleRule = invalid
        self.scale = scale

    def __call__(self, guidance: Any, target: Any, **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        """As `preprocess`."""
        return self.preprocess(guidance, target, **kwargs)

    def preprocess(  # type: ignore[override]
        self, guidance: Any, target: Any, *, scale: float | None = None, **_: Any
    ) -> BatchFeature:
        """Return `guidance` (1, 3, H, W) and `target` (1, C, H, W), fp32.

        Holes are filled first. A target that is smaller is up-sampled by PIL's bicubic (antialiased bicubic of torch,
        which equals it). One that is nothing but holes gives zeros. Of a palette image, C is the number of labels.

        Args:
            guidance: One image.
            target: One image.
            scale: How many times coarser than the guidance the target is; None: the sizes tell. To be stated of a
                target that was enlarged before.

        Warns:
            UserWarning: The target has another scale than in training, or values that the hole rule takes for holes, or
                a marker of holes that it does not know; the white of the guidance is uncertain.

        Raises:
            ValueError: Images that cannot be read or do not go together.
        """
        guide, picture = read_guidance(self.load(guidance)), read_target(self.load(target))
        try:
            size = (guide.pixels.shape[1], guide.pixels.shape[2])
            check_sizes(size, (picture.pixels.shape[1], picture.pixels.shape[2]), trained=self.scale, stated=scale)
            unit_guide = unit_range(guide)
        except ValueError as error:
            if len(guide.pixels) == 1 and len(picture.pixels) == 3:
                raise ValueError(f"{error}. Are both swapped? The guidance comes first") from error
            raise
        self._check_values(guide, picture)
        read = self._read(picture)
        normalized = ((filled(read.pixels, read.valid) - read.scaling.least) / read.scaling.span).float()
        return BatchFeature({"guidance": unit_guide[None], "target": _enlarge(normalized[None], size)})

    def post_process(self, output: Tensor, target: Any, *, clip: bool = True) -> Any:
        """Return what the model gave in the units, type and layout of the target as it was given, with its holes.

        Args:
            output: (1, C, H, W) or (C, H, W), as the model gave it.
            target: What `preprocess` was given.
            clip: Whether values beyond the least and greatest of the target become those. If not, they are limited by
                its type alone.

        Returns:
            A PIL image, array or tensor, of C channels (without alpha) and the output's size; integers are rounded.
            Where the nearest pixel of the target is a hole, its own value: 0 stays 0, and NaN NaN.
        """
        read = self._read(read_target(self.load(target)))
        values = output.detach().reshape(-1, *output.shape[-2:]).double()
        values = values.clamp(0, read.scaling.top) if clip else values
        values = values * read.scaling.span + read.scaling.least
        if not read.valid.all():
            valid, holes = (repeated(x, values) for x in (read.valid[None], read.pixels))
            values = torch.where(valid > 0, values, holes)
        known = read.picture.known
        return read.picture.like(values, None if known.all() else repeated(known[None], values)[0] > 0)

    def fill_holes(self, output: Tensor, target: Any) -> Tensor:
        """Return what the model gave, where the target has holes filled with the nearest value beside them.

        Nothing ever taught the network what to give inside a hole: before it sees its own output again, that has to go.

        Args:
            output: (..., H, W), as the model gave it.
            target: What `preprocess` was given.
        """
        valid = self._read(read_target(self.load(target))).valid
        return output if valid.all() else filled(output, repeated(valid[None], output)[0] > 0)

    @staticmethod
    def load(image: Any) -> Any:
        """Open a path or URL, and turn a PIL image upright; any other image stays what it is."""
        return open_image(image)

    def _read(self, picture: Picture) -> _Target:
        pixels = picture.pixels.double()
        valid = picture.known & valid_pixels(pixels, self.invalid if picture.is_map else "none")
        values = pixels[:, valid]
        if picture.labels is not None or not values.numel():
            return _Target(picture, pixels, valid, _Scaling(0.0, 1.0, 1.0))
        least, greatest = values.aminmax()
        span = (greatest - least).item()
        return _Target(picture, pixels, valid, _Scaling(least.item(), span or 1.0, float(span > 0)))

    def _check_values(self, guidance: Picture, target: Picture) -> None:
        if target.is_map:
            if self.invalid == "zero":
                check_rule(target.pixels, target.known)
            check_marker(target.pixels, self._read(target).valid)
        elif len(guidance.pixels) == 1 and guidance.pixels.dtype != torch.uint8 and target.labels is None:
            kind = str(guidance.pixels.dtype).removeprefix("torch.")
            warnings.warn(
                f"guidance: one channel of {kind}, beside a target in color; if they are swapped, the guidance comes "
                f"first",
                stacklevel=2,
            )


class _Scaling(NamedTuple):
    """How a target was brought to [0, 1]."""

    least: float
    span: float  # to the greatest; 1 where all are equal
    top: float  # what the greatest became; 0 where all are equal


class _Target(NamedTuple):
    """A target, its pixels (C, h, w) in fp64, which of them are no holes (h, w), and their range."""

    picture: Picture
    pixels: Tensor
    valid: Tensor
    scaling: _Scaling


def _enlarge(target: Tensor, size: tuple[int, int]) -> Tensor:
    """Up-sample (1, C, h, w) to (1, C, H, W) where it is smaller."""
    if tuple(target.shape[-2:]) == size:
        return target
    return F.interpolate(target, size=size, mode="bicubic", align_corners=False, antialias=True)
