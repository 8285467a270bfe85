"""Learning-rate schedules as pure functions of the step, and the optimizer over named parameter groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from analysis.measure.gradients import squared_norm
from train.config.run import OptimConfig
from train.tasks.task import ParameterGroup


def learning_rate(step: int, *, optim: OptimConfig, steps: int) -> float:
    """Return the learning rate of the `step`-th optimizer step (from 1), a pure function of its arguments.

    Warm-up is linear from 0 (step 0, which is never taken) to the peak, reached at step `warmup`. `cosine` and
    `linear` then fall to `final_lr_fraction` of the peak at the last step; `warmup_stable_decay` holds the peak and
    falls linearly over the last `decay` steps (Hu et al. 2024, arXiv 2404.06395); `step` multiplies it by
    `decay_factor` after every `decay_every` steps, warm-up included; `constant` holds it.
    """
    warmup = as_steps(optim.warmup, steps)
    if step < warmup:
        return optim.lr * step / warmup
    floor = optim.final_lr_fraction
    match optim.schedule:
        case "constant":
            return optim.lr
        case "cosine":
            progress = _progress(step, start=warmup, end=steps)
            return optim.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
        case "linear":
            return optim.lr * (1 - (1 - floor) * _progress(step, start=warmup, end=steps))
        case "step":
            assert optim.decay_every is not None and optim.decay_factor is not None  # noqa: PT018 (train.config.rules)
            return optim.lr * optim.decay_factor ** ((step - 1) // optim.decay_every)
        case "warmup_stable_decay":
            decay = as_steps(0.2 if optim.decay is None else optim.decay, steps)
            return optim.lr * (1 - (1 - floor) * _progress(step, start=steps - decay, end=steps))


def as_steps(span: float | int, steps: int) -> int:
    """Return a span given as a fraction of the run (a float) or as steps (an int), in steps."""
    return round(span * steps) if isinstance(span, float) else span


def _progress(step: int, *, start: int, end: int) -> float:
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))


def build_optimizer(groups: Sequence[ParameterGroup], *, optim: OptimConfig) -> torch.optim.Optimizer:
    """Return torch's fused AdamW (one kernel per flat partition) over the groups; the loop sets the rate each step."""
    described = [
        {"params": list(group.parameters.values()), "weight_decay": group.weight_decay, "name": group.name}
        for group in groups
        if group.parameters
    ]
    return torch.optim.AdamW(described, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


_CHUNK_ELEMENTS = 2**24  # of a weight, at a time: the update is never there as a whole


def squared_update(
    state: Mapping[str, Tensor],
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    updates: int,
) -> Tensor:
    """Return the squared norm of what AdamW's latest step added to a weight, () fp64, from what the step left.

    With w' = (1 - lr wd) w - lr u and u = m^ / (sqrt(v^) + eps), the step is w' - w = -lr (wd w' + u) / (1 - lr wd)
    (decoupled weight decay: arXiv 1711.05101, algorithm 2).

    Args:
        state: "weight", "exp_avg" and "exp_avg_sq" after the step, (n,) each.
        lr: Learning rate of the step.
        weight_decay: Of this weight.
        betas: Of the moments.
        eps: Beside the root of the second moment.
        updates: How many steps the moments have seen, this one included.
    """
    first, second = (1 - beta**updates for beta in betas)
    pieces = zip(*(state[key].split(_CHUNK_ELEMENTS) for key in ("weight", "exp_avg", "exp_avg_sq")), strict=True)
    squares = [
        squared_norm((exp_avg / first) / ((exp_avg_sq / second).sqrt_() + eps) + weight_decay * weight)
        for weight, exp_avg, exp_avg_sq in pieces
    ]
    return torch.stack(squares).sum() * (lr / (1 - lr * weight_decay)) ** 2
