"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math

from train.config.run import DEFAULT_DECAY, DEFAULT_POLY_POWER, OptimConfig, as_steps


def learning_rate(step: int, *, optim: OptimConfig, steps: int) -> float:
    """Return the learning rate of the `step`-th optimizer step (from 1), a pure function of its arguments.

    Warm-up is linear from 0 (step 0, which is never taken) to the peak, reached at step `warmup`. `cosine` and
    `linear` then fall to `final_lr_fraction` of the peak at the last step; `warmup_stable_decay` holds the peak and
    falls linearly over the last `decay` steps (Hu et al. 2024, arXiv 2404.06395); `step` multiplies it by
    `decay_factor` after every `decay_every` steps, warm-up included; `constant` holds it.

    `poly` multiplies the peak by (1 - i / n)^`poly_power`, where i counts from 0 at the first step with the peak and n
    is the number of steps from there on (the "poly" policy of DeepLab v2, Chen et al. 2018, arXiv 1606.00915). Without
    warm-up that is (1 - (step - 1) / steps)^power. The last step has n^-power of the peak, above 0.
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
        case "poly":
            first = max(1, warmup)  # the first step with the peak
            power = DEFAULT_POLY_POWER if optim.poly_power is None else optim.poly_power
            return optim.lr * (1 - (step - first) / (steps - first + 1)) ** power
        case "warmup_stable_decay":
            decay = as_steps(DEFAULT_DECAY if optim.decay is None else optim.decay, steps)
            return optim.lr * (1 - (1 - floor) * _progress(step, start=steps - decay, end=steps))


def _progress(step: int, *, start: int, end: int) -> float:
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))
