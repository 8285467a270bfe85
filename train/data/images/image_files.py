"""Image files and arrays: decoding to float32, and layout without decoding.

Images are turned as their EXIF orientation says, as every viewer shows them.

H, W  height and width
C     channels: 1 for a map of values (depth, disparity), 3 for color
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".pfm", ".pgm", ".ppm")
ARRAYS = (".npy", ".npz")
SUFFIXES = (*IMAGES, *ARRAYS)

_VALUE_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16L", "I;16B")  # PIL's, of one channel
_PALETTE = "P"  # PIL's mode of labels, such as PASCAL VOC's: what counts is the number of a color, not the color
_ORIENTATION = 0x0112  # EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # its values that exchange height and width


class Layout(NamedTuple):
    """Size and channels, from the header of a file."""

    size: tuple[int, int]  # H, W
    channels: int  # 1 or 3
    input_size: tuple[int, int] | None = None  # of a real input; None: it is made from the target


class UnreadableError(Exception):
    """A file cannot be read as its name suggests; the message continues a sentence that starts with the file name."""


def layout(path: Path, *, color: bool = False) -> Layout:
    """Return size and channels of a file, without decoding it.

    Args:
        path: An image or an array.
        color: Whether to read it as color even if it is gray.

    Raises:
        UnreadableError: It is not an image or an array of one, or its white level is unknown.
    """
    if path.suffix.lower() in ARRAYS:
        return _guarded(partial(_layout_of_array, color=color), path)
    return _guarded(partial(_layout_of_image, color=color), path)


def read_values(path: Path) -> np.ndarray:
    """Return a map in the file's own values, float32 (H, W, 1), or color from 0 to 1, float32 (H, W, 3).

    An image with a palette is a map of labels.

    Raises:
        UnreadableError: It is not an image or an array of one.
    """
    values = _guarded(partial(_decoded, color=False), path)
    return values.astype(np.float32)[:, :, None] if values.ndim == 2 else _unit(values, path)


def read_color(path: Path) -> np.ndarray:
    """Return color from 0 to 1, float32 (H, W, 3); gray is repeated.

    Raises:
        UnreadableError: It is not an image or an array of one, or it contains floats outside 0 to 1, or integers whose
            white level is unknown.
    """
    values = _guarded(partial(_decoded, color=True), path)
    return as_color(values, path)


def as_color(values: np.ndarray, path: Path) -> np.ndarray:
    """Convert integers in their type's range, or floats from 0 to 1, to color: (H, W) or (H, W, 3) -> (H, W, 3)."""
    unit = _unit(values, path)
    return np.repeat(unit[:, :, None], 3, axis=2) if unit.ndim == 2 else unit


def _unit(values: np.ndarray, path: Path) -> np.ndarray:
    if path.suffix.lower() in ARRAYS:
        _require_white(values.dtype)
    if values.dtype == bool:
        return values.astype(np.float32)
    if np.issubdtype(values.dtype, np.integer):
        largest = 65535 if values.dtype == np.int32 else np.iinfo(values.dtype).max  # PIL's "I": a 16-bit PNG once
        return (values / np.float32(largest)).astype(np.float32)
    unit = values.astype(np.float32)
    if not (np.isfinite(unit).all() and unit.min() >= 0 and unit.max() <= 1):
        raise UnreadableError(
            f"contains colors from {unit.min():g} to {unit.max():g}; save them from 0 to 1, or as 8-bit integers"
        )
    return unit


def _require_white(dtype: np.dtype[Any]) -> None:
    """Reject integer types, such as numpy's default, whose white may be 255 or the maximum of the type."""
    if dtype.kind == "i" or (dtype.kind == "u" and dtype.itemsize > 2):
        raise UnreadableError(
            f"contains colors as {dtype}, whose white level is unknown; save uint8, uint16, or floats from 0 to 1"
        )


def _decoded(path: Path, *, color: bool) -> np.ndarray:
    """Return the values of a file unchanged: (H, W) or (H, W, 3)."""
    if path.suffix.lower() not in ARRAYS:
        with path.open("rb") as file, Image.open(file) as image:  # PIL 13 garbles rotated TIFF if it maps the file
            turned = ImageOps.exif_transpose(image) if orientation(image) > 1 else image
            return np.asarray(_plain(turned, color=color))
    if path.suffix.lower() == ".npy":
        values = np.load(path, mmap_mode="r")
    else:
        with np.load(path) as arrays:
            values = arrays[arrays.files[0]]
    return values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values


def _plain(image: Image.Image, *, color: bool) -> Image.Image:
    """Return an image of values, labels or RGB; an image with a palette is one of labels unless it is a color."""
    if image.mode in ("LA", "La"):
        return image.convert("L")
    return image if image.mode == "RGB" or _is_map(image, color=color) else image.convert("RGB")


def _is_map(image: Image.Image, *, color: bool) -> bool:
    return image.mode in _VALUE_MODES or (image.mode == _PALETTE and not color)


def _layout_of_image(path: Path, *, color: bool) -> Layout:
    with Image.open(path) as image:
        upright = (image.height, image.width)
        size = (image.width, image.height) if orientation(image) in _SIDEWAYS else upright
        return Layout(size, 1 if _is_map(image, color=color) else 3)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an open image, 1 (upright) to 8, without decoding it; PIL itself turns TIFF."""
    if image.format == "TIFF":
        return 1
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1  # PIL would decode the whole image to look behind its pixels
    stated = image.getexif().get(_ORIENTATION)
    return stated if isinstance(stated, int) and 1 <= stated <= 8 else 1


def _layout_of_array(path: Path, *, color: bool) -> Layout:
    shape, dtype = array_header(path)
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))):
        raise UnreadableError(f"contains an array of shape {shape}; an image is (H, W), (H, W, 1) or (H, W, 3)")
    if dtype.kind not in "buif":
        raise UnreadableError(f"contains an array of {dtype}; an image must be numeric")
    if 0 in shape:
        raise UnreadableError(f"contains an empty array of shape {shape}")
    channels = 3 if len(shape) == 3 and shape[2] == 3 else 1
    if color or channels == 3:
        _require_white(dtype)
    return Layout((shape[0], shape[1]), channels)


def array_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of the array in a .npy file, or of the only one in a .npz file.

    Raises:
        UnreadableError: The file contains more or less than one array.
        OSError, ValueError, zipfile.BadZipFile: It is not such a file.
    """
    if path.suffix.lower() == ".npy":
        with path.open("rb") as file:
            return _header(file)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(names) != 1:
            raise UnreadableError(f"contains {len(names)} arrays ({', '.join(names)}); use a file with one")
        with archive.open(names[0]) as file:
            return _header(file)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(file)
    return shape, dtype


def _guarded(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
    except UnidentifiedImageError as error:
        raise UnreadableError("is not an image that PIL recognizes") from error
    except (OSError, ValueError, EOFError, SyntaxError, zipfile.BadZipFile) as error:  # PIL and numpy raise them all
        raise UnreadableError(f"cannot be read ({error})") from error
