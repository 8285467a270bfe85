"""Sets of validation samples with metrics of their own: by the label of their source, and by the noise in their inputs.

Samples are numbered by level of noise, then by label. The metrics without a set's name are those of all samples at the
first level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from train.config.tasks.joint_filter import PairSourceConfig
from train.data.images.validation_sets import by_label, labels
from train.tasks.task import Sums


class _Set(NamedTuple):
    name: str | None  # part of the metrics' names; None if this is all there is
    pairs: int
    noise: float  # standard deviation of the noise in the inputs
    is_main: bool  # whether it counts for the metrics without a set's name, too


class ValidationSets:
    """The sets that sources and levels of noise form.

    Args:
        sources: The validation sources.
        counts: Number of pairs of each, by `by_label`.
        noise: Levels of noise, the main one first.
    """

    def __init__(self, sources: Sequence[PairSourceConfig], counts: Sequence[int], noise: Sequence[float]) -> None:
        of_label: dict[str, int] = {}
        for label, count in zip(labels(by_label(sources)), counts, strict=True):
            of_label[label] = of_label.get(label, 0) + count
        self._sets = [
            _Set(_name(label if len(of_label) > 1 else None, deviation if level else None), count, deviation, not level)
            for level, deviation in enumerate(noise)
            for label, count in of_label.items()
        ]
        self._num_pairs = sum(counts)

    @property
    def sizes(self) -> list[int]:
        """Number of samples of each set."""
        return [each.pairs for each in self._sets]

    @property
    def names(self) -> list[str]:
        """The names of the sets that have one."""
        return [each.name for each in self._sets if each.name is not None]

    def of(self, sample: int) -> tuple[int, int, float]:
        """Return the set of a sample, its pair, and the standard deviation of its noise."""
        number = int(np.searchsorted(np.cumsum(self.sizes), sample, side="right"))
        return number, sample % self._num_pairs, self._sets[number].noise

    def divided(self, sums: Sums, number: int) -> Sums:
        """Return the sums of a batch from one set by their names and, as SET.NAME, of every set: all ranks have all."""
        main = float(self._sets[number].is_main)
        of_sets = {
            f"{each.name}.{name}": (value * (n == number), weight * (n == number))
            for n, each in enumerate(self._sets)
            if each.name is not None
            for name, (value, weight) in sums.items()
        }
        return {name: (value * main, weight * main) for name, (value, weight) in sums.items()} | of_sets


def scores_of(means: Mapping[str, float], names: Sequence[str], *, method: str, label: str | None) -> dict[str, float]:
    """Return the mean scores of a method on a set from what `divided` has summed, those that there are.

    Args:
        means: Means by name.
        names: Names of scores.
        method: The method; empty for the filter itself.
        label: Name of the set; None for the main metrics.
    """
    start = f"{label + '.' if label else ''}{method + '_' if method else ''}"
    keys = {name: f"{start}{name}" for name in names}
    return {name: means[key] for name, key in keys.items() if key in means}


def _name(label: str | None, noise: float | None) -> str | None:
    """Return the part of metrics' names that stands for a set: its label and its noise, where sets differ in them."""
    return "_".join([*([] if label is None else [label]), *([] if noise is None else [f"noise_{noise:g}"])]) or None
