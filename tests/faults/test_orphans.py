"""SIGKILL for what started the ranks, whatever it is: they save a checkpoint and end, and the same command resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.processes import (
    HANG_SECONDS,
    ROOT,
    descendants,
    losses,
    rank_processes,
    still_there,
    wait_until,
)
from tests.tiny import tiny_file

SETTINGS = ["steps=2000", "checkpoint.every=1000", "evaluate_every=1000", "log_every=1", "engine.threads=1"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "train"]
SLURM_STEP = {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_ID": "17", "SLURM_NODEID": "0"}
LAUNCHERS = {
    "a user's torchrun": TORCHRUN,
    "a node's launcher": ["-m", "launch.slurm.node", "--head", "localhost", "--ranks", "2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_end_with_their_launcher(tmp_path: Path, launcher: str) -> None:
    path, run = tiny_file(tmp_path), tmp_path / "runs/tiny"
    arguments = [str(path), *SETTINGS]
    if launcher == "a node's launcher":  # it takes a configuration alone
        path.write_text(path.read_text().replace("steps: 8", "steps: 2000").replace("every: 3", "every: 1000"))
        arguments = [str(path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **SLURM_STEP}
    command = [sys.executable, *LAUNCHERS[launcher], *arguments]
    everyone: list[int] = []
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE)
    try:
        wait_until(lambda: len(losses(run)) > 3 or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        everyone = [process.pid, *descendants(process.pid)]
        assert len(rank_processes(process.pid)) == 2
        os.kill(process.pid, signal.SIGKILL)
        assert still_there(everyone, seconds=45) == []
    finally:
        for pid in still_there(everyone, seconds=0):
            os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=HANG_SECONDS)
    stopped = json.loads((run / "stopped.json").read_text())
    assert (run / f"checkpoints/step_{stopped['step']:06d}/manifest.json").exists()
    assert not (run / "lock").exists()
