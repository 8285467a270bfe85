"""Sample order: a pure function of (seed, step), independent of ranks and accumulation.

The stream of samples is a sequence of permutations of the data set. Step n (from 1) uses the n-th block of
`global_batch_size` positions in that stream, so a batch may span two epochs and no sample is ever dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from train.config.batch import largest_divisor

if TYPE_CHECKING:
    from torch import Tensor

_MASK = (1 << 64) - 1


def splitmix64(values: np.ndarray) -> np.ndarray:
    """Hash uint64 values one by one (Steele, Lea and Flood 2014, as in java.util.SplittableRandom).

    The streams of numpy's generators may change between versions; this arithmetic cannot.
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permutation(num_samples: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the order of one epoch: int64 (num_samples,), sorted by splitmix64 of (seed, epoch, index)."""
    salt = splitmix64(np.array([seed & _MASK], np.uint64))
    salt = splitmix64(salt ^ np.array([epoch], np.uint64))
    keys = splitmix64(salt ^ splitmix64(np.arange(num_samples, dtype=np.uint64)))
    return np.argsort(keys, kind="stable")


class SampleOrder:
    """The sample order of a data set; caches the permutation of the most recent epoch."""

    def __init__(self, num_samples: int, *, seed: int, global_batch_size: int) -> None:
        assert num_samples > 0
        assert global_batch_size > 0
        self.num_samples = num_samples
        self.seed = seed
        self.global_batch_size = global_batch_size
        self._epoch = -1
        self._permutation = np.empty(0, np.int64)

    def of_step(self, step: int) -> np.ndarray:
        """Return the sample ids of optimizer step `step` (from 1): int64 (global_batch_size,)."""
        assert step >= 1
        start = (step - 1) * self.global_batch_size
        epochs, indices = np.divmod(np.arange(start, start + self.global_batch_size), self.num_samples)
        ids = np.empty_like(indices)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            ids[here] = self._of_epoch(int(epoch))[indices[here]]
        return ids

    def _of_epoch(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._permutation = permutation(self.num_samples, seed=self.seed, epoch=epoch)
            self._epoch = epoch
        return self._permutation


def sample_ids(step: int, *, seed: int, num_samples: int, global_batch_size: int) -> np.ndarray:
    """Return the sample ids of one step; for many steps, use `SampleOrder`."""
    return SampleOrder(num_samples, seed=seed, global_batch_size=global_batch_size).of_step(step)


def rank_share(ids: np.ndarray, *, rank: int, world_size: int, micro_batch_size: int) -> list[np.ndarray]:
    """Return a rank's contiguous share of a global batch, cut into equal micro-batches.

    The micro-batch size is the largest divisor of the share up to `micro_batch_size`. Concatenated, the shares of all
    ranks are the global batch.
    """
    share, rest = divmod(len(ids), world_size)
    assert rest == 0, "check_world_size guarantees that the world size divides the global batch"
    mine = ids[rank * share : (rank + 1) * share]
    return np.split(mine, share // largest_divisor(share, limit=micro_batch_size))


def content_hashes(batch: Mapping[str, Tensor]) -> np.ndarray:
    """Return one 64-bit hash per sample, int64 (B,): keys in sorted order, dtype, shape and bytes of each value.

    Args:
        batch: CPU tensors with samples along the first dimension.
    """
    import torch

    rows: list[tuple[bytes, np.ndarray]] = []
    for key in sorted(batch):
        value = batch[key]
        label = f"{key} {value.dtype} {tuple(value.shape[1:])}\n".encode()
        flat = value.detach().contiguous().reshape(len(value), -1)
        rows.append((label, flat.view(torch.uint8).numpy()))
    num_samples = len(next(iter(batch.values())))
    digests = b"".join(_digest_of_row(rows, sample) for sample in range(num_samples))
    return np.frombuffer(digests, "<i8").astype(np.int64)


def _digest_of_row(rows: list[tuple[bytes, np.ndarray]], sample: int) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    for label, values in rows:
        digest.update(label)
        digest.update(values[sample])
    return digest.digest()


def combined_hash(hashes: np.ndarray) -> str:
    """Combine content hashes, in order, into one hash of 16 hexadecimal digits."""
    return hashlib.blake2b(np.asarray(hashes).astype("<i8").tobytes(), digest_size=8).hexdigest()
