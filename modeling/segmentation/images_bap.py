"""Images, boxes and masks as users have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def read_image(image: Any) -> Tensor:
    """Return an image as (3, H, W) bytes in red, green and blue.

    Args:
        image: A PIL image of any mode, an array (H, W) or (H, W, 3 or 4) of bytes, or a path. The orientation that EXIF
            states is applied.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(image, str | Path):
        with Image.open(image) as file:
            file.load()
            return read_image(file)
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        return torch.from_numpy(np.array(upright.convert("RGB"))).movedim(-1, 0)
    array = np.asarray(image)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        given = f"{array.dtype} {array.shape}"
        raise ValueError(f"image: {given} given; pass a PIL image, a path, or an array (height, width, 3) of uint8")
    return read_image(Image.fromarray(np.ascontiguousarray(array)))


def read_boxes(boxes: Sequence[Sequence[Any]], size: Sequence[int], classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return boxes (K, 4) int64 and their classes (K,) int64.

    Args:
        boxes: A (class, x0, y0, x1, y1) for each; the class by name or number.
        size: Height and width of the image.
        classes: The names of the classes; the first is the background.

    Raises:
        ValueError: With every box that is invalid.
    """
    height, width = size
    faults, numbers, places = [], [], []
    for at, (name, *place) in enumerate(boxes):
        number = classes.index(name) if name in classes else name
        if number not in range(1, len(classes)):
            faults.append(f"boxes[{at}]: {name!r} is none of the classes {', '.join(classes[1:])}")
        x0, y0, x1, y1 = place
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            where = f"inside an image of {width} x {height} pixels"
            faults.append(f"boxes[{at}]: {tuple(place)} is no x0, y0, x1, y1 {where}; x1 and y1 are exclusive")
        numbers.append(number)
        places.append(place)
    if faults:
        raise ValueError("\n".join(faults))
    return torch.tensor(places, dtype=torch.int64).reshape(-1, 4), torch.tensor(numbers, dtype=torch.int64)


def voc_palette() -> list[int]:
    """Return the 256 colors of PASCAL VOC's masks, as red, green, blue, red, ...: the bits of a number, spread out."""
    palette = []
    for number in range(256):
        color = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                color[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
        palette += color
    return palette


def palette_image(labels: Tensor) -> Image.Image:
    """Return labels (H, W) below 256 as a PIL image with the VOC palette."""
    image = Image.fromarray(labels.to(torch.uint8).cpu().numpy())
    image.putpalette(voc_palette())
    return image
