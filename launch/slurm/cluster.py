"""A SLURM cluster as a YAML file: what to ask it for, and how Python is found on its nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from train.config import yaml_text
from train.config.errors import ConfigError
from train.config.schema import check

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,@+-]*")
_MODULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+/-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
_MEMORY = re.compile(r"[0-9]+[KMGT]?")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
# Options of sbatch that have a key of their own, or that the job relies on.
_OWN_OPTIONS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "nodes": "nodes",
    "gpus-per-node": "gpus_per_node",
    "cpus-per-task": "cpus_per_task",
    "time": "time",
    "mem": "memory",
    "signal": "signal_seconds",
}
_RELIED_ON = (
    *("array", "chdir", "error", "export", "job-name", "no-requeue", "ntasks", "ntasks-per-node"),
    *("open-mode", "output", "requeue", "wrap"),
)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What a job asks SLURM for. A key that is null is left to the cluster."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    ranks_per_node: int | None = None  # null: one per GPU; without GPUs one
    cpus_per_task: int | None = None  # for all ranks of a node together: there is one task per node
    time: str | int  # as in sbatch: minutes, HH:MM:SS or D-HH:MM:SS
    memory: str | None = None  # per node, as in 480G; 0 is all of it
    signal_seconds: int = 300  # this long before the time limit the run is asked to save and stop
    modules: tuple[str, ...] = ()  # loaded in this order, after `module purge`
    venv: str | None = None  # folder of a virtual environment; null: the Python that submits
    container: str | None = None  # an image; its Python is used
    container_runtime: Literal["apptainer", "pyxis"] | None = None  # null: apptainer
    container_mounts: tuple[str, ...] = ()  # beside the folders of the run, as in /scratch:/scratch
    environment: dict[str, Any] = field(default_factory=dict[str, Any])  # name: value; no secrets, the script is kept
    sbatch: tuple[str, ...] = ()  # further lines, as in --constraint=h100

    @property
    def ranks(self) -> int:
        """Ranks on each node."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def seconds(self) -> int:
        """The time limit."""
        return time_limit_seconds(str(self.time))


def load(path: str | Path) -> ClusterConfig:
    """Read a cluster file.

    Raises:
        ConfigError: Everything that is wrong, at once.
    """
    text = yaml_text.read(path)
    if text.tree is None:
        raise ConfigError([fault.replace("language_model/quickstart", "cluster/example") for fault in text.faults])
    cluster, leaves, faults = check(ClusterConfig, text.tree)
    faults = [*text.faults, *(f"{path}: {fault}" for fault in [*faults, *_broken_rules(leaves)])]
    if cluster is None or faults:
        raise ConfigError(faults)
    return cluster


def time_limit_seconds(text: str) -> int:
    """Return the seconds of a time as sbatch reads it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        ValueError: It is not such a time.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(text)
    days, *rest = match.groups()
    given = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, seconds = [*given, 0, 0][:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
    hours, minutes, seconds = {1: [0, *given, 0], 2: [0, *given], 3: given}[len(given)]
    return (hours * 60 + minutes) * 60 + seconds


def _broken_rules(leaves: dict[str, Any]) -> Iterator[str]:
    """Yield what no single type can say, for the keys whose values are of the right type."""
    yield from _numbers(leaves)
    yield from _time(leaves)
    yield from _names(leaves)
    yield from _environment(leaves.get("environment") or {})
    yield from _python(leaves)
    for number, line in enumerate(leaves.get("sbatch") or ()):
        yield from _sbatch_line(f"sbatch.{number}", line)


def _numbers(leaves: dict[str, Any]) -> Iterator[str]:
    for key, least in {"nodes": 1, "gpus_per_node": 0, "ranks_per_node": 1, "cpus_per_task": 1}.items():
        value = leaves.get(key)
        if value is not None and value < least:
            yield f"{key}: {value} is too small; write {least} or more"


def _time(leaves: dict[str, Any]) -> Iterator[str]:
    if "time" not in leaves:
        return
    try:
        seconds = time_limit_seconds(str(leaves["time"]))
    except ValueError:
        yield f"time: {leaves['time']!r} is not a time; write minutes, HH:MM:SS or D-HH:MM:SS, as in 24:00:00"
        return
    lead = leaves.get("signal_seconds")
    if seconds == 0:
        yield "time: 0 is no time limit that a run could be stopped before; write one, as in 24:00:00"
    elif lead is not None and not 1 <= lead < seconds:
        yield f"signal_seconds: {lead} is not between 1 and the time limit ({seconds} s); 300 is usual"


def _names(leaves: dict[str, Any]) -> Iterator[str]:
    for key in ("partition", "account", "qos"):
        value = leaves.get(key)
        if value is not None and not _NAME.fullmatch(value):
            yield f"{key}: {value!r} is not a name; letters, digits and _ . , @ + - are allowed"
    memory = leaves.get("memory")
    if memory is not None and not _MEMORY.fullmatch(memory):
        yield f"memory: {memory!r} is not an amount; write a number and K, M, G or T, as in 480G"
    for number, module in enumerate(leaves.get("modules") or ()):
        if not _MODULE.fullmatch(module):
            yield f"modules.{number}: {module!r} is not a module's name, as in cuda/12.8"
    for number, mount in enumerate(leaves.get("container_mounts") or ()):
        if not mount.startswith("/") or "," in mount or "\n" in mount:
            yield f"container_mounts.{number}: {mount!r} is not a mount; write /outside:/inside"


def _environment(variables: dict[str, Any]) -> Iterator[str]:
    for name, value in variables.items():
        path = f"environment.{name}"
        if not _VARIABLE.fullmatch(str(name)):
            yield f"{path}: not a variable's name; letters, digits and _ are allowed"
        elif _SECRET.search(name):
            yield f"{path}: looks like a secret, and the script is kept in the run folder; set it in ~/.bash_profile"
        elif name in ("PYTHONPATH", "PYTHONSAFEPATH", "RANK", "WORLD_SIZE") or name.startswith("SLURM_"):
            yield f"{path}: the job sets this itself; leave it out"
        elif not isinstance(value, str | int | float):
            yield f"{path}: {yaml_text.show(value)} is not text or a number; write {name}: value"
        elif "\n" in str(value):
            yield f"{path}: a value is one line"


def _python(leaves: dict[str, Any]) -> Iterator[str]:
    venv, container = leaves.get("venv"), leaves.get("container")
    if venv and container:
        yield "venv: a container brings its own Python; give venv or container, not both"
    if venv and not (Path(venv).expanduser() / "bin" / "python").exists():
        yield f"venv: {venv} has no bin/python; give the folder that `python -m venv` made"
    for key in ("container_runtime", "container_mounts"):
        if leaves.get(key) and not container:
            yield f"{key}: has no effect without container; give an image, or leave it out"


def _sbatch_line(path: str, line: str) -> Iterator[str]:
    match = re.fullmatch(r"--([a-z][a-z0-9-]*)(?:[= ][^\n]*)?", line)
    if match is None:
        yield f"{path}: {line!r} is not an option of sbatch in its long form, as in --constraint=h100"
    elif match[1] in _OWN_OPTIONS:
        yield f"{path}: --{match[1]} has a key of its own; write {_OWN_OPTIONS[match[1]]}: ..."
    elif match[1] in _RELIED_ON:
        yield f"{path}: the job relies on its own --{match[1]}; leave it out"
