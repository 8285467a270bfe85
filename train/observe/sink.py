"""Sink interface: a destination for everything a run logs, such as files, TensorBoard or the console.

A new sink is a file with a subclass of Sink, plus a line in train/observe/run_log.py that opens it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Table = Literal["metrics", "events", "activations", "gradients", "layers"]


class Histogram(NamedTuple):
    """Counts between bin edges."""

    edges: Tensor  # (N + 1,) int64, ascending
    counts: Tensor  # (N,) fp64


class Sink(Protocol):
    """A logging destination; the default methods do nothing, and a sink overrides those it needs.

    Sinks exist on rank 0 only. A sink that fails, e.g. because the disk is full, logs an error; the run continues.
    """

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Receive the run configuration as nested plain values, once, before anything else."""

    def row(self, table: Table, step: int, fields: Mapping[str, Any]) -> None:
        """Receive a row of a table as in TABLE.jsonl; rows of `events` may come from another thread."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Receive finite numbers by tag: from a row of metrics, or from a measured site, parameter or layer."""

    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        """Receive a histogram of log2 magnitudes."""

    def image(self, step: int, name: str, pixels: Tensor) -> None:
        """Receive an image: (3 or 1, H, W) fp32 on the CPU, from 0 to 1."""

    def flush(self) -> None:
        """Make everything received so far visible to readers; called after each row of metrics."""

    def close(self) -> None:
        """Write any remaining data and release resources."""


def magnitude_histogram(counts: Tensor) -> Histogram | None:
    """Convert counts by exponent, (256,), to a histogram of log2 magnitudes.

    The end bins (zeros, infinities) are excluded; returns None if all others are empty.
    """
    inside = counts[1:-1].nonzero().flatten() + 1
    if not len(inside):
        return None
    low, high = int(inside[0]), int(inside[-1])
    return Histogram(torch.arange(low, high + 2) - 127, counts[low : high + 1].double())
