"""Images with boxes and, where they are known, masks.

H, W  height and width of an image
K     boxes of an image
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from hashlib import blake2b

VOID = 255  # in a mask: pixels that do not count


class Annotated(NamedTuple):
    """An image with its annotations.

    Args:
        name: Name of the image; images of different sources may have the same.
        image: uint8 (H, W, 3), red, green and blue.
        boxes: int64 (K, 4) as x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
        classes: int64 (K,), from 1; 0 is the background.
        mask: uint8 (H, W), a class at each pixel, or VOID; None: not known.
    """

    name: str
    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    mask: np.ndarray | None


class AnnotatedSource(Protocol):
    """The images of one source, by index."""

    names: Sequence[str]
    has_masks: bool

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width; does not decode the image."""
        ...

    def read(self, index: int) -> Annotated:
        """Return an image with its annotations.

        Raises:
            ConfigError: A file is damaged.
        """
        ...

    def update(self, digest: blake2b, index: int) -> None:
        """Add everything that determines the result of `read` to a hash."""
        ...
