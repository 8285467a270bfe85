"""Angular distance between the residual streams at different depths.

Shapes: P depths, N tokens, D model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from analysis.inspect.streams import Stream, watching
from analysis.measure.angular import between, directions

TOKENS_PER_WINDOW = 128  # evenly spaced: 65 depths of 128 tokens of width 8192 are 273 MB in fp32


def angular_distances(vectors: Tensor) -> Tensor:
    """Return the angular distances between all pairs of depths, (P, P) fp64, the mean over tokens.

    Args:
        vectors: (P, N, D). A zero vector has no direction, so its token is left out.
    """
    unit = directions(vectors)  # (P, N, D)
    valid = unit.square().sum(dim=-1).gt(0.5).all(dim=0)  # (N,)
    unit = unit[:, valid]
    return torch.stack([between(one, unit).mean(dim=1) for one in unit])


class AngularProbe:
    """The angular distances between depths, averaged over windows of text."""

    def __init__(self, watched: Sequence[Stream]) -> None:
        self.watched = list(watched)
        self._seen: list[Tensor | None] = [None] * len(self.watched)
        self._sums: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measure the one forward pass inside."""
        with watching(self.watched, self._see):
            yield
        seen = [values for values in self._seen if values is not None]
        self._seen = [None] * len(self.watched)
        self._sums.append(angular_distances(torch.stack(seen)))

    def distances(self) -> Tensor:
        """Return the mean over the windows, (P, P) fp64."""
        return torch.stack(self._sums).mean(dim=0)

    def _see(self, index: int, values: Tensor) -> None:
        tokens = values.reshape(-1, values.shape[-1])  # (B * T, D)
        count = min(len(tokens), TOKENS_PER_WINDOW)
        chosen = torch.linspace(0, len(tokens) - 1, count, dtype=torch.float64).round().long()
        self._seen[index] = tokens[chosen.to(tokens.device)].float().cpu()
