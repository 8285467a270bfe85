"""Memory and operations that `plan` predicts for joint image filters against those of the built filter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launch.__main__ import main
from launch.plan.case import Case, case_of
from launch.plan.image_filter import NYU_SIZE, PROCEDURAL_SIZE, FilterWorkload, image_size
from launch.plan.workload import workload_of
from modeling.joint_filter.configuration_dkn import DKNConfig
from modeling.joint_filter.modeling_dkn import DKNModel
from tests.launch.plan.memory import kept_bytes, peak_bytes
from tests.launch.plan.operations import OperationCounter
from train.config.load import load
from train.config.run import RunConfig
from train.config.tasks.joint_filter import DepthUpsamplingConfig, FilterConfig
from train.data.images.procedural import DEFAULT_SIZE
from train.tasks.joint_filter.joint_filtering import absolute_error

ROOT = Path(__file__).parents[3]
CONFIGS = sorted([*(ROOT / "configs/depth_upsampling").glob("*"), *(ROOT / "configs/texture_removal").glob("*")])
QUICKSTART = str(ROOT / "configs/depth_upsampling/quickstart.yaml")
VARIANTS: list[dict[str, Any]] = [
    {},
    {"kernel_size": 5},
    {"guidance": False},
    {"residual": False},
    {"architecture": "dkn"},
    {"architecture": "dkn", "kernel_size": 7},
    {"architecture": "dkn", "guidance": False, "residual": False},
]
SIDE, BATCH = 64, 2


def planned(side: int = SIDE, **model: Any) -> tuple[FilterWorkload, Case]:
    config = load(QUICKSTART)
    assert isinstance(config.task, DepthUpsamplingConfig)
    task = replace(config.task, model=FilterConfig(**model), data=replace(config.task.data, crop=side))
    config = replace(config, task=task)
    work = workload_of(config)
    assert isinstance(work, FilterWorkload)
    return work, case_of(config, gpus=1, micro_batch_size=BATCH)


class Pass:
    """One pass of a filter over random images."""

    def __init__(self, side: int = SIDE, **model: Any) -> None:
        torch.manual_seed(0)
        self.model = DKNModel(DKNConfig(**model)).train()
        self.guidance, self.target, self.truth = (torch.rand(BATCH, n, side, side) for n in (3, 1, 1))
        self.valid = torch.ones(BATCH, 1, side, side, dtype=torch.bool)

    def loss(self) -> Tensor:
        output = self.model(self.guidance, self.target).output
        return absolute_error(output, self.truth, self.valid)


@pytest.mark.parametrize("side", [SIDE, 30])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_pass_keeps_exactly_what_is_planned(variant: dict[str, Any], side: int) -> None:
    one_pass = Pass(side, **variant)
    work, case = planned(side, **variant)
    assert kept_bytes(one_pass.model, one_pass.loss) == work.activation_bytes(case)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_peak_of_a_pass_is_met(variant: dict[str, Any]) -> None:
    """Measured, planned / real peak: 0.999 to 1.005. What is missing are padded images and gradients of weights."""
    one_pass = Pass(**variant)
    highest = peak_bytes(one_pass.loss)
    work, case = planned(**variant)
    ratio = (work.activation_bytes(case) + work.backward_bytes(case)) / highest
    assert 0.99 < ratio < 1.01


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_kernels_of_a_pass_are_about_as_many_as_planned(variant: dict[str, Any]) -> None:
    with OperationCounter() as counter:
        Pass(16, **variant).loss().backward()
    work, case = planned(16, **variant)
    assert work.launches(case) == pytest.approx(counter.operations, rel=0.1)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
@pytest.mark.parametrize("architecture", ["fdkn", "dkn"])
def test_every_filter_configuration_is_planned(
    path: Path, architecture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"task.model.architecture={architecture}"]
    assert main(["plan", str(path), *words]) == 0
    printed = capsys.readouterr().out
    for part in ("training FLOPs per image", "images/s", "Recommended: ", "In host memory", "Accuracy of the memory"):
        assert part in printed, part
    assert "tokens" not in printed
    assert "checkpointing" not in printed.split("Peak")[1]
    assert max(len(line) for line in printed.splitlines()) <= 120


def test_whole_images_have_a_known_size_or_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert PROCEDURAL_SIZE == DEFAULT_SIZE
    assert size_of(load(QUICKSTART, ["task.data.crop=null"])) == DEFAULT_SIZE
    words = ["task.data.crop=null", "task.data.sources=[{path: procedural-scenes, stop: 4, size: [32, 48]}]"]
    assert size_of(load(QUICKSTART, words)) == (32, 48)
    assert size_of(load(str(ROOT / "configs/depth_upsampling/nyu.yaml"))) == NYU_SIZE
    middlebury = str(ROOT / "configs/depth_upsampling/middlebury.yaml")
    assert size_of(load(middlebury)) == (128, 128)
    assert main(["plan", middlebury, "task.data.crop=null"]) == 2
    assert "task.data.crop: null, so the size" in capsys.readouterr().err


def size_of(config: RunConfig) -> tuple[int, int]:
    work = workload_of(config)
    assert isinstance(work, FilterWorkload)
    return image_size(work.task)[:2]
