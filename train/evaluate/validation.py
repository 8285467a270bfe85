"""Metrics of a validation split, for evaluations during a run and of saved checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from train.observe.accumulator import Accumulator
from train.ranks.distributed import World
from train.tasks.task import Batch, Sums, Task


def validation_means(
    task: Task,
    model: nn.Module,
    chunks: Sequence[np.ndarray],
    *,
    world: World,
    step: int = 0,
    is_stopped: Callable[[], bool] = lambda: False,
    evaluate: Callable[[nn.Module, Batch], Sums] | None = None,
) -> dict[str, float] | None:
    """Return the means over a validation split, divided evenly among the ranks; None if stopped meanwhile.

    Every rank makes the same number of forward passes, as ZeRO-3 requires; surplus passes get weight 0.

    Args:
        task: The task that provides samples and metrics.
        model: The model, in eval mode.
        chunks: Sample ids of each pass, over all ranks.
        world: This rank's position.
        step: The step, for anything random in the task.
        is_stopped: Called before every pass; must return the same value on all ranks.
        evaluate: Returns the sums of one batch; None for the task's own.
    """
    evaluate, means = evaluate or task.evaluate, Accumulator()
    with torch.no_grad():
        for index in range(world.rank, math.ceil(len(chunks) / world.size) * world.size, world.size):
            if is_stopped():
                return None
            counted = index < len(chunks)
            batch = task.batch(chunks[index if counted else -1], split="validation", step=step)
            sums = evaluate(model, {key: value.to(world.device) for key, value in batch.items()})
            means.add(sums if counted else {name: (value * 0, weight * 0) for name, (value, weight) in sums.items()})
    return means.means()


def validated(
    task: Task,
    model: nn.Module,
    *,
    size: int,
    evaluate: Callable[[nn.Module, Batch], Sums] | None = None,
) -> dict[str, float]:
    """Return the `validation_*` metrics of a model in this process alone, on a GPU if there is one.

    Args:
        task: The task that provides samples and metrics.
        model: The model; left in eval mode.
        size: Samples of a pass.
        evaluate: As in `validation_means`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.eval()
    nn.Module.to(model, device)
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=device)
    chunks = validation_chunks(task.validation_sets, size=size, ranks=1)
    means = validation_means(task, model, chunks, world=world, evaluate=evaluate)
    assert means is not None, "no stop can be requested here"
    return task.validation_report(means)


def validation_chunks(sets: Sequence[int], *, size: int, ranks: int) -> list[np.ndarray]:
    """Split the ids of consecutive sets into chunks of `size`, with a remainder of single-sample chunks in each set.

    Within a set, each round of `ranks` consecutive chunks has one length, so a task that processes samples one by one
    makes the same number of passes on every rank.

    Args:
        sets: Number of samples of each set; no chunk contains samples of two.
        size: Samples of a chunk.
        ranks: Number of ranks.
    """
    chunks: list[np.ndarray] = []
    first = 0
    for samples in sets:
        whole = samples - samples % (size * ranks)
        chunks += [first + np.arange(start, start + size) for start in range(0, whole, size)]
        chunks += [first + np.arange(i, i + 1) for i in range(whole, samples)]
        first += samples
    return chunks


def first_of(sets: Sequence[int], samples: int) -> list[int]:
    """Return the sizes of consecutive sets that are cut off after this many samples."""
    kept: list[int] = []
    for size in sets:
        kept.append(min(size, samples - sum(kept)))
    return kept
