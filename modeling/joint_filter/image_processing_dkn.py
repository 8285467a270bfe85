"""Image processor of DKN: converts images of any type to tensors, and back.

Shapes: C channels, H height and W width of the guidance, h and w of the target as it is given.
"""

from __future__ import annotations

import io
import math
import os
from typing import Any, Literal, NamedTuple
from urllib.request import urlopen

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

# PIL modes whose pixels are read as they are; what other modes become first.
_MODES = ("L", "RGB", "I", "F", "I;16")
_CONVERTED = {"1": "L", "LA": "L", "La": "L", "I;16B": "I", "I;16L": "I", "I;16N": "I"}  # the rest: RGB


class DKNImageProcessor(BaseImageProcessor):
    """Guidance to [0, 1], target to [0, 1] by its own least and greatest value, and both to one size.

    Images are PIL images of any mode, arrays or tensors of one or three channels, in front or behind, of any type, or
    paths and URLs, which PIL reads (as they are: 16-bit depth keeps its bits).

    Args:
        invalid: Which pixels of a target are holes, besides those with what is no finite number: `zero`: those that are
            not positive; a number: those that equal it in fp32; `none`: no others. The first two only of a target with
            one channel: black is a color. Holes take no part in the least and greatest value, are filled with the
            nearest value that is none, as in training, and come back as they were.

    Raises:
        ValueError: `invalid` is none of these.
    """

    model_input_names = ["guidance", "target"]  # noqa: RUF012
    _auto_class = "AutoImageProcessor"

    def __init__(self, *, invalid: Literal["zero", "none"] | float = "zero", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        number = isinstance(invalid, int | float) and math.isfinite(invalid) and not isinstance(invalid, bool)
        if not number and invalid not in ("zero", "none"):
            raise ValueError(f"invalid: {invalid!r} is none of zero, none, a finite number")
        self.invalid = invalid

    def __call__(self, guidance: Any, target: Any, **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        """As `preprocess`."""
        return self.preprocess(guidance, target, **kwargs)

    def preprocess(self, guidance: Any, target: Any, **_: Any) -> BatchFeature:  # type: ignore[override]
        """Return `guidance` (1, 3, H, W) and `target` (1, C, H, W), fp32.

        Holes are filled first. A target that is smaller is up-sampled by PIL's bicubic (antialiased bicubic of torch,
        which equals it). One that is nothing but holes gives zeros.

        Raises:
            ValueError: Images that cannot be read or do not go together.
        """
        guide = _unit_range(_pixels(self.load(guidance), "guidance"))
        pixels = _pixels(self.load(target), "target").double()
        scaling = self._scaling(pixels)
        filled = _filled(pixels, self._valid(pixels))
        normalized = ((filled - scaling.least) / scaling.span).float()
        return BatchFeature({"guidance": guide[None], "target": _enlarge(normalized[None], guide.shape[-2:])})

    def post_process(self, output: Tensor, target: Any) -> Any:
        """Return what the model gave in the units, type and layout of the target as it was given, with its holes.

        Args:
            output: (1, C, H, W) or (C, H, W), as the model gave it.
            target: What `preprocess` was given.

        Returns:
            A PIL image, array or tensor, of C channels and the output's size; integers are rounded, and clamped. Where
            the nearest pixel of the target is a hole, its own value: 0 stays 0, and NaN NaN.
        """
        given = self.load(target)
        pixels = _pixels(given, "target").double()
        scaling = self._scaling(pixels)
        values = output.detach().reshape(-1, *output.shape[-2:]).double() * scaling.span + scaling.least
        valid, holes = (_repeated(x, values) for x in (self._valid(pixels)[None], pixels))
        return _like(torch.where(valid > 0, values, holes), given)

    def fill_holes(self, output: Tensor, target: Any) -> Tensor:
        """Return what the model gave, where the target has holes filled with the nearest value beside them.

        Nothing ever taught the network what to give inside a hole: before it sees its own output again, that has to go.

        Args:
            output: (..., H, W), as the model gave it.
            target: What `preprocess` was given.
        """
        valid = self._valid(_pixels(self.load(target), "target").double())
        return output if valid.all() else _filled(output, _repeated(valid[None], output)[0] > 0)

    @staticmethod
    def load(image: Any) -> Any:
        """Open a path or URL with PIL; any other image stays what it is."""
        if not isinstance(image, str | os.PathLike):
            return image
        if str(image).startswith(("http://", "https://")):
            with urlopen(str(image)) as response:
                return Image.open(io.BytesIO(response.read()))
        return Image.open(image)

    def _valid(self, pixels: Tensor) -> Tensor:
        """Return which pixels of (C, h, w) are no holes, (h, w) bool."""
        finite = pixels.isfinite().all(dim=0)
        if self.invalid == "none" or len(pixels) != 1:
            return finite
        return finite & (pixels[0] > 0 if self.invalid == "zero" else pixels[0].float() != self.invalid)

    def _scaling(self, pixels: Tensor) -> _Scaling:
        valid = pixels[:, self._valid(pixels)]
        if not valid.numel() and self.invalid == "zero" and (pixels.isfinite() & (pixels < 0)).any():
            raise ValueError(
                "target: no value is positive; if other values are valid, use a processor with invalid none"
            )
        if not valid.numel():
            return _Scaling(0.0, 1.0)
        least, greatest = valid.aminmax()
        return _Scaling(least.item(), (greatest - least).item() or 1.0)


class _Scaling(NamedTuple):
    """How a target was brought to [0, 1]."""

    least: float
    span: float  # to the greatest; 1 where all are equal


def _pixels(image: Any, name: str) -> Tensor:
    """Return an image's pixels as (C, H, W), in its own type."""
    if isinstance(image, Image.Image):
        image = _readable(image)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=_DTYPES[image.mode])
        return pixels.view(image.height, image.width, -1).movedim(-1, 0)
    if not hasattr(image, "shape"):
        raise ValueError(f"{name}: {type(image).__name__} is no PIL image, array, tensor, path or URL")
    pixels = torch.as_tensor(image)
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or not pixels.numel() or not {pixels.shape[0], pixels.shape[-1]} & {1, 3}:
        raise ValueError(
            f"{name}: an array of shape {tuple(pixels.shape)} is no image; "
            f"write (height, width) or one or three channels before or behind, one image at a time"
        )
    return pixels if pixels.shape[0] in (1, 3) else pixels.movedim(-1, 0)


_DTYPES = {"L": torch.uint8, "RGB": torch.uint8, "I": torch.int32, "F": torch.float32, "I;16": torch.uint16}


def _readable(image: Image.Image) -> Image.Image:
    return image if image.mode in _MODES else image.convert(_CONVERTED.get(image.mode, "RGB"))


def _unit_range(pixels: Tensor) -> Tensor:
    """Return a guidance in [0, 1] as fp32 (3, H, W): integers by the greatest that their type or 16 bits can hold."""
    if pixels.is_floating_point():
        least, greatest = (value.item() for value in pixels.aminmax())
        if not (least >= 0 and greatest <= 1):
            raise ValueError(
                f"guidance: values from {least:g} to {greatest:g}; floating-point ones must lie in [0, 1]: divide them"
            )
    elif pixels.dtype != torch.bool:
        pixels = pixels.double() / min(torch.iinfo(pixels.dtype).max, 2**16 - 1)
    return pixels.float().expand(3, -1, -1)


def _enlarge(target: Tensor, size: torch.Size) -> Tensor:
    """Up-sample (1, C, h, w) to (1, C, H, W) where it is smaller."""
    height, width = target.shape[-2:]
    if height > size[0] or width > size[1]:
        raise ValueError(
            f"target: {height} x {width} is larger than the guidance, {size[0]} x {size[1]}; "
            f"the guidance sets the size of what comes out: shrink the target or take a larger guidance"
        )
    if target.shape[-2:] == size:
        return target
    return F.interpolate(target, size=tuple(size), mode="bicubic", align_corners=False, antialias=True)


def _repeated(pixels: Tensor, like: Tensor) -> Tensor:
    """Return (C, h, w) at the height and width of another, each of its pixels the nearest; on the other's device."""
    wanted = pixels.to(like.device, torch.float64)
    return F.interpolate(wanted[None], size=tuple(like.shape[-2:]), mode="nearest-exact")[0]


def _filled(image: Tensor, valid: Tensor) -> Tensor:
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


def _like(values: Tensor, given: Any) -> Any:
    """Return (C, H, W) values as an image of the type and layout of another."""
    if isinstance(given, Image.Image):
        mode = _readable(given).mode
        pixels = _cast(values, _DTYPES[mode]).movedim(0, -1).contiguous()
        return Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), pixels.cpu().numpy().tobytes())
    pixels = torch.as_tensor(given)
    cast = _cast(values, pixels.dtype).to(pixels.device)
    if pixels.ndim == 2:
        cast = cast[0]
    elif pixels.shape[0] not in (1, 3):
        cast = cast.movedim(0, -1)
    return cast if isinstance(given, Tensor) else cast.contiguous().numpy()


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round and clamp where the type wants it."""
    if dtype == torch.bool:
        return values > 0.5
    if not dtype.is_floating_point:
        values = values.round().clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    return values.to(dtype)
