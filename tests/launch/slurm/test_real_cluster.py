"""Jobs of two nodes on a real SLURM cluster: stopped, requeued, cancelled, robbed of a node; nothing is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.slurm import cluster as cluster_file
from launch.slurm import slurm
from tests.launch.slurm.slurm_cluster import NODES, SlurmCluster
from tests.tiny import tiny_file, tiny_run

TWO_NODES = "nodes: 2\ntime: 10\nsignal_seconds: 60\n"
LONG = ("steps=120", "evaluate_every=60", "checkpoint.every=1000")


@pytest.fixture
def submit(slurm_cluster: SlurmCluster, tmp_path: Path):
    """Submit a tiny run as a person does; returns the job's id."""

    def submitted(*overrides: str, where: str = TWO_NODES) -> str:
        done = launch(slurm_cluster, tmp_path, *overrides, where=where)
        assert done.returncode == 0, done.stderr
        match = re.search(r"^job (\d+):", done.stdout, re.MULTILINE)
        assert match, done.stdout
        return match[1]

    return submitted


def launch(cluster: SlurmCluster, folder: Path, *overrides: str, where: str = TWO_NODES):
    (folder / "cluster.yaml").write_text(where)
    command = [sys.executable, "-m", "launch", "slurm", str(tiny_file(folder)), *overrides]
    command += ["--cluster", str(folder / "cluster.yaml")]
    return subprocess.run(command, env=cluster.environment, capture_output=True, text=True)


def rows(run: Path, file: str) -> list[dict[str, Any]]:
    path = run / file
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in rows(run, "events.jsonl") if event["event"] == kind]


def losses(run: Path) -> dict[int, tuple[float, float, str]]:
    kept = (row for row in rows(run, "metrics.jsonl") if "loss" in row)
    return {row["step"]: (row["loss"], row["grad_norm"], row["samples_hash"]) for row in kept}


def log(run: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((run / "logs").glob("slurm-*.log")))


@pytest.mark.slow
def test_a_job_trains_on_two_nodes(slurm_cluster: SlurmCluster, submit, tmp_path: Path) -> None:
    job, run = submit(), tmp_path / "runs/tiny"
    again = launch(slurm_cluster, tmp_path)
    assert again.returncode == 2
    assert f"job {job} uses this folder" in again.stderr
    assert slurm_cluster.wait_until_over(job) == "COMPLETED", log(run)
    assert sorted(losses(run)) == list(range(1, 9))
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["world_size"], environment["threads_per_rank"]) == (2, 1)
    again = launch(slurm_cluster, tmp_path)
    assert again.returncode == 0
    assert "is finished" in again.stdout


@pytest.mark.slow
def test_a_signal_queues_the_job_again_and_the_losses_are_those_of_an_unbroken_run(
    slurm_cluster: SlurmCluster, submit, tmp_path: Path
) -> None:
    unbroken, broken = tmp_path / "runs/unbroken", tmp_path / "runs/broken"
    assert slurm_cluster.wait_until_over(submit("name=unbroken", *LONG)) == "COMPLETED", log(unbroken)
    job = submit("name=broken", *LONG)
    for stops in (1, 2):
        slurm_cluster.wait_for(lambda stops=stops: max(losses(broken), default=0) > 25 * stops)
        slurm_cluster.run("scancel", "--signal=USR1", job)
        slurm_cluster.wait_for(lambda stops=stops: len(events(broken, "resume")) == stops)
    assert slurm_cluster.wait_until_over(job) == "COMPLETED", log(broken)
    resumed = [event["step"] for event in events(broken, "resume")]
    assert len(resumed) == 2
    assert 0 < resumed[0] < resumed[1] < 120
    assert losses(broken) == losses(unbroken)
    assert "is requeued" in log(broken)


@pytest.mark.nightly
def test_a_job_goes_on_beyond_its_time_limit(slurm_cluster: SlurmCluster, submit, tmp_path: Path) -> None:
    """SLURM looks at time limits twice a minute: the signal comes 60 to 90 seconds after the start."""
    unbroken, limited = tmp_path / "runs/unbroken", tmp_path / "runs/limited"
    assert slurm_cluster.wait_until_over(submit("name=pace", "steps=40", "evaluate_every=40")) == "COMPLETED"
    pace = statistics.median(row["step_seconds"] for row in rows(tmp_path / "runs/pace", "metrics.jsonl")[5:-1])
    number = int(90 / pace)  # long enough to be stopped at least once, however busy this machine is
    steps = (f"steps={number}", f"evaluate_every={number}", "checkpoint.every=100000")
    assert slurm_cluster.wait_until_over(submit("name=unbroken", *steps)) == "COMPLETED", log(unbroken)
    job = submit("name=limited", *steps, where="nodes: 2\ntime: 4\nsignal_seconds: 150\n")
    assert slurm_cluster.wait_until_over(job) == "COMPLETED", log(limited)
    resumed = [event["step"] for event in events(limited, "resume")]
    assert resumed
    assert resumed == sorted(set(resumed))
    assert losses(limited) == losses(unbroken)


@pytest.mark.slow
def test_a_cancelled_job_saves_and_stays_cancelled(slurm_cluster: SlurmCluster, submit, tmp_path: Path) -> None:
    job, run = submit(*LONG), tmp_path / "runs/tiny"
    slurm_cluster.wait_for(lambda: max(losses(run), default=0) > 20)
    slurm_cluster.run("scancel", job)
    slurm_cluster.wait_for(lambda: slurm_cluster.run("squeue", "-h") == "")
    assert slurm_cluster.state(job).startswith("CANCELLED")
    stopped = json.loads((run / "stopped.json").read_text())
    assert (stopped["exit_code"], stopped["signal"]) == (75, "SIGTERM")
    assert (run / f"checkpoints/step_{stopped['step']:06d}").is_dir()
    assert "is requeued" not in log(run)


@pytest.mark.nightly
@pytest.mark.parametrize("node", [1, 0])
def test_a_lost_node_queues_the_job_again(slurm_cluster: SlurmCluster, submit, tmp_path: Path, node: int) -> None:
    """With the first node goes the batch script: SLURM itself notices and requeues the job."""
    unbroken, robbed = tmp_path / "runs/unbroken", tmp_path / "runs/robbed"
    settings = ("steps=150", "evaluate_every=150", "checkpoint.every=10")
    assert slurm_cluster.wait_until_over(submit("name=unbroken", *settings)) == "COMPLETED", log(unbroken)
    job = submit("name=robbed", *settings)
    slurm_cluster.wait_for(lambda: len(events(robbed, "save")) >= 2)
    lost = list(NODES)[node]
    slurm_cluster.lose_node(lost)
    try:
        slurm_cluster.wait_for(lambda: len(events(robbed, "resume")) == 1)
        assert slurm_cluster.wait_until_over(job) == "COMPLETED", log(robbed)
        assert "down" in slurm_cluster.run("sinfo", "-h", "-n", lost, "-o", "%T")
    finally:
        slurm_cluster.start_node(lost)
        slurm_cluster.wait_for(lambda: slurm_cluster.run("sinfo", "-h", "-o", "%T").split() == ["idle"])
    resumed = [event["step"] for event in events(robbed, "resume")]
    assert len(resumed) == 1
    # Whoever is faster: with the node of the batch script goes all that could be said.
    noticed = "does not respond" in log(robbed) or "SLURM itself has requeued the job" in log(robbed)
    assert noticed == (node == 1)
    assert resumed[0] >= 20
    assert losses(robbed) == losses(unbroken)


@pytest.mark.slow
def test_an_array_trains_every_member(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm_cluster.environment[name])
    configs = [tiny_run(tmp_path, f"name=member-{number}", f"seed={number}") for number in range(3)]
    where = cluster_file.ClusterConfig(time=10, signal_seconds=60)
    done = slurm.submit(configs, where, folder=tmp_path / "sweep", name="sweep", about="", array=True, at_once=2)
    slurm_cluster.wait_for(lambda: slurm_cluster.run("squeue", "-h") == "")
    for number in range(3):
        run = tmp_path / f"runs/member-{number}"
        assert sorted(losses(run)) == list(range(1, 9)), (tmp_path / "sweep/logs").glob("*")
        assert (tmp_path / f"sweep/logs/slurm-{done.job}_{number}.log").exists()


FAULTS = {  # appended to train/rank.py in the code of a submission
    "step": """
    run = _assemble(config, stop, watchdog)
    if run.world.rank == 1:
        run.task.step = _fail
    return run
""",
    "preparation": """
    if os.environ["RANK"] == "1":
        _fail()
    return _assemble(config, stop, watchdog)
""",
    "member-0": """
    if config.name == "member-0":
        _fail()
    return _assemble(config, stop, watchdog)
""",
}


def break_code(submission: Path, fault: str) -> None:
    """Let the code of a submission, which is still held, raise an error."""
    raising = '_assemble = assemble\n\ndef _fail(*_):\n    raise ValueError("bad data")\n'
    with (submission / "code/train/rank.py").open("a") as code:
        code.write(f"\n{raising}\ndef assemble(config, stop, watchdog):{FAULTS[fault]}")


def exit_codes(run: Path) -> list[int]:
    """Return the exit codes that the nodes' launchers recorded."""
    return [json.loads(path.read_text())["exit_code"] for path in sorted((run / "logs/nodes").iterdir())]


@pytest.mark.parametrize(
    "phase", [pytest.param("step", marks=pytest.mark.slow), pytest.param("preparation", marks=pytest.mark.nightly)]
)
def test_a_run_that_ends_itself_on_one_of_two_nodes_is_not_requeued(
    slurm_cluster: SlurmCluster, submit, tmp_path: Path, phase: str
) -> None:
    """The ranks of the other node lose contact, or are terminated while they prepare and report a stop."""
    job, run = submit(*LONG, where=f"{TWO_NODES}sbatch: [--hold]\n"), tmp_path / "runs/tiny"
    break_code(run / "submitted/001", phase)
    slurm_cluster.run("scontrol", "release", job)
    assert slurm_cluster.wait_until_over(job) == "FAILED"
    assert slurm_cluster.restarts(job) == 0, log(run)
    assert 1 in exit_codes(run)
    assert slurm_cluster.exit_code(job) == 1, exit_codes(run)
    assert "the run ended itself" in log(run)
    assert "ValueError: bad data" in log(run)
    assert "does not respond" not in log(run)


@pytest.mark.nightly
def test_a_rank_that_is_killed_on_a_node_that_lives_is_not_requeued(
    slurm_cluster: SlurmCluster, submit, tmp_path: Path
) -> None:
    """As when memory runs out, which a restart would only repeat."""
    job, run = submit(*LONG), tmp_path / "runs/tiny"
    slurm_cluster.wait_for(lambda: max(losses(run), default=0) > 5)
    for pid in slurm_cluster.ranks_on(list(NODES)[1]):
        os.kill(pid, signal.SIGKILL)
    assert slurm_cluster.wait_until_over(job) == "FAILED", log(run)
    assert slurm_cluster.restarts(job) == 0, log(run)
    assert slurm_cluster.exit_code(job) == 1, exit_codes(run)


def preempt(cluster: SlurmCluster) -> None:
    """Run a job for a moment that takes all nodes from jobs of lower priority."""
    options = ["--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null"]
    job = cluster.run("sbatch", "--parsable", *options, "--wrap", "sleep 1")
    assert cluster.wait_until_over(job) == "COMPLETED"


@pytest.mark.parametrize(
    "partition",
    [pytest.param("graceful", marks=pytest.mark.slow), pytest.param("graceless", marks=pytest.mark.nightly)],
)
def test_a_preempted_job_is_requeued_and_not_charged(
    slurm_cluster: SlurmCluster, submit, tmp_path: Path, partition: str
) -> None:
    where = f"{TWO_NODES}partition: {partition}\nrestarts_without_progress: 0\n"
    job, run = submit(*LONG, where=where), tmp_path / "runs/tiny"
    slurm_cluster.wait_for(lambda: max(losses(run), default=0) > 5)
    preempt(slurm_cluster)
    assert slurm_cluster.wait_until_over(job) == "COMPLETED", log(run)
    assert slurm_cluster.restarts(job) == 1, log(run)
    assert len(events(run, "resume")) == 1
    assert sorted(losses(run)) == list(range(1, 121))
    assert "preempted" in log(run)


@pytest.mark.nightly
def test_a_time_limit_that_comes_before_the_signal_has_worked_is_requeued(
    slurm_cluster: SlurmCluster, submit, tmp_path: Path
) -> None:
    """The signal comes with the limit here; SLURM then ends the whole job."""
    where, endless = "time: 1\nsignal_seconds: 1\n", ("steps=100000", "evaluate_every=100000", "log_every=1000")
    job, run = submit(*endless, "checkpoint.every=100000", where=where), tmp_path / "runs/tiny"
    slurm_cluster.wait_for(lambda: events(run, "resume"), 240)
    slurm_cluster.run("scancel", job)
    assert slurm_cluster.wait_until_over(job) == "CANCELLED"
    assert slurm_cluster.restarts(job) == 1, log(run)


@pytest.mark.nightly
def test_the_limit_on_restarts_ends_a_job_that_stops_again_and_again(
    slurm_cluster: SlurmCluster, submit, tmp_path: Path
) -> None:
    job, run = submit(*LONG, where="time: 10\nsignal_seconds: 60\nrestarts: 1\n"), tmp_path / "runs/tiny"
    for resumes in (0, 1):
        slurm_cluster.wait_for(lambda n=resumes: len(events(run, "resume")) == n and max(losses(run), default=0) > 5)
        slurm_cluster.run("scancel", "--signal=USR1", job)
        slurm_cluster.wait_for(lambda n=resumes: log(run).count("stopped early") == n + 1)
    assert slurm_cluster.wait_until_over(job) == "FAILED", log(run)
    assert slurm_cluster.restarts(job) == 1
    assert "restarted 1 times, the limit set by `restarts`" in log(run)


@pytest.mark.nightly
def test_an_array_task_that_ends_itself_stays_ended_while_another_is_requeued(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last task has the job id of the whole array: requeueing that would restart the others too."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm_cluster.environment[name])
    configs = [tiny_run(tmp_path, f"name=member-{number}", *LONG) for number in range(3)]
    where = cluster_file.ClusterConfig(time=10, signal_seconds=60, sbatch=("--hold",))
    done = slurm.submit(configs, where, folder=tmp_path / "sweep", name="sweep", about="", array=True)
    break_code(tmp_path / "sweep/submitted/001", "member-0")
    slurm_cluster.run("scontrol", "release", str(done.job))
    last = tmp_path / "runs/member-2"
    slurm_cluster.wait_for(lambda: max(losses(last), default=0) > 5)
    slurm_cluster.wait_for(lambda: slurm_cluster.state(f"{done.job}_0").startswith("FAILED"))
    slurm_cluster.run("scancel", "--signal=USR1", f"{done.job}_2")
    states = [slurm_cluster.wait_until_over(f"{done.job}_{number}") for number in range(3)]
    assert states == ["FAILED", "COMPLETED", "COMPLETED"]
    assert [slurm_cluster.restarts(f"{done.job}_{number}") for number in range(3)] == [0, 0, 1]
    assert len(events(last, "resume")) == 1
    assert [sorted(losses(tmp_path / f"runs/member-{n}"))[-1:] for n in range(3)] == [[], [120], [120]]


@pytest.mark.slow
def test_ranks_of_a_bare_srun_find_each_other_and_a_batch_script_is_alone(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    train = f"{sys.executable} -m train {tiny_file(tmp_path)} steps=3"
    lines = ["#!/bin/bash", f"srun {train} name=together && {train} name=alone"]
    (tmp_path / "job.sh").write_text("\n".join(lines) + "\n")
    output = f"--output={tmp_path}/job.log"
    job = slurm_cluster.run("sbatch", "--parsable", "-N2", "--ntasks-per-node=1", output, str(tmp_path / "job.sh"))
    assert slurm_cluster.wait_until_over(job) == "COMPLETED", (tmp_path / "job.log").read_text()
    sizes = [
        json.loads((tmp_path / f"runs/{name}/environment.json").read_text())["world_size"]
        for name in ("together", "alone")
    ]
    assert sizes == [2, 1]
