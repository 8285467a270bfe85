"""Submission to a SLURM cluster: `python -m launch slurm CONFIG [key=value ...] --cluster FILE [--dry-run]`.

Errors surface here, on the login node, rather than in the queue. The run folder keeps the code, configuration and
script of each submission in submitted/001, 002, ..., and the job's output in logs/.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launch.check import CheckFailedError, check
from launch.slurm import cluster, script, snapshot
from launch.slurm.times import duration
from train.config.batch import check_world_size
from train.config.errors import ConfigError
from train.config.facts.run_layout import is_finished
from train.config.load import load, to_yaml
from train.config.resume import refuse_another_run
from train.config.run import RunConfig


class SlurmError(RuntimeError):
    """A SLURM command failed."""


class Submission(NamedTuple):
    """A submitted job, or one that a dry run has prepared."""

    job: str | None  # None after a dry run
    text: str
    log: Path


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code.

    Raises:
        ConfigError: The arguments or the files are invalid.
    """
    parser = argparse.ArgumentParser(
        prog="python -m launch slurm",
        description="Check a run, take a snapshot of the code, write a batch script and submit it.",
    )
    parser.add_argument("config", help="YAML file, e.g. configs/language_model/400m.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to override, e.g. optim.lr=3e-4")
    parser.add_argument("--cluster", required=True, help="YAML file, e.g. configs/cluster/example.yaml")
    parser.add_argument("--dry-run", action="store_true", help="check and print the script, but submit nothing")
    options = parser.parse_intermixed_args(arguments)
    config, where = load_both(options.config, options.overrides, options.cluster)
    run = run_folder(config)
    if is_finished(run, config.steps, keeps_weights=config.checkpoint.weights_every is not None):
        print(f"{run} is finished: the checkpoint of step {config.steps} of {config.steps} is saved")
        return 0
    try:
        refuse(config)
        check_here([options.config, *options.overrides], where)
        about = shlex.join(["python", "-m", "launch", "slurm", *(word for word in arguments if word != "--dry-run")])
        done = submit([config], where, folder=run, name=config.name, about=about, dry_run=options.dry_run)
    except (SlurmError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(done.text if done.job is None else next_commands(done, where))
    return 0


def load_both(config: str, overrides: Sequence[str], file: str) -> tuple[RunConfig, cluster.ClusterConfig]:
    """Load a run's and a cluster's configuration and check that they go together.

    Raises:
        ConfigError: Either is invalid or they do not go together; all faults of both are reported.
    """
    faults: list[str] = []
    run = where = None
    try:
        run = load(config, overrides)
    except ConfigError as error:
        faults += error.faults
    try:
        where = cluster.load(file)
    except ConfigError as error:
        faults += error.faults
    if run is None or where is None:
        raise ConfigError(faults)
    try:
        check_world_size(run, where.nodes * where.ranks)
    except ConfigError as error:
        shape = f"nodes: {where.nodes} with {where.ranks} ranks each"
        raise ConfigError([f"{file}: {shape}: {fault}" for fault in error.faults]) from None
    return run, where


def run_folder(config: RunConfig) -> Path:
    """Return the absolute path of a run folder: the job may start in another directory."""
    return config.folder.absolute()


def refuse(config: RunConfig) -> None:
    """Refuse a run folder that holds another run or is in use by a live job.

    Raises:
        ConfigError: The folder holds another run, or one of its jobs is pending or running.
        SlurmError: The state of its last job is unknown.
    """
    run = run_folder(config)
    refuse_another_run(run, config)
    path = run / "logs" / "job.json"
    if not path.exists():
        return
    try:
        job = str(json.loads(path.read_text())["job_id"])
    except (ValueError, KeyError, TypeError):
        raise SlurmError(f"{path}: is damaged; delete it if no job uses this folder (see squeue --me)") from None
    state = job_state(job)
    if state is not None:
        raise ConfigError(
            [
                f"{run}: job {job} uses this folder ({state.lower()}); wait for it, cancel it with `scancel {job}`, or "
                "choose another name (name=...)"
            ]
        )


def job_state(job: str) -> str | None:
    """Return the state of a pending, running or completing job, or None if it is over.

    Raises:
        SlurmError: squeue fails.
    """
    try:
        listing = _slurm(["squeue", "--noheader", f"--jobs={job}", "--format=%T"])
    except SlurmError as error:
        if "invalid job id" in str(error).lower():
            return None
        raise
    return listing.splitlines()[0].strip() if listing.strip() else None


def check_here(arguments: Sequence[str], where: cluster.ClusterConfig) -> None:
    """Run `python -m train --check`, which checks configuration, data, tokenizer and shapes.

    Raises:
        ConfigError: The check reports a fault.
        SlurmError: The check itself fails.
    """
    python = str(Path(where.venv).expanduser() / "bin" / "python") if where.venv else sys.executable
    if where.container and importlib.util.find_spec("torch") is None:
        print("torch is not installed here: the job itself will check data, tokenizer and shapes")
        return
    try:
        check(arguments, python=python)
    except CheckFailedError as error:
        raise SlurmError(str(error)) from None


def submit(
    configs: Sequence[RunConfig],
    where: cluster.ClusterConfig,
    *,
    folder: Path,
    name: str,
    about: str,
    array: bool = False,
    at_once: int | None = None,
    dry_run: bool = False,
) -> Submission:
    """Save code and configurations, write the batch script and submit it with sbatch.

    Args:
        configs: One run, or the members of an array.
        where: Cluster to submit to.
        folder: Absolute folder for code, script and logs: the run's or the sweep's.
        name: Name of the job.
        about: The command that the user typed.
        array: Whether to submit an array with one task per run.
        at_once: Limit on concurrent array tasks; None: no limit.
        dry_run: Only prepare the script: write and submit nothing.

    Raises:
        ConfigError: A path cannot be written into a script.
        SlurmError: sbatch failed.
    """
    submission = next_submission(folder)
    files = [submission / ("config.yaml" if not array else f"config-{number}.yaml") for number in range(len(configs))]
    members = [script.Member(config=file, run=run_folder(config)) for file, config in zip(files, configs, strict=True)]
    log = folder / "logs" / ("slurm-%A_%a.log" if array else "slurm-%j.log")
    batch = script.Batch(
        name=name,
        about=" ".join(about.split()),
        code=submission / "code",
        work=Path.cwd(),
        log=log,
        members=tuple(members),
        array=array,
        at_once=at_once,
    )
    text = script.script(batch, where, python=sys.executable)
    if dry_run:
        return Submission(None, text, log)
    submission.mkdir(parents=True)
    snapshot.take(batch.code)
    for file, config in zip(files, configs, strict=True):
        file.write_text(to_yaml(config))
    log.parent.mkdir(exist_ok=True)
    (submission / "job.sh").write_text(text)
    try:
        job = _slurm(["sbatch", "--parsable", str(submission / "job.sh")]).strip().split(";")[0]
    except SlurmError:
        shutil.rmtree(submission)  # no job will use it
        raise
    for number, member in enumerate(members):
        _record_job(member.run, f"{job}_{number}" if array else job, submission / "job.sh")
    return Submission(job, text, Path(str(log).replace("%j", job).replace("%A_%a", f"{job}_*")))


def next_submission(folder: Path) -> Path:
    """Return a new folder for a submission, submitted/001, 002, ...: earlier jobs may still use theirs."""
    submissions = folder / "submitted"
    numbers = (
        [int(path.name) for path in submissions.iterdir() if path.name.isdecimal()] if submissions.is_dir() else []
    )
    return submissions / f"{max(numbers, default=0) + 1:03d}"


def next_commands(done: Submission, where: cluster.ClusterConfig) -> str:
    """Return a summary of a submitted job and the commands to follow, query and cancel it."""
    shape = f"{where.nodes} node{'s' * (where.nodes > 1)} with {where.ranks} rank{'s' * (where.ranks > 1)} each"
    path = done.log.relative_to(Path.cwd()) if done.log.is_relative_to(Path.cwd()) else done.log
    log = f"{shlex.quote(str(path.parent))}/{path.name}"  # unquoted: an array's name has a * for the shell to expand
    return "\n".join(
        [
            f"job {done.job}: {shape}, time limit {duration(where.seconds)} per start",
            f"follow      tail -F {log}",
            f"status      squeue --jobs={done.job}",
            f"cancel      scancel {done.job}",
        ]
    )


def _record_job(run: Path, job: str, script_file: Path) -> None:
    """Write logs/job.json, which names the job that uses the folder."""
    record = {"job_id": job, "submitted": datetime.datetime.now().astimezone().isoformat(), "script": str(script_file)}
    (run / "logs").mkdir(parents=True, exist_ok=True)
    (run / "logs" / "job.json").write_text(json.dumps(record, indent=1) + "\n")


def _slurm(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]}: no such command; submit from a login node, or print the script with --dry-run"
        ) from None
    if done.returncode != 0:
        raise SlurmError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
