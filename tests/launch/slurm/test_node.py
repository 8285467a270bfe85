"""A node of a SLURM job finds the others, or says why it cannot; it never trains alone by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import ranks
from launch.slurm import node
from launch.slurm.evidence import read_nodes
from tests.tiny import tiny_file
from train.config.errors import ConfigError

STEP = {"SLURM_JOB_ID": "123456", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "1"}


def test_nodes_meet_at_the_first_one_at_a_port_of_the_job() -> None:
    nodes = node.job_nodes("gpu01", {**STEP, "SLURM_RESTART_COUNT": "2"})
    assert nodes == ranks.Nodes(size=2, head="gpu01", port=23_456, job="123456-2", is_head=False)
    assert "--rdzv-endpoint=gpu01:23456" in ranks.training_command(["x.yaml"], ranks=8, nodes=nodes)


def test_one_node_needs_no_meeting() -> None:
    assert node.job_nodes("gpu01", {**STEP, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize(
    ("head", "environment"),
    [
        ("gpu01", {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}),  # a batch script without srun
        ("", STEP),
        ("gpu01", {**STEP, "SLURM_STEP_NUM_TASKS": "16"}),
    ],
)
def test_a_node_that_can_not_know_the_others_starts_nothing(head: str, environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        node.job_nodes(head, environment)


def test_outside_of_slurm_it_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert node.main([str(tiny_file(tmp_path)), "--head", "x", "--ranks", "1"], {}) == 2
    assert "not in a step of a SLURM job" in capsys.readouterr().err


def test_the_exit_code_is_recorded_for_the_batch_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "run", lambda *_, **__: 75)
    environment = {**STEP, "SLURMD_NODENAME": "gpu02", "SLURM_ARRAY_JOB_ID": "123400", "SLURM_ARRAY_TASK_ID": "7"}
    assert node.main([str(tiny_file(tmp_path)), "--head", "gpu01", "--ranks", "1"], environment) == 75
    ended = read_nodes(tmp_path / "runs/tiny", ["gpu01", "gpu02"], start="123400_7-0")
    assert {name: ending.code for name, ending in ended.items()} == {"gpu02": 75}
    assert read_nodes(tmp_path / "runs/tiny", ["gpu02"], start="123400_7-1") == {}
