"""Contribution of each layer: the validation loss without it, and the angle by which it turns the residual stream.

Both are measured by forward hooks. A layer that is left out still runs, and its output is replaced by its input: so
ZeRO-3 gathers the same weights in the same order as in any other pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from analysis.measure.activations import first_tensor
from analysis.measure.angular import angular_distance
from train.engine.eager import uncompiled
from train.evaluate.validation import validation_means
from train.observe.accumulator import Accumulator
from train.ranks.distributed import World
from train.tasks.task import Batch, Sums, Task


def layer_contributions(
    task: Task,
    model: nn.Module,
    chunks: Sequence[np.ndarray],
    *,
    layers: Sequence[nn.Module],
    world: World,
    step: int = 0,
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]] | None:
    """Return a row per layer: its index, `loss`, `loss_without` and `angular_distance`; None if stopped meanwhile.

    `loss` is that of all layers, and equal in every row. `angular_distance` is between a token's input and output of
    the layer (Gromov et al. 2024, arXiv 2403.17887, n = 1), the mean over all tokens. All passes run eagerly.

    Args:
        task: The task that provides samples and the loss.
        model: The model, in eval mode.
        chunks: Sample ids of each pass, over all ranks.
        layers: The layers, parts of the model.
        world: This rank's position.
        step: The step, for anything random in the task.
        is_stopped: Called before every pass; must return the same value on all ranks.
    """
    means = partial(validation_means, task, model, chunks, world=world, step=step, is_stopped=is_stopped)
    rows: list[dict[str, Any]] = []
    with uncompiled(model):
        whole = means(evaluate=partial(_evaluate_with_distances, task, layers))
        if whole is None:
            return None
        for index, layer in enumerate(layers):
            with left_out(layer):
                without = means()
            if without is None:
                return None
            losses = {"loss": whole["loss"], "loss_without": without["loss"]}
            rows.append({"layer": index, **losses, "angular_distance": whole[_distance(index)]})
    return rows


@contextmanager
def left_out(layer: nn.Module) -> Iterator[None]:
    """Replace the layer's output by its input."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        return first_tensor((args, kwargs))

    handle = layer.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _evaluate_with_distances(task: Task, layers: Sequence[nn.Module], model: nn.Module, batch: Batch) -> Sums:
    """Evaluate a batch, and add the angular distance of each layer."""
    distances = Accumulator()

    def hook_of(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            distances.add({_distance(index): angular_distance(first_tensor((args, kwargs)), output)})

        return hook

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.callback(layer.register_forward_hook(hook_of(index), with_kwargs=True).remove)
        sums = task.evaluate(model, batch)
    return sums | {name: (total[0], total[1]) for name, total in distances.totals.items()}


def _distance(index: int) -> str:
    return f"angular_distance.{index}"


def layer_faults(every: int | None, task: Task, model: nn.Module) -> list[str]:
    """Return why layers cannot be measured at an interval: the task does not say which they are."""
    if every is None or task.layers(model):
        return []
    return ["probes.layers_every: has no effect because the networks of this task have no stack of layers; write null"]
