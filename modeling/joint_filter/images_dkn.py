"""Images as users have them: PIL images, arrays, tensors and files read as pixels, and results in the same form.

Shapes: C channels, H height, W width, L labels.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from dataclasses import dataclass
from typing import Any, Literal
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

ARRAY_FILES = (".npy", ".npz")
WHITE_OF_16_BITS = 2**16 - 1
MANY_LABELS = 64  # more in one image are probably the colors of a photo

# PIL modes whose pixels are read as they are; what other modes become first. The rest becomes RGB.
_DTYPES = {"L": torch.uint8, "RGB": torch.uint8, "I": torch.int32, "F": torch.float32, "I;16": torch.uint16}
_CONVERTED = {"1": "L", "LA": "L", "I;16B": "I", "I;16L": "I", "I;16N": "I"}
_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright


@dataclass(frozen=True)
class Picture:
    """An image as it was given, and its pixels."""

    given: Any  # PIL image, array or tensor
    pixels: Tensor  # (C, H, W) in the image's own type; C is 1 or 3, or L for a palette image: 1 where it has a label
    layout: Literal["HW", "HWC", "CHW"]
    known: Tensor  # (H, W) bool: false where a numpy masked array is masked
    labels: Tensor | None = None  # (L,) uint8, increasing: those of a palette image
    has_two_values: bool = False  # black and white, so that black can be no hole

    @property
    def is_map(self) -> bool:
        """Whether it has one channel of values, in which one may mark holes."""
        return len(self.pixels) == 1 and self.labels is None and not self.has_two_values

    def like(self, values: Tensor, known: Tensor | None) -> Any:
        """Return (C, h, w) values as an image of this one's kind, type and layout; any height and width.

        Args:
            values: Rounded and clamped where the type wants it. Of labels, the greatest decides.
            known: (h, w) bool, of which a masked array gets its mask; None: true everywhere.
        """
        if self.labels is not None:
            return self._palette_image(self.labels[values.argmax(dim=0)])
        cast = _cast(values, self.pixels.dtype)
        if isinstance(self.given, Image.Image):
            rows = cast.movedim(0, -1).contiguous().cpu().numpy()
            return Image.frombytes(_readable(self.given).mode, (rows.shape[1], rows.shape[0]), rows.tobytes())
        if self.layout == "HW":
            cast = cast[0]
        elif self.layout == "HWC":
            cast = cast.movedim(0, -1)
        if isinstance(self.given, Tensor):
            return cast.to(self.given.device)
        array = cast.contiguous().cpu().numpy().astype(self.given.dtype, copy=False)  # the byte order as it was
        if not isinstance(self.given, np.ma.MaskedArray):
            return array
        mask = np.zeros(1, bool) if known is None else ~known.cpu().numpy()
        mask = mask[..., None] if self.layout == "HWC" else mask
        return np.ma.MaskedArray(array, np.broadcast_to(mask, array.shape))

    def _palette_image(self, labels: Tensor) -> Image.Image:
        image = Image.frombytes("P", (labels.shape[1], labels.shape[0]), labels.cpu().numpy().tobytes())
        image.putpalette(self.given.getpalette())
        return image


def open_image(image: Any) -> Any:
    """Open a path or URL; turn a PIL image upright, as EXIF says; any other image stays what it is.

    Raises:
        ValueError: A .npy or .npz file does not contain one array of numbers.
        OSError: There is no such file, or PIL cannot read it.
    """
    if isinstance(image, str | os.PathLike):
        image = _opened(os.fspath(image))
    if isinstance(image, Image.Image) and image.getexif().get(_ORIENTATION, 1) != 1:
        return ImageOps.exif_transpose(image)
    return image


def _opened(path: str) -> Any:
    if path.startswith(("http://", "https://")):
        with urlopen(path) as response:
            return Image.open(io.BytesIO(response.read()))
    if not path.lower().endswith(ARRAY_FILES):
        return Image.open(path)
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path}: no array of numbers ({error})") from error
    if isinstance(array, np.ndarray):
        return array
    with array as arrays:
        if len(arrays.files) != 1:
            raise ValueError(f"{path}: {len(arrays.files)} arrays ({', '.join(arrays.files)}); save a file with one")
        return arrays[arrays.files[0]]


def read_target(image: Any) -> Picture:
    """Return an opened target; a palette image, such as a mask of labels, as its labels.

    Warns:
        UserWarning: A palette image has so many labels that they may be colors.

    Raises:
        ValueError: It is no image of numbers.
    """
    if isinstance(image, Image.Image) and image.mode in ("P", "PA"):
        return _labels(image)
    return _read(image, "target")


def read_guidance(image: Any) -> Picture:
    """Return an opened guidance; a palette image becomes RGB.

    Raises:
        ValueError: It is no image of numbers, or a part of it is masked.
    """
    picture = _read(image, "guidance")
    if not picture.known.all():
        raise ValueError(f"guidance: {int((~picture.known).sum())} pixels are masked; fill them: it has no holes")
    return picture


def unit_range(guidance: Picture) -> Tensor:
    """Return a guidance in [0, 1] as fp32 (3, H, W): bytes divided by 255, uint16 by 65535, floats as they are.

    Other integers have no certain white. They are read as bytes where all are below 256, with a warning. PIL's mode I
    has 16 bits otherwise, as its 16-bit files once had.

    Raises:
        ValueError: Floats outside [0, 1] or not finite, or integers whose white is unknown.
    """
    pixels = guidance.pixels
    if pixels.is_floating_point():
        _check_floats(pixels)
    elif pixels.dtype != torch.bool:
        pixels = pixels.float() / _white(pixels, is_pil=isinstance(guidance.given, Image.Image))
    return pixels.float().expand(3, -1, -1)


def _check_floats(pixels: Tensor) -> None:
    if unknown := int((~pixels.isfinite()).sum()):
        raise ValueError(f"guidance: {unknown} of its {pixels.numel()} values are NaN or infinite; fill them")
    least, greatest = (value.item() for value in pixels.aminmax())
    if not (least >= 0 and greatest <= 1):
        raise ValueError(
            f"guidance: values from {least:g} to {greatest:g}; floating-point ones must lie in [0, 1]: divide them"
        )


def _white(pixels: Tensor, *, is_pil: bool) -> int:
    """Return the value of white in integer pixels."""
    if pixels.dtype in (torch.uint8, torch.uint16):
        return torch.iinfo(pixels.dtype).max
    least, greatest = (int(value) for value in pixels.long().aminmax())
    kind = "PIL's mode I" if is_pil else str(pixels.dtype).removeprefix("torch.")
    if least < 0:
        raise ValueError(f"guidance: {kind} values from {least} to {greatest}; an image has none below 0")
    if greatest > 255 and is_pil and greatest <= WHITE_OF_16_BITS:
        return WHITE_OF_16_BITS
    if greatest > 255:
        raise ValueError(
            f"guidance: {kind} values up to {greatest}, whose white is unknown; convert them to uint8 or uint16, or "
            f"divide them by their white"
        )
    warnings.warn(f"guidance: {kind} values up to {greatest} are read as bytes; convert them to uint8", stacklevel=2)
    return 255


# ---------------------------------------------------------------------------------------------------- images to pixels


def _read(image: Any, name: str) -> Picture:
    """Return an opened image; alpha is dropped."""
    if isinstance(image, Image.Image):
        pixels = _pixels_of(_readable(image), name)
        return Picture(image, pixels, "HWC", _all_known(pixels), has_two_values=image.mode == "1")
    if not hasattr(image, "shape"):
        raise ValueError(f"{name}: {type(image).__name__} is no PIL image, array, tensor, path or URL")
    if not isinstance(image, Tensor | np.ndarray):
        image = np.asarray(image)
    pixels = _tensor(image, name)
    layout = _layout(pixels.shape, name)
    planes = _planes(pixels, layout)
    known = _all_known(planes)
    if isinstance(image, np.ma.MaskedArray):
        known = ~_planes(torch.from_numpy(np.ma.getmaskarray(image)), layout).any(dim=0)
    return Picture(image, planes, layout, known, has_two_values=pixels.dtype == torch.bool)


def _labels(image: Image.Image) -> Picture:
    pixels = _pixels_of(image if image.mode == "P" else image.getchannel("P"), "target")
    labels = pixels.unique()
    if len(labels) > MANY_LABELS:
        warnings.warn(
            f"target: a palette image is read as labels, of which this has {len(labels)}; write "
            f"target.convert('RGB') if they are colors",
            stacklevel=2,
        )
    return Picture(image, (pixels == labels[:, None, None]).float(), "HWC", _all_known(pixels), labels=labels)


def _readable(image: Image.Image) -> Image.Image:
    if image.mode in _DTYPES:
        return image
    if image.mode == "La":  # PIL has one way out of premultiplied alpha
        image = image.convert("LA")
    return image.convert(_CONVERTED.get(image.mode, "RGB"))


def _pixels_of(image: Image.Image, name: str) -> Tensor:
    if 0 in image.size:
        raise _empty(name, image.height, image.width)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=_DTYPES.get(image.mode, torch.uint8))
    return pixels.view(image.height, image.width, -1).movedim(-1, 0)


def _empty(name: str, *shape: int) -> ValueError:
    return ValueError(f"{name}: an image of {' x '.join(map(str, shape))} has no pixels")


def _tensor(image: Any, name: str) -> Tensor:
    """Return a tensor or array of numbers as a tensor: arrays in native byte order, with positive strides."""
    is_tensor = isinstance(image, Tensor)
    is_real = not image.is_complex() if is_tensor else image.dtype.kind in "buif"
    if not is_real:
        kind = str(image.dtype).removeprefix("torch.")
        raise ValueError(f"{name}: {kind} values are no image; write integers, floats or bools")
    if 0 in image.shape:
        raise _empty(name, *image.shape)
    if is_tensor:
        return image.detach()
    dtype = np.dtype(np.float64) if image.dtype.kind == "f" and image.dtype.itemsize > 8 else image.dtype
    return torch.from_numpy(np.require(np.asarray(image, dtype.newbyteorder("=")), requirements=["C", "W"]))


def _layout(shape: torch.Size, name: str) -> Literal["HW", "HWC", "CHW"]:
    """Return where the channels of an array are; behind, where they could be before too, as in (3, 480, 4)."""
    if len(shape) == 2:
        return "HW"
    if len(shape) == 3 and shape[2] in (1, 3, 4):
        return "HWC"
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return "CHW"
    raise ValueError(
        f"{name}: an array of shape {tuple(shape)} is no image; write (height, width), or one, three or four channels "
        f"behind or before; several images as a list"
    )


def _planes(pixels: Tensor, layout: str) -> Tensor:
    """Return (C, H, W) without alpha."""
    planes = pixels[None] if layout == "HW" else pixels.movedim(-1, 0) if layout == "HWC" else pixels
    return planes[:3]


def _all_known(pixels: Tensor) -> Tensor:
    return torch.ones(pixels.shape[1:], dtype=torch.bool, device=pixels.device)


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round and clamp where the type wants it."""
    if dtype == torch.bool:
        return values > 0.5
    if dtype.is_floating_point:
        return values.to(dtype)
    limits = torch.iinfo(dtype)
    greatest = float(limits.max)
    if greatest > limits.max:  # of 64 bits, rounded up: the next double below is an integer that the type can hold
        greatest = math.nextafter(greatest, 0)
    return values.round().clamp(limits.min, greatest).to(dtype)
