"""Image pairs, guidance and target, from any source that `PairSourceConfig.path` supports.

H, W  height and width of a pair, which both images share
C     channels of the target: 1 for depth and the like, 3 for color
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.config.errors import ConfigError
from train.config.tasks.joint_filter import PairSourceConfig
from train.data.images.nyu import looks_like_arrays, open_arrays, open_mat
from train.data.images.pair_folder import open_folder
from train.data.images.procedural import KINDS, open_procedural
from train.data.images.sources import Source

_FORMAT = 1  # of the values returned by `read`; increment it if they change, as that would silently change training


class Pair(NamedTuple):
    """A guidance and the target that belongs to it."""

    name: str
    guidance: np.ndarray  # float32 (H, W, 3), RGB from 0 to 1
    target: np.ndarray  # float32 (H, W, C), finite: a map in the file's values, or RGB from 0 to 1
    valid: np.ndarray  # bool (H, W): where the target is known
    units_per_value: float
    input: np.ndarray | None = None  # float32 (h, w, C), finite, in the target's values; None: made from the target


class Pairs:
    """The pairs of several sources, concatenated and read on demand.

    Safe for concurrent reads by several threads.
    """

    def __init__(self, sources: Sequence[tuple[Source, PairSourceConfig]]) -> None:
        """Concatenate sources, each with its configuration."""
        self._entries = [(source, i, config) for source, config in sources for i in range(len(source.names))]
        self.counts = [len(source.names) for source, _ in sources]  # pairs of each source, in order
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, index: int) -> Pair:
        """Return one pair.

        Raises:
            ConfigError: A file is damaged.
        """
        source, i, config = self._entries[index]
        guidance, target, valid, real = source.read(i)
        return Pair(source.names[i], guidance, target, valid, config.units_per_value, real)

    def size(self, index: int) -> tuple[int, int]:
        """Return a pair's height and width; does not decode the image."""
        source, i, _ = self._entries[index]
        return source.layout(i).size

    def channels(self, index: int) -> int:
        """Return the number of channels of a pair's target, 1 or 3; does not decode the image."""
        source, i, _ = self._entries[index]
        return source.layout(i).channels

    def input_size(self, index: int) -> tuple[int, int] | None:
        """Return height and width of a pair's real input; None if its input is made from the target."""
        source, i, _ = self._entries[index]
        return source.layout(i).input_size

    def name(self, index: int) -> str:
        """Return a pair's name; pairs of different sources may have the same."""
        source, i, _ = self._entries[index]
        return source.names[i]

    @property
    def fingerprint(self) -> str:
        """A hash (32 hex digits) of everything that determines the result of `read`: bytes of all files, and settings.

        The first access reads every file.
        """
        if self._fingerprint is None:
            digest = hashlib.blake2b(f"{_FORMAT}\n".encode(), digest_size=16)
            for source, i, config in self._entries:
                digest.update(f"{source.names[i]}\0{config.units_per_value!r}\n".encode())
                source.update(digest, i)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def open_pairs(sources: Sequence[PairSourceConfig], *, path: str) -> Pairs:
    """Open the pairs of several sources.

    Args:
        sources: One or more sources.
        path: Their path in the configuration (`task.data.sources`), for messages.

    Raises:
        ConfigError: With every fault of any source: missing files or partners, different sizes, unknown formats,
            settings without effect.
    """
    opened: list[tuple[Source, PairSourceConfig]] = []
    faults: list[str] = []
    for number, config in enumerate(sources):
        try:
            opened.append((_open(config, path=f"{path}.{number}"), config))
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults)
    return Pairs(opened)


def _open(config: PairSourceConfig, *, path: str) -> Source:
    place = Path(config.path).expanduser()
    if config.path in KINDS:
        return open_procedural(config, path=path)
    if place.is_file() and place.suffix == ".mat":
        return open_mat(config, path=path)
    if not place.is_dir():
        raise ConfigError([_nothing_there(config, path)])
    if looks_like_arrays(place):
        return open_arrays(config, path=path)
    return open_folder(config, path=path)


def _nothing_there(config: PairSourceConfig, path: str) -> str:
    kinds = f"{', '.join(KINDS)}, a folder of pairs, a folder of NYU's .npy arrays, or nyu_depth_v2_labeled.mat"
    problem = "is a single file" if Path(config.path).expanduser().is_file() else "does not exist"
    return f"{path}.path: {config.path} {problem}; use one of {kinds}"
