"""The metrics of a validation split, for a run's own evaluations and for a checkpoint judged later."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from train.observe.accumulator import Accumulator
from train.ranks.distributed import World
from train.tasks.task import Task


def validation_means(
    task: Task,
    model: nn.Module,
    chunks: Sequence[np.ndarray],
    *,
    world: World,
    step: int = 0,
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Return the means over a validation split, shared evenly among the ranks; None if stopped meanwhile.

    Every rank makes the same number of forward passes, as ZeRO-3 needs; a surplus pass counts for nothing.

    Args:
        task: Whose samples and metrics.
        model: In eval mode.
        chunks: Sample ids of each pass, over all ranks.
        world: This rank's place.
        step: For what the task draws.
        is_stopped: Asked before every pass; all ranks get the same answer.
    """
    means = Accumulator()
    with torch.no_grad():
        for index in range(world.rank, math.ceil(len(chunks) / world.size) * world.size, world.size):
            if is_stopped():
                return None
            counted = index < len(chunks)
            batch = task.batch(chunks[index if counted else -1], split="validation", step=step)
            sums = task.evaluate(model, {key: value.to(world.device) for key, value in batch.items()})
            means.add(sums if counted else {name: (value * 0, weight * 0) for name, (value, weight) in sums.items()})
    return means.means()


def validation_chunks(samples: int, *, size: int, ranks: int) -> list[np.ndarray]:
    """Return the ids 0 to `samples` in chunks: `size` each, and one each for those that make no round of full ones.

    Of `ranks` chunks after each other all have one length: a task that passes each sample by itself makes as many
    passes on every rank.
    """
    whole = samples - samples % (size * ranks)
    full = [np.arange(first, first + size) for first in range(0, whole, size)]
    return [*full, *(np.arange(i, i + 1) for i in range(whole, samples))]
