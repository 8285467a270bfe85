"""Spikes of loss and gradient norm: every step is judged against the steps before it, at no wait per step."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from train.ranks.distributed import sum_over_ranks

_FEWEST = 20  # values that make a median worth comparing with
_SIGMA_PER_MAD = 1.4826  # of a normal distribution
_SMALLEST_SPREAD = 0.02  # of the median: a curve that barely moves has no spikes of its rounding


class Spike(NamedTuple):
    """A value that stands out from those before it."""

    step: int
    quantity: str  # "loss", "grad_norm"
    value: float
    median: float  # of the window before it
    score: float  # distance from the median in robust standard deviations


class SpikeDetector:
    """Judges one quantity by the median and the median absolute deviation of its last values.

    Both bear that half of the window is wild, so a spike neither hides the next one nor needs to be taken out.

    Args:
        window: How many values are looked back on.
        threshold: The score from which a value is a spike; only upwards.
        recent: Values before the first, as `recent` gave them.
    """

    def __init__(self, *, window: int, threshold: float, recent: Sequence[float] = ()) -> None:
        self.threshold = threshold
        self._values = deque(recent, maxlen=window)

    @property
    def recent(self) -> list[float]:
        """The values that the next one is judged by."""
        return list(self._values)

    def judge(self, step: int, quantity: str, value: float) -> Spike | None:
        """Compare a value with those before it and remember it; one that is not finite is neither."""
        if not math.isfinite(value):
            return None
        found = None
        if len(self._values) >= _FEWEST:
            median = statistics.median(self._values)
            deviation = statistics.median(abs(earlier - median) for earlier in self._values)
            spread = max(_SIGMA_PER_MAD * deviation, _SMALLEST_SPREAD * abs(median))
            score = (value - median) / spread if spread else 0.0
            if score > self.threshold:
                found = Spike(step, quantity, value, median, score)
        self._values.append(value)
        return found


class SpikeWatch:
    """Keeps each step's loss and gradient norm on the device; `settle` reduces and judges all that wait, at once.

    Args:
        window: See SpikeDetector.
        threshold: See SpikeDetector; None: nothing is kept or found.
        recent: By quantity, as `recent` gave it at the checkpoint that the run goes on from.
    """

    def __init__(self, *, window: int, threshold: float | None, recent: Mapping[str, Sequence[float]]) -> None:
        self._detectors: dict[str, SpikeDetector] = {}
        if threshold is not None:
            for quantity in ("loss", "grad_norm"):
                known = recent.get(quantity, ())
                self._detectors[quantity] = SpikeDetector(window=window, threshold=threshold, recent=known)
        self._waiting: list[tuple[int, Tensor, float | Tensor]] = []

    @property
    def recent(self) -> dict[str, list[float]]:
        """The values that the next step is judged by; steps that wait are not in it."""
        return {quantity: detector.recent for quantity, detector in self._detectors.items()}

    def add(self, step: int, *, loss: Tensor, grad_norm: float | Tensor) -> None:
        """Remember a step.

        Args:
            step: Its number.
            loss: Sum and weight of this rank's micro-batches, (2,) fp64.
            grad_norm: Of the whole step, the same on every rank.
        """
        if self._detectors:
            self._waiting.append((step, loss, grad_norm))

    def settle(self) -> list[Spike]:
        """Judge the steps that wait, in order; every rank calls this at the same steps and gets the same answer."""
        if not self._waiting:
            return []
        totals = sum_over_ranks(torch.stack([sums for _, sums, _ in self._waiting])).tolist()
        found = []
        for (step, _, grad_norm), (total, weight) in zip(self._waiting, totals, strict=True):
            figures = {"loss": total / weight if weight else math.nan, "grad_norm": float(grad_norm)}
            found += [self._detectors[quantity].judge(step, quantity, value) for quantity, value in figures.items()]
        self._waiting = []
        return [spike for spike in found if spike is not None]
