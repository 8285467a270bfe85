"""NYU Depth v2's labelled frames, as published arrays or as the original file."""

from __future__ import annotations

from pathlib import Path

from train.config import PairSourceConfig
from train.data.sources import Source


def looks_like_arrays(folder: Path) -> bool:
    """Tell whether a folder holds the published arrays."""
    return any(folder.glob("t*_depth*.npy")) and any(folder.glob("t*_images_*.npy"))


def open_arrays(config: PairSourceConfig, *, path: str) -> Source:
    """Return the pairs of the published arrays."""
    raise NotImplementedError


def open_mat(config: PairSourceConfig, *, path: str) -> Source:
    """Return the pairs of nyu_depth_v2_labeled.mat."""
    raise NotImplementedError
