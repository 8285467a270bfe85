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


class Annotated(NamedTuple):
    """An image with its annotations.

    Args:
        name: Name of the image; images of different sources may have the same.
        image: uint8 (H, W, 3), red, green and blue.
        boxes: int64 (K, 4) as x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
        classes: int64 (K,), from 1; 0 is the background.
        mask: uint8 (H, W), a class at each pixel, or VOID of modeling.segmentation; None: not known.
            Variations also take several masks, (H, W, M).
    """

    name: str
    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    mask: np.ndarray | None


class AnnotatedSource(Protocol):
    """The images of one source, by index."""

    names: Sequence[str]
    classes: Sequence[str]  # of boxes and masks, the background's first

    def has_mask(self, index: int) -> bool:
        """Return whether the mask of an image is known."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width; does not decode the image."""
        ...

    def most_boxes(self) -> int:
        """Return a number of boxes that no image exceeds."""
        ...

    def read(self, index: int) -> Annotated:
        """Return an image with its annotations.

        Raises:
            ConfigError: A file is damaged.
        """
        ...

    def check(self, index: int) -> None:
        """Check that the files of an image go together, as far as that takes no decoding.

        Raises:
            ConfigError: They do not, or one is damaged.
        """
        ...

    def update(self, digest: blake2b, index: int, *, with_mask: bool) -> None:
        """Add everything that determines the result of `read` to a hash, the mask only if asked for."""
        ...
