"""Procedural objects as a source of annotated images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modeling.segmentation.facts_bap import BACKGROUND
from train.data.annotated.images import Annotated
from train.data.drawn import objects

if TYPE_CHECKING:
    from hashlib import blake2b


class DrawnObjects:
    """A range of scenes, rendered when read."""

    def __init__(self, numbers: range, size: tuple[int, int]) -> None:
        """Initialize from a range of indices and a size."""
        self.numbers, self._size = numbers, size
        self.names: Sequence[str] = [f"objects-{number:05d}" for number in numbers]
        self.classes: Sequence[str] = [BACKGROUND, *objects.CLASSES]

    def has_mask(self, index: int) -> bool:
        """Return True."""
        return True

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width."""
        return self._size

    def most_boxes(self) -> int:
        """Return the most objects of a scene."""
        return objects.MOST_OBJECTS

    def read(self, index: int) -> Annotated:
        """Return a scene."""
        return Annotated(self.names[index], *objects.objects(self.numbers[index], self._size))

    def check(self, index: int) -> None:
        """Do nothing: a scene is drawn as it should be."""

    def update(self, digest: blake2b, index: int, *, with_mask: bool) -> None:
        """Hash what determines the scene: its index, its size, and the version of the code that renders it."""
        digest.update(f"objects {objects.VERSION} {self.numbers[index]} {self._size}\n".encode())
