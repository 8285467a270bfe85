"""Torch-free facts about each optimizer: its state, the size of that state, its settings, its source.

The torch implementation of each is in train/engine/optimizers.py, under the same name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

LARGEST_GRADIENT_NORM = 1.8446743e19  # whose square is finite in fp32; a step with a larger one is skipped
LARGEST_MOMENTUM = 0.999  # with which sgd adds up a thousand gradients
_FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class OptimizerFacts:
    """State that an optimizer keeps per parameter, in addition to the fp32 weight."""

    name: str  # the value of optim.optimizer
    state: tuple[str, ...]  # fp32 tensors shaped like the weight, under torch's names; checkpoints use the same names
    state_in_words: str
    settings: tuple[str, ...]  # those of optim.* that not every optimizer reads
    source: str
    largest_update: Callable[[float, float, float], float]  # of one weight, from lr, largest gradient norm, and eps

    @property
    def state_bytes(self) -> int:
        """Bytes of optimizer state per parameter."""
        return _FLOAT * len(self.state)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes per parameter in a checkpoint: the fp32 weight and the optimizer state."""
        return _FLOAT + self.state_bytes


OPTIMIZERS = {
    facts.name: facts
    for facts in (
        OptimizerFacts(
            name="adamw",
            state=("exp_avg", "exp_avg_sq"),
            state_in_words="two moments",
            settings=("betas", "eps"),
            source="Loshchilov and Hutter, Decoupled weight decay regularization, arXiv 1711.05101",
            # m^ is an average of clipped gradients, none of which exceeds the norm; the denominator is at least eps.
            largest_update=lambda lr, norm, eps: lr * norm / eps,
        ),
        OptimizerFacts(
            name="sgd",
            state=("momentum_buffer",),
            state_in_words="one momentum",
            settings=("momentum",),
            source="Sutskever et al., On the importance of initialization and momentum in deep learning, ICML 2013",
            # The buffer sums clipped gradients, weighted by powers of the momentum: at most norm / (1 - momentum).
            # Weight decay, which is added to the gradient, pulls weights back while lr * weight_decay < 1.
            largest_update=lambda lr, norm, eps: lr * norm / (1 - LARGEST_MOMENTUM),
        ),
    )
}
