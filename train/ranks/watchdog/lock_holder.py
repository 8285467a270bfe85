"""The process that holds the lock of a run folder, and whether it still exists."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from train.ranks.watchdog import heartbeat


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock: rank 0 of a world."""

    host: str
    pid: int
    started: int  # clock ticks after boot (/proc/PID/stat); 0 where unknown. Tells apart processes that share a pid
    boot: str  # id of the machine's boot
    namespace: str  # of process ids; a process can be looked up only within the same boot and namespace
    job: str  # SLURM job id; empty without SLURM
    world: str  # identical on all ranks of a launch, and different for every launch
    since: str

    def __str__(self) -> str:
        """Return "process 4711 on node7 (SLURM job 23)"."""
        return f"process {self.pid} on {self.host}" + (f" (SLURM job {self.job})" if self.job else "")


def read_holder(lock: Path) -> Holder | None:
    """Return the holder that a lock names; None if there is no lock, or none with readable content."""
    try:
        values = json.loads(lock.read_text())
        found = Holder(**{key.name: values[key.name] for key in fields(Holder)})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    numbers, words = (found.pid, found.started), (found.host, found.boot, found.namespace, found.job, found.world)
    is_whole = all(type(number) is int for number in numbers) and all(isinstance(word, str) for word in words)
    return found if is_whole else None


def this_process(environment: Mapping[str, str]) -> Holder:
    """Return this process as a holder; `environment` has torchrun's or SLURM's variables for this rank."""
    job = environment.get("SLURM_JOB_ID", "")
    launch = [environment.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")]
    step = [environment.get(name, "") for name in ("SLURM_STEP_ID", "SLURM_RESTART_COUNT")]
    alone = environment.get("WORLD_SIZE", "1") == "1"
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_started(os.getpid()),
        boot=_boot(),
        namespace=_namespace(),
        job=job,
        world=uuid.uuid4().hex if alone else " ".join([*launch, job, *step]),
        since=heartbeat.now(),
    )


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no /proc
        return ""


def _namespace() -> str:
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return ""


def _started(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def is_alive(holder: Holder) -> bool:
    """Return whether a process of this machine still exists."""
    if heartbeat.is_process_gone(holder.host, holder.pid, this_host=holder.host):
        return False
    return holder.started in (0, _started(holder.pid))
