"""Image files and arrays: decoding to float32, and layout without decoding.

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
from PIL import Image, UnidentifiedImageError

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".pfm", ".pgm", ".ppm")
ARRAYS = (".npy", ".npz")
SUFFIXES = (*IMAGES, *ARRAYS)

_VALUE_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16L", "I;16B")  # PIL's, of one channel


class Layout(NamedTuple):
    """Size and channels, from the header of a file."""

    size: tuple[int, int]  # H, W
    channels: int  # 1 or 3


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
    return _guarded(_layout_of_image, path)


def read_values(path: Path) -> np.ndarray:
    """Return a map in the file's own values, float32 (H, W, 1), or color from 0 to 1, float32 (H, W, 3).

    Raises:
        UnreadableError: It is not an image or an array of one.
    """
    values = _guarded(_decoded, path)
    return values.astype(np.float32)[:, :, None] if values.ndim == 2 else _unit(values, path)


def read_color(path: Path) -> np.ndarray:
    """Return color from 0 to 1, float32 (H, W, 3); gray is repeated.

    Raises:
        UnreadableError: It is not an image or an array of one, or it contains floats outside 0 to 1, or integers whose
            white level is unknown.
    """
    values = _guarded(_decoded, path)
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


def _decoded(path: Path) -> np.ndarray:
    """Return the values of a file unchanged: (H, W) or (H, W, 3)."""
    if path.suffix.lower() not in ARRAYS:
        with Image.open(path) as image:
            return np.asarray(image.convert("L") if image.mode == "LA" else _without_palette(image))
    if path.suffix.lower() == ".npy":
        values = np.load(path, mmap_mode="r")
    else:
        with np.load(path) as arrays:
            values = arrays[arrays.files[0]]
    return values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values


def _without_palette(image: Image.Image) -> Image.Image:
    return image if image.mode in _VALUE_MODES or image.mode == "RGB" else image.convert("RGB")


def _layout_of_image(path: Path) -> Layout:
    with Image.open(path) as image:
        return Layout((image.height, image.width), 1 if image.mode in _VALUE_MODES else 3)


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
