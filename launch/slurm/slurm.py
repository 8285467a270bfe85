"""`python -m launch slurm CONFIG [key=value ...] --cluster FILE [--dry-run]`: submit a run to a SLURM cluster.

What can be wrong is found here, on the login node, not in the queue. The run folder keeps, under submitted/001, the
code, the configuration and the script of each submission, and in logs/ what the job said.
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

from launch.slurm import cluster, script, snapshot
from train.config.batch import check_world_size
from train.config.errors import ConfigError
from train.config.facts.run_layout import is_finished
from train.config.load import load, to_yaml
from train.config.resume import refuse_another_run
from train.config.run import RunConfig


class SlurmError(RuntimeError):
    """SLURM did not do what it was asked."""


class Submission(NamedTuple):
    """A job as it was handed over."""

    job: str | None  # None: it was shown only
    text: str
    log: Path


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code.

    Raises:
        ConfigError: What was given is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m launch slurm", description="Check a run, keep its code, write its batch script and submit it."
    )
    parser.add_argument("config", help="a YAML file, like configs/language_model/400m.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, like optim.lr=3e-4")
    parser.add_argument("--cluster", required=True, help="a YAML file, like configs/cluster/example.yaml")
    parser.add_argument("--dry-run", action="store_true", help="check, print the script, submit nothing")
    given = parser.parse_intermixed_args(arguments)
    config, where = load_both(given.config, given.overrides, given.cluster)
    run = run_folder(config)
    if is_finished(run, config.steps):
        print(f"{run} is finished: step {config.steps} of {config.steps} is saved")
        return 0
    try:
        refuse(config)
        check_here([given.config, *given.overrides], where)
        about = shlex.join(["python", "-m", "launch", "slurm", *(word for word in arguments if word != "--dry-run")])
        done = submit([config], where, folder=run, name=config.name, about=about, dry_run=given.dry_run)
    except (SlurmError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(done.text if done.job is None else followed(done, where))
    return 0


def load_both(config: str, overrides: Sequence[str], file: str) -> tuple[RunConfig, cluster.ClusterConfig]:
    """Read a run and a cluster and see that they fit.

    Raises:
        ConfigError: With the faults of both.
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
    """Return where a run lives, absolute: the job may begin elsewhere."""
    return config.folder.absolute()


def refuse(config: RunConfig) -> None:
    """Let a run folder be used by one live job at a time, and only by the run that began in it.

    Raises:
        ConfigError: Another run's folder, or a job of it waits or runs.
        SlurmError: Whether that job lives can not be told.
    """
    run = run_folder(config)
    refuse_another_run(run, config)
    path = run / "logs" / "job.json"
    if not path.exists():
        return
    try:
        job = str(json.loads(path.read_text())["job_id"])
    except (ValueError, KeyError, TypeError):
        raise SlurmError(f"{path}: is damaged; delete it if no job uses this folder (squeue --me)") from None
    state = job_state(job)
    if state is not None:
        raise ConfigError(
            [
                f"{run}: job {job} uses this folder ({state.lower()}); wait for it, end it with `scancel {job}`, or "
                "choose another name (name=...)"
            ]
        )


def job_state(job: str) -> str | None:
    """Return the state of a job that waits, runs or ends; None for one that is over.

    Raises:
        SlurmError: squeue does not answer.
    """
    try:
        found = _slurm(["squeue", "--noheader", f"--jobs={job}", "--format=%T"])
    except SlurmError as error:
        if "invalid job id" in str(error).lower():
            return None
        raise
    return found.splitlines()[0].strip() if found.strip() else None


def check_here(arguments: Sequence[str], where: cluster.ClusterConfig) -> None:
    """Let `python -m train --check` look at configuration, data, tokenizer and shapes.

    Raises:
        ConfigError: It found a fault.
        SlurmError: It failed otherwise.
    """
    python = str(Path(where.venv).expanduser() / "bin" / "python") if where.venv else sys.executable
    if where.container and importlib.util.find_spec("torch") is None:
        print("data, tokenizer and shapes are not checked: this machine has no torch; the job checks them")
        return
    command = [python, "-m", "train", *arguments, "--check"]
    done = subprocess.run(command, stderr=subprocess.PIPE, stdout=sys.stderr, text=True, check=False)
    if done.returncode == 2:
        raise ConfigError(done.stderr.strip().splitlines())
    if done.returncode != 0:
        raise SlurmError(f"python -m train --check failed:\n{done.stderr.strip()}")


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
    """Keep code and configurations, write the script and hand it to sbatch.

    Args:
        configs: One run, or the members of an array.
        where: The cluster.
        folder: Where code, script and logs are kept, absolute: the run's folder or the sweep's.
        name: Of the job.
        about: What a person typed.
        array: Whether to make an array, with a task per run.
        at_once: Tasks of the array that run at a time; None: no limit.
        dry_run: Write and submit nothing.

    Raises:
        ConfigError: A path that no script can hold.
        SlurmError: sbatch refused.
    """
    kept = next_submission(folder)
    files = [kept / ("config.yaml" if not array else f"config-{number}.yaml") for number in range(len(configs))]
    members = [script.Member(config=file, run=run_folder(config)) for file, config in zip(files, configs, strict=True)]
    log = folder / "logs" / ("slurm-%A_%a.log" if array else "slurm-%j.log")
    asked = script.Batch(
        name=name,
        about=" ".join(about.split()),
        code=kept / "code",
        work=Path.cwd(),
        log=log,
        members=tuple(members),
        array=array,
        at_once=at_once,
    )
    text = script.script(asked, where, python=sys.executable)
    if dry_run:
        return Submission(None, text, log)
    kept.mkdir(parents=True)
    snapshot.take(asked.code)
    for file, config in zip(files, configs, strict=True):
        file.write_text(to_yaml(config))
    log.parent.mkdir(exist_ok=True)
    (kept / "job.sh").write_text(text)
    try:
        job = _slurm(["sbatch", "--parsable", str(kept / "job.sh")]).strip().split(";")[0]
    except SlurmError:
        shutil.rmtree(kept)  # it is nobody's
        raise
    for number, member in enumerate(members):
        _note(member.run, f"{job}_{number}" if array else job, kept / "job.sh")
    return Submission(job, text, Path(str(log).replace("%j", job).replace("%A_%a", f"{job}_*")))


def next_submission(folder: Path) -> Path:
    """Return the folder of the next submission: submitted/001, then 002, beside what earlier jobs still use."""
    made = folder / "submitted"
    numbers = [int(path.name) for path in made.iterdir() if path.name.isdecimal()] if made.is_dir() else []
    return made / f"{max(numbers, default=0) + 1:03d}"


def followed(done: Submission, where: cluster.ClusterConfig) -> str:
    """Return what to tell after a submission."""
    shape = f"{where.nodes} node{'s' * (where.nodes > 1)} with {where.ranks} rank{'s' * (where.ranks > 1)} each"
    path = done.log.relative_to(Path.cwd()) if done.log.is_relative_to(Path.cwd()) else done.log
    log = f"{shlex.quote(str(path.parent))}/{path.name}"  # an array's name has a *, for the shell
    return "\n".join(
        [
            f"job {done.job}: {shape}, {duration(where.seconds)} at a time",
            f"follow it   tail -F {log}",
            f"its state   squeue --jobs={done.job}",
            f"end it      scancel {done.job}",
        ]
    )


def duration(seconds: int) -> str:
    """Return a time limit as SLURM shows it: 1-02:03:04, or 02:03:04 below a day."""
    days, rest = divmod(seconds, 86_400)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def _note(run: Path, job: str, made: Path) -> None:
    """Write logs/job.json: which job uses the folder."""
    noted = {"job_id": job, "submitted": datetime.datetime.now().astimezone().isoformat(), "script": str(made)}
    (run / "logs").mkdir(parents=True, exist_ok=True)
    (run / "logs" / "job.json").write_text(json.dumps(noted, indent=1) + "\n")


def _slurm(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]}: no such command; submit on a login node of a cluster, or read the script with --dry-run"
        ) from None
    if done.returncode != 0:
        raise SlurmError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
