"""Interface of pair sources, and helpers shared by the functions that open them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from train.config.errors import ConfigError
from train.config.tasks.joint_filter import PairSourceConfig

if TYPE_CHECKING:
    from hashlib import blake2b

    from train.data.images.image_files import Layout


class Content(NamedTuple):
    """The images of a pair, as defined in `pairs.Pair`."""

    guidance: np.ndarray
    target: np.ndarray
    valid: np.ndarray
    input: np.ndarray | None = None  # None: it is made from the target


class Source(Protocol):
    """The pairs of one source, by index."""

    names: Sequence[str]

    def layout(self, index: int) -> Layout:
        """Return height and width, the target's channels, and the size of a real input."""
        ...

    def read(self, index: int) -> Content:
        """Return the images of a pair."""
        ...

    def update(self, digest: blake2b, index: int) -> None:
        """Add everything that determines the result of `read` to a hash."""
        ...


def known_values(target: np.ndarray, missing: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Return a target with non-finite values set to zero, and the mask of its known pixels.

    Args:
        target: float32 (H, W, C).
        missing: Value that marks missing pixels of a map, in addition to non-finite ones. Ignored for color, where any
            value may occur.
    """
    valid = np.asarray(np.isfinite(target).all(axis=2))
    target = target if valid.all() else np.where(np.isfinite(target), target, np.float32(0))
    if missing is not None and target.shape[2] == 1:
        valid = valid & (target[:, :, 0] != np.float32(missing))
    return target, valid


def ignored_keys(config: PairSourceConfig, keys: Sequence[str], *, path: str, because: str) -> Iterator[str]:
    """Yield a fault for each key that is set but ignored by this kind of source."""
    default = PairSourceConfig(path=config.path)
    for key in keys:
        if getattr(config, key) != getattr(default, key):
            yield f"{path}.{key}: has no effect on {because}; remove it"


def part(count: int, config: PairSourceConfig, *, path: str) -> range:
    """Return the indices of the pairs selected by `start` and `stop`, as in a Python slice.

    Raises:
        ConfigError: No pair is selected.
    """
    selected = range(*slice(config.start, config.stop).indices(count))
    if selected:
        return selected
    raise ConfigError(
        [
            f"{path}.start: {config.start or 0} to stop {config.stop} selects none of the {count} pairs in "
            f"{config.path}; choose a range within 0 to {count}"
        ]
    )
