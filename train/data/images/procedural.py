"""Procedural scenes and textures as sources of image pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from train.config.errors import ConfigError
from train.config.tasks.joint_filter import PairSourceConfig
from train.data.drawn import scenes, textures
from train.data.drawn.series import series_faults
from train.data.images.image_files import Layout
from train.data.images.sources import ignored_keys

if TYPE_CHECKING:
    from hashlib import blake2b

SCENES = "procedural-scenes"
KINDS = (SCENES, "procedural-textures")
DEFAULT_SIZE = (192, 256)
_SMALLEST = 16  # pixels


class ProceduralSource:
    """A range of scenes or textures, rendered when read."""

    def __init__(self, kind: str, numbers: range, size: tuple[int, int]) -> None:
        """Initialize from a kind, a range of indices and a size."""
        self.kind, self.numbers, self.size = kind, numbers, size
        word = kind.removeprefix("procedural-").removesuffix("s")
        self.names: Sequence[str] = [f"{word}-{number:05d}" for number in numbers]

    def layout(self, index: int) -> Layout:
        """Return height and width, and the target's channels."""
        return Layout(self.size, 1 if self.kind == SCENES else 3)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return guidance, target and valid: color and depth, or a textured and its clean image."""
        valid = np.ones(self.size, bool)
        if self.kind == SCENES:
            color, depth = scenes.scene(self.numbers[index], self.size)
            return color, depth[:, :, None], valid
        return *textures.textured_image(self.numbers[index], self.size), valid

    def update(self, digest: blake2b, index: int) -> None:
        """Hash what determines the image: its index, its size, and the version of the code that renders it."""
        version = scenes.VERSION if self.kind == SCENES else textures.VERSION
        digest.update(f"{self.kind} {version} {self.numbers[index]} {self.size}\n".encode())


def open_procedural(config: PairSourceConfig, *, path: str) -> ProceduralSource:
    """Return the images `start` to `stop` of the infinite series, counted from 0.

    Raises:
        ConfigError: With every fault of the source.
    """
    start, stop, size = config.start or 0, config.stop, config.size or DEFAULT_SIZE
    faults = list(ignored_keys(config, ("guidance", "target", "split", "missing"), path=path, because=config.path))
    faults += series_faults(config.path, start=start, stop=stop, size=size, smallest=_SMALLEST, path=path)
    if faults or stop is None:
        raise ConfigError(faults)
    return ProceduralSource(config.path, range(start, stop), (size[0], size[1]))
