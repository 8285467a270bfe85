"""Learning-rate schedules as pure functions of the step, and the optimizer over named parameter groups."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from train.config import OptimConfig
from train.tasks.task import ParameterGroup


def learning_rate(step: int, *, optim: OptimConfig, steps: int) -> float:
    """Return the learning rate of the `step`-th optimizer step (from 1), a pure function of its arguments.

    Warm-up is linear from 0 (step 0, which is never taken) to the peak, reached at step `warmup`. `cosine` and
    `linear` then fall to `final_lr_fraction` of the peak at the last step; `warmup_stable_decay` holds the peak and
    falls linearly over the last `decay` steps (Hu et al. 2024, arXiv 2404.06395); `constant` holds it.
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
