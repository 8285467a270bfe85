"""Gallery of the images and arrays that a task produces at one step."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from train.observe.sink import Sink

logger = logging.getLogger(__name__)


class RunGallery:
    """Sends images to the sinks and saves arrays in a folder; does nothing on ranks other than 0.

    Args:
        folder: Folder for the arrays of this step; None discards them.
        sinks: Destinations of images.
        step: The current step.
    """

    def __init__(self, folder: Path | None, sinks: Sequence[Sink], step: int) -> None:
        self._folder = folder
        self._sinks = sinks
        self._step = step

    def image(self, name: str, pixels: Tensor) -> None:
        """Show an image: (3 or 1, H, W), from 0 to 1."""
        if not self._sinks:  # do not wait for the device needlessly
            return
        picture = pixels.detach().float().clamp(0, 1).cpu()
        for sink in self._sinks:
            sink.image(self._step, name, picture)

    def arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays to NAME.npz atomically; if the disk is full, only this file is lost."""
        if self._folder is None:
            return
        partial = self._folder / f"{name}.npz.partial"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            partial.rename(partial.with_suffix(""))
        except OSError as error:
            logger.error(
                "%s: %s; training continues without this file", partial.with_suffix(""), error.strerror or error
            )
