"""Torch implementations of the optimizers; their facts are in train/config/facts/optimizers.py, by the same names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from analysis.measure.gradients import squared_norm
from train.config.facts.optimizers import OPTIMIZERS as FACTS
from train.config.facts.optimizers import OptimizerFacts
from train.config.run import DEFAULT_MOMENTUM, OptimConfig
from train.tasks.task import ParameterGroup

_CHUNK_ELEMENTS = 2**24  # elements processed at a time, so that the full update is never materialized


class SquaredUpdate(Protocol):
    """Reconstructs an update from the state after the step, so that no copy of the weights is needed."""

    def __call__(
        self, state: Mapping[str, Tensor], *, lr: float, weight_decay: float, updates: int, optim: OptimConfig
    ) -> Tensor:
        """Return the squared norm of the latest update of a weight, () fp64.

        Args:
            state: "weight" and the optimizer's state after the step, (n,) each.
            lr: Learning rate of this weight in the step, its group's factor included.
            weight_decay: Weight decay of this weight.
            updates: Number of updates so far, including this one.
            optim: The optimizer's settings.
        """
        ...


@dataclass(frozen=True)
class Optimizer:
    """The operations that the engine and the probes need from an optimizer.

    Args:
        facts: Name and state tensors.
        build: Creates the torch optimizer for parameter groups.
        new_state: Returns the state for a flat fp32 tensor after a number of updates, with `facts.state` at zero.
        squared_update: See SquaredUpdate.
    """

    facts: OptimizerFacts
    build: Callable[[list[dict[str, Any]], OptimConfig], torch.optim.Optimizer]
    new_state: Callable[[Tensor, int], dict[str, Tensor]]
    squared_update: SquaredUpdate


def build_optimizer(groups: Sequence[ParameterGroup], *, optim: OptimConfig) -> torch.optim.Optimizer:
    """Return the configured optimizer for the groups; the engine sets their learning rates at each step."""
    torch_groups = [
        {
            "params": list(group.parameters.values()),
            "weight_decay": group.weight_decay,
            "lr_factor": group.lr_factor,  # torch and DeepSpeed keep keys that they do not know
            "name": group.name,
        }
        for group in groups
        if group.parameters
    ]
    return OPTIMIZERS[optim.optimizer].build(torch_groups, optim)


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


# ---------------------------------------------------------------------------------------------------------------- SGD


def _build_sgd(groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
    """Return torch's fused SGD with momentum; unfused, it copies the gradient to add the weight decay to it.

    The rate multiplies the buffer; in Caffe it multiplies the gradients that enter it, which differs while the rate
    changes. At momentum 0 torch would keep no state, so the setting starts above 0.
    """
    momentum = DEFAULT_MOMENTUM if optim.momentum is None else optim.momentum
    return torch.optim.SGD(groups, lr=optim.lr, momentum=momentum, fused=True)


def _new_sgd_state(flat: Tensor, updates: int) -> dict[str, Tensor]:
    """Return a buffer of zeros, with which the first update is that of torch without a buffer, which it starts as g.

    Both are momentum * 0 + g, as torch adds the whole gradient g (its dampening is 0).
    """
    return {"momentum_buffer": torch.zeros_like(flat, requires_grad=False)}


def _squared_sgd_update(
    state: Mapping[str, Tensor], *, lr: float, weight_decay: float, updates: int, optim: OptimConfig
) -> Tensor:
    """Scale the buffer: the step is -lr times it, and it includes the weight decay.

    With g the clipped gradient, b' = momentum b + g + wd w and w' = w - lr b' (torch.optim.SGD).
    """
    return squared_norm(state["momentum_buffer"]) * lr**2


OPTIMIZERS = {
    optimizer.facts.name: optimizer
    for optimizer in (
        Optimizer(FACTS["adamw"], _build_adamw, _new_adamw_state, _squared_adamw_update),
        Optimizer(FACTS["sgd"], _build_sgd, _new_sgd_state, _squared_sgd_update),
    )
}
