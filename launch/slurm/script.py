"""Batch script of a SLURM job: a single file that a user can read, edit and resubmit."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.slurm.cluster import ClusterConfig
from train.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a job: its configuration file and run folder."""

    config: Path
    run: Path


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Contents of a job. All paths are absolute and visible on every node."""

    name: str
    about: str  # the command that the user typed
    code: Path  # snapshot of the code
    work: Path  # working directory: relative paths in the configurations start here
    log: Path  # contains SLURM's %j, or %A_%a
    members: tuple[Member, ...]
    array: bool = False
    at_once: int | None = None  # limit on concurrent array tasks; None: no limit

    def __post_init__(self) -> None:
        assert self.members
        assert self.array or len(self.members) == 1


def script(batch: Batch, cluster: ClusterConfig, *, python: str) -> str:
    """Return the batch script.

    Args:
        batch: Contents of the job.
        cluster: Resources to request.
        python: Interpreter to use if the cluster file has neither a venv nor a container.

    Raises:
        ConfigError: A path cannot be written into a script or a mount.
    """
    _refuse_odd_paths(batch, cluster)
    lines = [
        "#!/bin/bash -l",
        *_directives(batch, cluster),
        "",
        f"# {batch.about}",
        *_members(batch),
        "",
        f"cd {_quoted(batch.work)} || exit 1",
        *_environment(batch, cluster, python),
        "",
        *_before(cluster),
        "",
        *_ranks(batch, cluster),
        *_after(),
    ]
    return "\n".join(lines) + "\n"


def _directives(batch: Batch, cluster: ClusterConfig) -> Iterator[str]:
    directives = {
        "job-name": batch.name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "array": _array(batch),
        "nodes": cluster.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": cluster.gpus_per_node or None,
        "cpus-per-task": cluster.cpus_per_task,
        "mem": cluster.memory,
        "time": cluster.time,
        "output": _escaped(batch.log),
        "open-mode": "append",
        "export": "NONE",  # keep the login shell's environment out, tokens above all
        "signal": f"USR1@{cluster.signal_seconds}",
    }
    for name, value in directives.items():
        if value is not None:
            yield f"#SBATCH --{name}={_quoted(value)}"
    yield "#SBATCH --requeue"
    yield from (f"#SBATCH {line}" for line in cluster.sbatch)


def _array(batch: Batch) -> str | None:
    if not batch.array:
        return None
    return f"0-{len(batch.members) - 1}" + (f"%{batch.at_once}" if batch.at_once else "")


def _escaped(log: Path) -> str:
    """Double each % in the folder's path; those in the file name are SLURM's placeholders."""
    return f"{str(log.parent).replace('%', '%%')}/{log.name}"


def _members(batch: Batch) -> Iterator[str]:
    if not batch.array:
        yield f"config={_quoted(batch.members[0].config)}"
        yield f"run={_quoted(batch.members[0].run)}"
        return
    for name, paths in {
        "configs": [member.config for member in batch.members],
        "runs": [member.run for member in batch.members],
    }.items():
        yield f"{name}=("
        yield from (f"    {_quoted(path)}" for path in paths)
        yield ")"
    yield "config=${configs[$SLURM_ARRAY_TASK_ID]}; run=${runs[$SLURM_ARRAY_TASK_ID]}"


def _environment(batch: Batch, cluster: ClusterConfig, python: str) -> Iterator[str]:
    if cluster.modules:
        yield "module purge"
        yield f"module load {_joined(cluster.modules)} || exit 1"
    yield from (f"export {name}={_quoted(value)}" for name, value in cluster.environment.items())
    yield f"export PYTHONPATH={_quoted(batch.code)} PYTHONSAFEPATH=1    # the code as of submission"
    yield f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={cluster.signal_seconds}    # seconds to save; torchrun allows 30"
    if cluster.venv is not None:
        yield f"source {_quoted(Path(cluster.venv).expanduser().absolute() / 'bin' / 'activate')} || exit 1"
    yield f"python={_quoted('python3' if cluster.container else 'python' if cluster.venv else python)}"


def _before(cluster: ClusterConfig) -> Iterator[str]:
    yield 'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
    yield '[ -n "$head" ] || { echo "SLURM did not name the nodes of the job" >&2; exit 1; }'
    limits = {"restarts": cluster.restarts, "restarts-without-progress": cluster.restarts_without_progress}
    options = (f"--{name}={limit}" for name, limit in limits.items() if limit is not None)
    yield f"limits=({' '.join(options)})"
    yield '"$python" -m launch.slurm.restart start "$run" "${limits[@]}" || exit 1'
    yield "trap : TERM    # cancelled, preempted or out of time: the ranks save, then the last line asks SLURM which"


def _ranks(batch: Batch, cluster: ClusterConfig) -> Iterator[str]:
    step = [
        *("srun", f"--nodes={cluster.nodes}", f"--ntasks={cluster.nodes}", "--ntasks-per-node=1", "--export=ALL"),
        *([f"--cpus-per-task={cluster.cpus_per_task}"] if cluster.cpus_per_task else []),
        *("--kill-on-bad-exit=1", "--wait=60"),
    ]
    yield f"{_joined(step)} \\"
    if cluster.container is not None:
        yield f"    {_joined(_container(batch, cluster))} \\"
    python = "python" if cluster.container else '"$python"'
    yield f'    {python} -m launch.slurm.node "$config" --head "$head" --ranks {cluster.ranks}'


def _container(batch: Batch, cluster: ClusterConfig) -> list[str]:
    assert cluster.container is not None
    mounts = [*(f"{path}:{path}" for path in _needed(batch)), *cluster.container_mounts]
    if cluster.container_runtime == "pyxis":
        image = f"--container-image={cluster.container}"
        return [image, f"--container-mounts={','.join(mounts)}", f"--container-workdir={batch.work}"]
    gpus = ["--nv"] if cluster.gpus_per_node else []
    return ["apptainer", "exec", *gpus, "--bind", ",".join(mounts), "--pwd", str(batch.work), cluster.container]


def _after() -> Iterator[str]:
    yield "# requeues the job if a restart can mend what ended it: 75, a lost node, a time limit, a preemption"
    yield '"$python" -m launch.slurm.restart end "$run" --code $? "${limits[@]}"'


def _needed(batch: Batch) -> list[Path]:
    """Return the folders to mount in a container."""
    return list(dict.fromkeys([batch.work, batch.code, *(member.run for member in batch.members)]))


def _refuse_odd_paths(batch: Batch, cluster: ClusterConfig) -> None:
    paths = [*_needed(batch), batch.log, *(member.config for member in batch.members)]
    odd = "\n\r" + (",:" if cluster.container else "")
    bad = [path for path in paths if set(odd) & set(str(path))]
    faults = [f"{str(path)!r}: a job's paths cannot contain any of {odd!r}; choose another folder" for path in bad]
    if faults:
        raise ConfigError(faults)


def _joined(words: Sequence[str]) -> str:
    return shlex.join(words)


def _quoted(value: object) -> str:
    return shlex.quote(str(value))
