"""A task that writes no more than it must: everything else that the loop and the commands ask has a default."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from train.data.split import Split
from train.tasks.task import Batch, Gallery, ParameterGroup, SampleCost, StepOutput, Sums, Task


class Doubling(Task):
    """Learn to double a number."""

    @property
    @override
    def num_training_samples(self) -> int:
        return 8

    @property
    @override
    def num_validation_samples(self) -> int:
        return 2

    @property
    @override
    def data_fingerprint(self) -> str:
        return "numbers"

    @override
    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(1, 1))

    @override
    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        return [ParameterGroup("all", dict(model.named_parameters()), 0.0)]

    @override
    def batch(self, sample_ids: np.ndarray, *, split: Split, step: int) -> Batch:
        return {"x": torch.from_numpy(sample_ids).float()[:, None]}

    @override
    def weight(self, batch: Batch) -> float:
        return float(len(batch["x"]))

    @override
    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        loss_sum = (model(batch["x"]) - 2 * batch["x"]).square().sum()
        weight = torch.tensor(float(len(batch["x"])))
        return StepOutput(loss_sum, weight, {"loss": (loss_sum.detach(), weight)})

    @override
    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        return self.step(model, batch).metrics


class NoGallery(Gallery):
    def image(self, name: str, pixels: Tensor) -> None:
        raise AssertionError

    def arrays(self, name: str, arrays: object) -> None:
        raise AssertionError


def test_a_task_without_its_own_members_is_refused() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Task()  # type: ignore[abstract]


def test_the_defaults_fit_any_network(tmp_path: Path) -> None:
    task = Doubling()
    model = task.outline()
    task.check()
    task.open_validation()
    assert task.prepare() == "8 training and 2 validation samples are ready (fingerprint numbers)"
    assert task.data_facts == {"training_samples": 8, "validation_samples": 2}
    assert not task.supports_bf16
    assert task.describe(model) == {}
    assert [site.name for site in task.probe_sites(model)] == ["0"]
    assert list(task.layers(model)) == []
    assert task.cost(model) == SampleCost(tokens=None, flops=None)
    assert task.validation_report({"loss": 1.0, "error": 2.0}) == {"validation_loss": 1.0, "validation_error": 2.0}
    assert "Doubling" in task.card().summary
    task.illustrate(model, NoGallery())
    task.save_assets(tmp_path)
    assert not list(tmp_path.iterdir())
