"""A sweep on a cluster: one array, a task per member that is not finished; SLURM's commands are played by scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from launch import __main__ as entry
from launch.sweep.members import members
from launch.sweep.sweep_file import read_sweep
from tests.checkpoints import write_checkpoint
from tests.launch.slurm.test_slurm import CLUSTER, played
from tests.tiny import tiny_file

__all__ = ["played"]


def sweep(folder: Path, *words: str, cluster: str = CLUSTER) -> list[str]:
    (folder / "cluster.yaml").write_text(cluster)
    described = {"name": "lr", "config": str(tiny_file(folder)), "grid": {"optim.lr": [0.001, 0.003, 0.01]}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(described))
    return ["sweep", str(folder / "sweep.yaml"), "--cluster", str(folder / "cluster.yaml"), *words]


def test_what_is_not_finished_becomes_one_array(
    tmp_path: Path, played: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = sweep(tmp_path, "--parallel", "2")
    first, done, last = members(read_sweep(words[1]))
    write_checkpoint(done.folder, 8)
    assert entry.main(words) == 0
    folder = tmp_path / "runs/lr"
    script = (folder / "submitted/001/job.sh").read_text()
    assert "#SBATCH --array=0-1%2" in script
    jobs = {path.parents[1].name: json.loads(path.read_text())["job_id"] for path in folder.glob("*/logs/job.json")}
    assert jobs == {first.name: "77_0", last.name: "77_1"}
    said = capsys.readouterr().out
    assert "lr: 2 tasks, 1 already finished" in said
    assert "scancel 77" in said


def test_a_dry_run_writes_nothing(tmp_path: Path, played: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(sweep(tmp_path, "--dry-run")) == 0
    assert "#SBATCH --array=0-2" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert not (played / "sbatch.given").exists()


def test_a_cluster_that_does_not_fit_is_refused_once(
    tmp_path: Path, played: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main(sweep(tmp_path, cluster=CLUSTER.replace("nodes: 2", "nodes: 3"))) == 2
    said = capsys.readouterr().err
    assert said.count("global_batch_size") == 2  # one fault, which names the key twice
    assert not (played / "sbatch.given").exists()
