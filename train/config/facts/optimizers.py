"""Facts of each optimizer that need no torch: the state it keeps, its size, its source.

train/engine/optimizers.py has the torch side of each, under the same name.
"""

from __future__ import annotations

from dataclasses import dataclass

_FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class OptimizerFacts:
    """What an optimizer keeps for each parameter, beside the fp32 weight."""

    name: str  # the value of optim.optimizer
    state: tuple[str, ...]  # fp32 tensors of the weight's shape, by torch's names; a checkpoint has them under these
    state_in_words: str
    source: str

    @property
    def state_bytes(self) -> int:
        """Bytes of state per parameter."""
        return _FLOAT * len(self.state)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes per parameter that a checkpoint holds: the fp32 weight and the state."""
        return _FLOAT + self.state_bytes


OPTIMIZERS = {
    facts.name: facts
    for facts in (
        OptimizerFacts(
            name="adamw",
            state=("exp_avg", "exp_avg_sq"),
            state_in_words="two moments",
            source="Loshchilov and Hutter, Decoupled weight decay regularization, arXiv 1711.05101",
        ),
    )
}
