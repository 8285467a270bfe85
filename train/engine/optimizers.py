"""The torch side of each optimizer; its facts are in train/config/facts/optimizers.py, under the same name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from analysis.measure.gradients import squared_norm
from train.config.facts.optimizers import OPTIMIZERS as FACTS
from train.config.facts.optimizers import OptimizerFacts
from train.config.run import OptimConfig
from train.tasks.task import ParameterGroup

_CHUNK_ELEMENTS = 2**24  # of a weight, at a time: the update is never there as a whole


class SquaredUpdate(Protocol):
    """Reconstructs an update from the state that the step left, so that no copy of the weights is kept."""

    def __call__(
        self, state: Mapping[str, Tensor], *, lr: float, weight_decay: float, updates: int, optim: OptimConfig
    ) -> Tensor:
        """Return the squared norm of what the optimizer's latest step added to a weight, () fp64.

        Args:
            state: "weight" and the optimizer's state after the step, (n,) each.
            lr: Learning rate of the step.
            weight_decay: Of this weight.
            updates: How many steps the state has seen, this one included.
            optim: The optimizer's settings.
        """
        ...


@dataclass(frozen=True)
class Optimizer:
    """What the engine and the probes ask of an optimizer.

    Args:
        facts: The state it keeps.
        build: Makes torch's optimizer of parameter groups.
        new_state: Returns the state of a flat fp32 tensor after some updates, all of `facts.state` at zero.
        squared_update: See SquaredUpdate.
    """

    facts: OptimizerFacts
    build: Callable[[list[dict[str, Any]], OptimConfig], torch.optim.Optimizer]
    new_state: Callable[[Tensor, int], dict[str, Tensor]]
    squared_update: SquaredUpdate


def build_optimizer(groups: Sequence[ParameterGroup], *, optim: OptimConfig) -> torch.optim.Optimizer:
    """Return the configured optimizer over the groups; the loop sets the rate each step."""
    described = [
        {"params": list(group.parameters.values()), "weight_decay": group.weight_decay, "name": group.name}
        for group in groups
        if group.parameters
    ]
    return OPTIMIZERS[optim.optimizer].build(described, optim)


# -------------------------------------------------------------------------------------------------------------- AdamW


def _build_adamw(groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
    """Return torch's fused AdamW: one kernel per flat partition."""
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def _new_adamw_state(flat: Tensor, updates: int) -> dict[str, Tensor]:
    return {
        "step": torch.tensor(float(updates), device=flat.device),  # fused AdamW counts on the weight's device
        "exp_avg": torch.zeros_like(flat, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(flat, requires_grad=False),
    }


def _squared_adamw_update(
    state: Mapping[str, Tensor], *, lr: float, weight_decay: float, updates: int, optim: OptimConfig
) -> Tensor:
    """Solve AdamW's step for the update.

    With w' = (1 - lr wd) w - lr u and u = m^ / (sqrt(v^) + eps), the step is w' - w = -lr (wd w' + u) / (1 - lr wd)
    (decoupled weight decay: arXiv 1711.05101, algorithm 2).
    """
    first, second = (1 - beta**updates for beta in optim.betas)
    pieces = zip(*(state[key].split(_CHUNK_ELEMENTS) for key in ("weight", "exp_avg", "exp_avg_sq")), strict=True)
    squares = [
        squared_norm((exp_avg / first) / ((exp_avg_sq / second).sqrt_() + optim.eps) + weight_decay * weight)
        for weight, exp_avg, exp_avg_sq in pieces
    ]
    return torch.stack(squares).sum() * (lr / (1 - lr * weight_decay)) ** 2


OPTIMIZERS = {
    optimizer.facts.name: optimizer
    for optimizer in (Optimizer(FACTS["adamw"], _build_adamw, _new_adamw_state, _squared_adamw_update),)
}
