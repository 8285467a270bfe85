"""Cluster file of a SLURM job (YAML): the resources to request, and the Python to use on the nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launch.slurm import secrets
from launch.slurm.times import time_limit_seconds
from train.config import yaml_text
from train.config.errors import ConfigError
from train.config.schema import check

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,@+-]*")
_MODULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+/-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MEMORY = re.compile(r"[0-9]+[KMGT]?")
_KEPT_TEXT = ("sbatch", "container", "container_mounts", "venv", "modules")  # written into the script as they are
# sbatch options that have their own key, and options that the job depends on.
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
_RESERVED = (
    *("array", "chdir", "error", "export", "job-name", "no-requeue", "ntasks", "ntasks-per-node"),
    *("open-mode", "output", "requeue", "wrap"),
)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Resources that a job requests from SLURM, and its restarts. A null key is left to the cluster's default."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    ranks_per_node: int | None = None  # null: one per GPU, or one if there are no GPUs
    cpus_per_task: int | None = None  # shared by all ranks of a node: there is one task per node
    time: str | int  # as in sbatch: minutes, HH:MM:SS or D-HH:MM:SS
    memory: str | None = None  # per node, e.g. 480G; 0 requests all of it
    signal_seconds: int = 300  # how long before the time limit the run is signaled to save and stop
    modules: tuple[str, ...] = ()  # loaded in this order, after `module purge`
    venv: str | None = None  # folder of a virtual environment; null: the Python that submits the job
    container: str | None = None  # image whose Python runs the job
    container_runtime: Literal["apptainer", "pyxis"] | None = None  # null: apptainer
    container_mounts: tuple[str, ...] = ()  # in addition to the run's own folders, e.g. /scratch:/scratch
    environment: dict[str, Any] = field(default_factory=dict[str, Any])  # name: value; no secrets, the script is kept
    allow_in_script: tuple[str, ...] = ()  # variables or keys that look like secrets and are not
    sbatch: tuple[str, ...] = ()  # additional options, e.g. --constraint=h100
    restarts: int | None = 100  # of one job, for whatever reason; null: no limit
    restarts_without_progress: int | None = 3  # in a row, each without a newer complete checkpoint; null: no limit

    @property
    def ranks(self) -> int:
        """Ranks on each node."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def seconds(self) -> int:
        """Time limit in seconds."""
        return time_limit_seconds(str(self.time))


def load(path: str | Path) -> ClusterConfig:
    """Read a cluster file.

    Raises:
        ConfigError: The file is invalid; all faults are reported at once.
    """
    text = yaml_text.read(path)
    if text.tree is None:
        raise ConfigError([fault.replace("language_model/quickstart", "cluster/example") for fault in text.faults])
    cluster, leaves, faults = check(ClusterConfig, text.tree)
    faults = [*text.faults, *(f"{path}: {fault}" for fault in [*faults, *_broken_rules(leaves)])]
    if cluster is None or faults:
        variables: dict[object, object] = leaves.get("environment") or {}
        raise ConfigError([secrets.redact(fault, variables) for fault in faults])
    return cluster


def _broken_rules(leaves: dict[str, Any]) -> Iterator[str]:
    """Yield the faults that types alone cannot catch, for keys whose values have the right type."""
    yield from _numbers(leaves)
    yield from _time(leaves)
    yield from _names(leaves)
    yield from _environment(leaves.get("environment") or {})
    yield from _secrets(leaves)
    yield from _python(leaves)
    for number, line in enumerate(leaves.get("sbatch") or ()):
        yield from _sbatch_line(f"sbatch.{number}", line)


def _numbers(leaves: dict[str, Any]) -> Iterator[str]:
    at_least = {"nodes": 1, "gpus_per_node": 0, "ranks_per_node": 1, "cpus_per_task": 1}
    for key, least in {**at_least, "restarts": 0, "restarts_without_progress": 0}.items():
        value = leaves.get(key)
        if value is not None and value < least:
            yield f"{key}: {value} is too small; write {least} or more"


def _time(leaves: dict[str, Any]) -> Iterator[str]:
    if "time" not in leaves:
        return
    try:
        seconds = time_limit_seconds(str(leaves["time"]))
    except ValueError:
        yield f"time: {leaves['time']!r} is not a time; write minutes, HH:MM:SS or D-HH:MM:SS, e.g. 24:00:00"
        return
    lead = leaves.get("signal_seconds")
    if seconds == 0:
        yield "time: 0 means no time limit, so the run could not be signaled before it; write one, e.g. 24:00:00"
    elif lead is not None and not 1 <= lead < seconds:
        yield f"signal_seconds: {lead} is not between 1 and the time limit ({seconds} s); 300 is usual"


def _names(leaves: dict[str, Any]) -> Iterator[str]:
    for key in ("partition", "account", "qos"):
        value = leaves.get(key)
        if value is not None and not _NAME.fullmatch(value):
            yield f"{key}: {value!r} is not a valid name; use letters, digits and _ . , @ + - only"
    memory = leaves.get("memory")
    if memory is not None and not _MEMORY.fullmatch(memory):
        yield f"memory: {memory!r} is not a valid amount; write a number followed by K, M, G or T, e.g. 480G"
    for number, module in enumerate(leaves.get("modules") or ()):
        if not _MODULE.fullmatch(module):
            yield f"modules.{number}: {module!r} is not a module name; write one like cuda/12.8"
    for number, mount in enumerate(leaves.get("container_mounts") or ()):
        if not mount.startswith("/") or "," in mount or "\n" in mount:
            yield f"container_mounts.{number}: {mount!r} is not a mount; write /outside:/inside"


def _environment(variables: dict[Any, Any]) -> Iterator[str]:
    for name, value in variables.items():
        path = f"environment.{name}"
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            yield f"environment.{yaml_text.show(name)}: not a valid variable name; use letters, digits and _ only"
        elif name in ("PYTHONPATH", "PYTHONSAFEPATH", "RANK", "WORLD_SIZE") or name.startswith("SLURM_"):
            yield f"{path}: the job sets this itself; leave it out"
        elif not isinstance(value, str | int | float):
            yield f"{path}: {yaml_text.show(value)} is not text or a number; write {name}: value"
        elif "\n" in str(value):
            yield f"{path}: the value spans several lines; write a single line"


def _secrets(leaves: dict[str, Any]) -> Iterator[str]:
    """Yield what looks like a secret, except for the names in `allow_in_script`; never the value itself."""
    allowed: tuple[str, ...] = leaves.get("allow_in_script") or ()
    suspects = list(_suspects(leaves))
    for name, path, why in suspects:
        if name not in allowed:
            yield (
                f"{path}: looks like a secret ({why}), and the script is kept in the run folder; set it in "
                f"~/.bash_profile, which the job reads, or write allow_in_script: [{name}] if it is none"
            )
    for number, name in enumerate(allowed):
        if name not in (suspect for suspect, _, _ in suspects):
            yield f"allow_in_script.{number}: {name!r} is nothing here that looks like a secret; leave it out"


def _suspects(leaves: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each variable or key that looks like a secret, with its path and the reason."""
    variables: dict[Any, Any] = leaves.get("environment") or {}
    for name, value in variables.items():
        if why := secrets.find(str(name), value):
            yield str(name), f"environment.{name}", why
    for key in _KEPT_TEXT:
        value: str | tuple[str, ...] = leaves.get(key) or ()
        for number, line in enumerate((value,) if isinstance(value, str) else value):
            if why := secrets.find_in(line):
                yield key, key if isinstance(value, str) else f"{key}.{number}", why


def _python(leaves: dict[str, Any]) -> Iterator[str]:
    venv, container = leaves.get("venv"), leaves.get("container")
    if venv and container:
        yield "venv: conflicts with container, which has its own Python; give one or the other"
    if venv and not (Path(venv).expanduser() / "bin" / "python").exists():
        yield f"venv: {venv} has no bin/python; give a folder created by `python -m venv`"
    for key in ("container_runtime", "container_mounts"):
        if leaves.get(key) and not container:
            yield f"{key}: has no effect without container; give an image, or leave it out"


def _sbatch_line(path: str, line: str) -> Iterator[str]:
    match = re.fullmatch(r"--([a-z][a-z0-9-]*)(?:[= ][^\n]*)?", line)
    if match is None:
        yield f"{path}: {line!r} is not a long sbatch option; write one like --constraint=h100"
    elif match[1] in _OWN_OPTIONS:
        yield f"{path}: --{match[1]} has its own key; write {_OWN_OPTIONS[match[1]]}: ..."
    elif match[1] in _RESERVED:
        yield f"{path}: the job sets --{match[1]} itself; leave it out"
