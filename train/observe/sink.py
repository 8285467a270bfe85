"""The interface of a sink: one destination of what a run logs, such as files, TensorBoard or the console.

A new sink is a file with a subclass of Sink, and a line in train/observe/run_log.py that opens it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Table = Literal["metrics", "events", "activations", "gradients"]


class Histogram(NamedTuple):
    """Counts between edges."""

    edges: Tensor  # (N + 1,) int64, ascending
    counts: Tensor  # (N,) fp64


class Sink(Protocol):
    """A destination; the bodies here ignore everything, and a sink overrides what it takes.

    Sinks exist on rank 0 only. A sink that fails, on a full disk say, logs an error and lets the run go on.
    """

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Take the run's configuration as nested plain values, once, before anything else."""

    def row(self, table: Table, step: int, fields: Mapping[str, Any]) -> None:
        """Take a row of a table as it stands in TABLE.jsonl; rows of `events` may come from another thread."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take finite numbers by tag: those of a row of metrics, or of one site or parameter of a probed step."""

    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        """Take a histogram over log2 of the magnitude."""

    def image(self, step: int, name: str, pixels: Tensor) -> None:
        """Take a picture: (3 or 1, H, W) fp32 on the CPU, from 0 to 1."""

    def flush(self) -> None:
        """Make what came so far visible to readers; called after each row of metrics."""

    def close(self) -> None:
        """Write what is left and let go of resources."""


def magnitude_histogram(counts: Tensor) -> Histogram | None:
    """Return counts by exponent, (256,), as a histogram over log2 of the magnitude.

    The ends (zeros, infinities) are left out; None if nothing else is there.
    """
    inside = counts[1:-1].nonzero().flatten() + 1
    if not len(inside):
        return None
    low, high = int(inside[0]), int(inside[-1])
    return Histogram(torch.arange(low, high + 2) - 127, counts[low : high + 1].double())
