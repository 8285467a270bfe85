"""Massive activations: the few elements of the residual stream that dwarf all others.

Sun et al. 2024 (arXiv 2402.17762): an activation is massive if its magnitude is above 100 and above 1000 times the
median magnitude of its layer's stream (here: in the same window of text).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from analysis.inspect.streams import Stream, watching

LARGEST_PER_DEPTH = 5
MAGNITUDE = 100.0
RATIO = 1000.0


@dataclass(frozen=True)
class Largest:
    """One of the largest elements of the stream at a depth; `is_massive` is the criterion of Sun et al."""

    depth: float
    window: int
    position: int
    dimension: int
    value: float
    ratio_to_median: float
    is_massive: bool

    def described(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


class MassiveProbe:
    """The largest elements of the stream at every depth, over windows of text."""

    def __init__(self, watched: Sequence[Stream]) -> None:
        self.watched = list(watched)
        self._window = -1
        self._found: list[list[Largest]] = [[] for _ in self.watched]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Search the one forward pass inside: the next window."""
        self._window += 1
        with watching(self.watched, self._see):
            yield

    def largest(self) -> list[Largest]:
        """Return the largest elements of every depth, largest first within a depth."""
        return [element for found in self._found for element in found]

    def _see(self, index: int, values: Tensor) -> None:
        tokens = values.reshape(-1, values.shape[-1]).float()  # (T, D)
        magnitudes = tokens.abs().flatten()
        top = magnitudes.topk(min(LARGEST_PER_DEPTH, magnitudes.numel()))
        median = magnitudes.median().item()
        elements = [
            self._element(index, place, value=tokens.flatten()[place].item(), median=median, width=tokens.shape[1])
            for place in top.indices.tolist()
        ]
        both = sorted([*self._found[index], *elements], key=lambda element: -abs(element.value))
        self._found[index] = both[:LARGEST_PER_DEPTH]

    def _element(self, index: int, place: int, *, value: float, median: float, width: int) -> Largest:
        ratio = abs(value) / median if median else float("inf")
        return Largest(
            depth=self.watched[index].depth,
            window=self._window,
            position=place // width,
            dimension=place % width,
            value=value,
            ratio_to_median=ratio,
            is_massive=abs(value) > MAGNITUDE and ratio > RATIO,
        )
