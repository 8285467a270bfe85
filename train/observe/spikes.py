"""Detection of loss and gradient-norm spikes: each step is compared with preceding steps, without a wait per step."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from train.ranks.distributed import sum_over_ranks

_MIN_VALUES = 20  # minimum number of values for a meaningful median
_SIGMA_PER_MAD = 1.4826  # of a normal distribution
_SMALLEST_SPREAD = 0.02  # of the median: rounding noise on a flat curve is not a spike


class Spike(NamedTuple):
    """A value that stands out from preceding values."""

    step: int
    quantity: str  # "loss", "grad_norm"
    value: float
    median: float  # of the preceding window
    score: float  # distance from the median in robust standard deviations


class SpikeDetector:
    """Detects spikes of one quantity by the median and the median absolute deviation of its last values.

    Both tolerate outliers in up to half of the window, so a spike neither hides the next one nor has to be removed.

    Args:
        window: Number of preceding values to compare with.
        threshold: Score above which a value is a spike; only upward spikes count.
        recent: Values that precede the first, as returned by `recent`.
    """

    def __init__(self, *, window: int, threshold: float, recent: Sequence[float] = ()) -> None:
        self.threshold = threshold
        self._values = deque(recent, maxlen=window)

    @property
    def recent(self) -> list[float]:
        """The values that the next one is compared with."""
        return list(self._values)

    def judge(self, step: int, quantity: str, value: float) -> Spike | None:
        """Compare a value with preceding values, then store it; non-finite values are ignored."""
        if not math.isfinite(value):
            return None
        spike = None
        if len(self._values) >= _MIN_VALUES:
            median = statistics.median(self._values)
            deviation = statistics.median(abs(earlier - median) for earlier in self._values)
            spread = max(_SIGMA_PER_MAD * deviation, _SMALLEST_SPREAD * abs(median))
            score = (value - median) / spread if spread else 0.0
            if score > self.threshold:
                spike = Spike(step, quantity, value, median, score)
        self._values.append(value)
        return spike


class SpikeWatch:
    """Keeps each step's loss and gradient norm on the device until `settle` reduces and examines them together.

    Args:
        window: See SpikeDetector.
        threshold: See SpikeDetector; None disables detection.
        recent: Preceding values by quantity, as returned by `recent` when the run's checkpoint was saved.
    """

    def __init__(self, *, window: int, threshold: float | None, recent: Mapping[str, Sequence[float]]) -> None:
        self._detectors: dict[str, SpikeDetector] = {}
        if threshold is not None:
            for quantity in ("loss", "grad_norm"):
                values = recent.get(quantity, ())
                self._detectors[quantity] = SpikeDetector(window=window, threshold=threshold, recent=values)
        self._pending: list[tuple[int, Tensor, float | Tensor]] = []

    @property
    def recent(self) -> dict[str, list[float]]:
        """The values that the next step is compared with, excluding pending steps."""
        return {quantity: detector.recent for quantity, detector in self._detectors.items()}

    def add(self, step: int, *, loss: Tensor, grad_norm: float | Tensor) -> None:
        """Store a step for the next `settle`.

        Args:
            step: The step.
            loss: Sum and weight of this rank's micro-batches, (2,) fp64.
            grad_norm: Gradient norm of the whole step, the same on every rank.
        """
        if self._detectors:
            self._pending.append((step, loss, grad_norm))

    def settle(self) -> list[Spike]:
        """Return the spikes among pending steps, in order; collective, with the same result on every rank."""
        if not self._pending:
            return []
        totals = sum_over_ranks(torch.stack([sums for _, sums, _ in self._pending])).tolist()
        spikes = []
        for (step, _, grad_norm), (total, weight) in zip(self._pending, totals, strict=True):
            values = {"loss": total / weight if weight else math.nan, "grad_norm": float(grad_norm)}
            spikes += [self._detectors[quantity].judge(step, quantity, value) for quantity, value in values.items()]
        self._pending = []
        return [spike for spike in spikes if spike is not None]
