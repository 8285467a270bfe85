"""What every kind of source of pairs is asked for, and what their openers share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from train.config.errors import ConfigError
from train.config.tasks.joint_filter import PairSourceConfig

if TYPE_CHECKING:
    from hashlib import blake2b

    from train.data.images.image_files import Layout


class Source(Protocol):
    """The pairs of one place, each known by its number."""

    names: Sequence[str]

    def layout(self, index: int) -> Layout:
        """Return height and width, and the target's channels."""
        ...

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return guidance, target and valid, as `pairs.Pair` has them."""
        ...

    def update(self, digest: blake2b, index: int) -> None:
        """Add to a hash all that decides what `read` returns."""
        ...


def known_values(target: np.ndarray, missing: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Return a target with zeros where it is not finite, and where it is known.

    Args:
        target: float32 (H, W, C).
        missing: what stands where a map's value is not known, besides what is not finite. Colour, of which any value
            may be meant, has no such value.
    """
    valid = np.asarray(np.isfinite(target).all(axis=2))
    target = target if valid.all() else np.where(np.isfinite(target), target, np.float32(0))
    if missing is not None and target.shape[2] == 1:
        valid = valid & (target[:, :, 0] != np.float32(missing))
    return target, valid


def useless_keys(config: PairSourceConfig, keys: Sequence[str], *, path: str, because: str) -> Iterator[str]:
    """Yield a fault for each key that was given and that a kind of source never reads."""
    default = PairSourceConfig(path=config.path)
    for key in keys:
        if getattr(config, key) != getattr(default, key):
            yield f"{path}.{key}: has no effect on {because}; leave it out"


def part(count: int, config: PairSourceConfig, *, path: str) -> range:
    """Return the numbers of the pairs that `start` and `stop` choose, as a Python slice does.

    Raises:
        ConfigError: None.
    """
    chosen = range(*slice(config.start, config.stop).indices(count))
    if chosen:
        return chosen
    raise ConfigError(
        [
            f"{path}.start: {config.start or 0} to stop {config.stop} holds none of the {count} pairs of "
            f"{config.path}; write a part of 0 to {count}"
        ]
    )
