"""A view of image pairs: their numbers, and the names and sizes of the pairs of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from train.config.tasks.joint_filter import PairDataConfig
from train.data import summary
from train.data.images.pairs import open_pairs

_NAMES = 5  # that are listed


class PairView:
    """The pairs of a joint image filter.

    Raises:
        ConfigError: Images are missing or do not belong together.
    """

    def __init__(self, config: PairDataConfig):
        self._training = open_pairs(config.sources, path="task.data.sources")
        self._validation = open_pairs(config.validation_sources, path="task.data.validation_sources")
        self._crop = config.crop
        self.num_training_samples = len(self._training)

    def overview(self) -> Iterator[str]:
        """Yield how many pairs there are, their sizes, first names and fingerprint."""
        for split, pairs in (("training", self._training), ("validation", self._validation)):
            sizes = summary.sizes(Counter(pairs.size(i) for i in range(len(pairs))))
            yield f"{split} data: {summary.in_words({'pairs': len(pairs)})} of {sizes}"
            names = [pairs.name(i) for i in range(min(_NAMES, len(pairs)))]
            yield f"  {', '.join(names)}{', ...' if len(pairs) > len(names) else ''}"
            yield f"  fingerprint {pairs.fingerprint}"

    def samples(self, ids: np.ndarray) -> Iterator[str]:
        """Yield name and size of each pair."""
        if self._crop is not None:
            yield f"of each pair, a crop of {self._crop} x {self._crop} pixels"
        for index in map(int, ids):
            height, width = self._training.size(index)
            yield f"  pair {index}: {self._training.name(index)}, {height} x {width} pixels"
