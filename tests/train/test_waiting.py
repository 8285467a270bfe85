"""Between two logs the host never waits for a value from the device.

The passes of a step run on the meta device, whose tensors have no values: whatever reads one fails, and whatever is
copied to the device from memory that is not pinned, for which a GPU makes the host wait, is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.tiny import tiny_run
from tests.tiny_filter import tiny_filter_file
from train.config.load import load
from train.loop import MicroBatch, global_weight
from train.observe.accumulator import Accumulator
from train.observe.spikes import SpikeWatch
from train.ranks.distributed import World
from train.tasks import build_task
from train.tasks.task import Task

META = torch.device("meta")
WORLD = World(rank=0, size=1, local_rank=0, local_size=1, device=META)


FROM_PYTHON = (torch.tensor, torch.as_tensor, Tensor.new_tensor)


class Copies(TorchFunctionMode):
    """Records the calls that copy tensors or Python numbers from the CPU to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.device == META:
            from_cpu = any(isinstance(tensor, Tensor) and tensor.ndim and tensor.device != META for tensor in args)
            if func in FROM_PYTHON or from_cpu:
                self.found.append(getattr(func, "__name__", str(func)))
        return result


def task_of(kind: str, folder: Path) -> Task:
    config = tiny_run(folder) if kind == "language_model" else load(str(tiny_filter_file(folder, kind)), [])
    task = build_task(config)
    task.open_data()
    return task


@pytest.mark.parametrize("kind", ["language_model", "depth_upsampling", "texture_removal"])
def test_the_passes_of_a_step_read_nothing_back_and_copy_nothing_unpinned(kind: str, tmp_path: Path) -> None:
    task = task_of(kind, tmp_path)
    model = task.build_model().to(META).train()
    ids = np.arange(2)
    batch = task.batch(ids, split="training", step=1)
    on_device = {key: value.to(META) for key, value in batch.items()}
    spikes = SpikeWatch(window=50, threshold=4.0, recent={})
    with Copies() as copies:
        means = Accumulator()
        total = global_weight([MicroBatch(ids, batch, task.weight(batch))], WORLD)
        for _ in range(2):
            output = task.step(model, on_device)
            (output.loss_sum / total).backward()
            means.add(output.metrics)
        spikes.add(1, loss=means.totals["loss"], grad_norm=torch.ones((), device=META))
    assert copies.found == []
    assert all(p.grad is not None and p.grad.device == META for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "copy",
    [
        lambda: torch.ones(2, device=META).new_tensor(1.0),
        lambda: torch.tensor(1.0, device=META),
        lambda: torch.ones(2).to(META),
    ],
)
def test_the_watch_sees_a_copy(copy: Callable[[], Tensor]) -> None:
    with Copies() as copies:
        copy()
    assert len(copies.found) == 1


def test_a_device_without_values_cannot_be_read() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(torch.ones((), device=META))
