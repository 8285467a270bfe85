"""Procedural images as sources of image pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from train.config.errors import ConfigError
from train.config.tasks.joint_filter import PairSourceConfig
from train.data.drawn import objects, scenes, textures
from train.data.drawn.series import series_faults
from train.data.images.image_files import Layout
from train.data.images.sources import Content, ignored_keys

if TYPE_CHECKING:
    from hashlib import blake2b

DEFAULT_SIZE = (192, 256)
_SMALLEST = 16  # pixels

Draw = Callable[[int, tuple[int, int]], tuple[np.ndarray, np.ndarray]]


class _Series(NamedTuple):
    """An infinite series of pairs; `draw` returns guidance and target of an index and a size, float32."""

    draw: Draw
    channels: int  # of the target
    word: str  # in names
    version: int


def _masked_objects(index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of objects, and a mask that is 1 on them and 0 elsewhere."""
    drawn = objects.objects(index, size)
    return (drawn.image / np.float32(255)).astype(np.float32), (drawn.mask > 0).astype(np.float32)


_SERIES = {
    "procedural-scenes": _Series(scenes.scene, 1, "scene", scenes.VERSION),
    "procedural-textures": _Series(textures.textured_image, 3, "texture", textures.VERSION),
    "procedural-objects": _Series(_masked_objects, 1, "objects", objects.VERSION),
    "procedural-modalities": _Series(scenes.modalities, 1, "modalities", scenes.VERSION),
}
KINDS = tuple(_SERIES)


class ProceduralSource:
    """A range of a series, rendered when read."""

    def __init__(self, kind: str, numbers: range, size: tuple[int, int]) -> None:
        """Initialize from a kind, a range of indices and a size."""
        self.kind, self.numbers, self.size = kind, numbers, size
        self._series = _SERIES[kind]
        self.names: Sequence[str] = [f"{self._series.word}-{number:05d}" for number in numbers]

    def layout(self, index: int) -> Layout:
        """Return height and width, and the target's channels."""
        return Layout(self.size, self._series.channels)

    def read(self, index: int) -> Content:
        """Return guidance, target and valid: color and depth, a textured and its clean image, and so on."""
        guidance, target = self._series.draw(self.numbers[index], self.size)
        return Content(guidance, target.reshape(*self.size, -1), np.ones(self.size, bool))

    def update(self, digest: blake2b, index: int) -> None:
        """Hash what determines the image: its index, its size, and the version of the code that renders it."""
        digest.update(f"{self.kind} {self._series.version} {self.numbers[index]} {self.size}\n".encode())


def open_procedural(config: PairSourceConfig, *, path: str) -> ProceduralSource:
    """Return the images `start` to `stop` of the infinite series, counted from 0.

    Raises:
        ConfigError: With every fault of the source.
    """
    start, stop, size = config.start or 0, config.stop, config.size or DEFAULT_SIZE
    ignored = ("guidance", "target", "input", "split", "missing")
    faults = list(ignored_keys(config, ignored, path=path, because=config.path))
    faults += series_faults(config.path, start=start, stop=stop, size=size, smallest=_SMALLEST, path=path)
    if faults or stop is None:
        raise ConfigError(faults)
    return ProceduralSource(config.path, range(start, stop), (size[0], size[1]))
