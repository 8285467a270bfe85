"""Adapters for other launchers: translate srun's variables to torchrun's, reject accelerate settings we would ignore.

The rest of the program reads only torchrun's variables: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and
MASTER_PORT.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from train.config.errors import ConfigError
from train.config.facts.openmp import wait_passively
from train.config.run import RunConfig

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2  # linux/prctl.h
USERS_THREADS = "PERILN_OMP_NUM_THREADS"  # the user's value, from before torchrun set OMP_NUM_THREADS=1


def adopt_srun(environment: MutableMapping[str, str]) -> None:
    """Set torchrun's variables for a task of a plain `srun python -m train`.

    Applies only within a step of several tasks: a batch script that starts Python without srun also has SLURM_NTASKS
    and SLURM_PROCID=0, but no other task would join.

    Raises:
        ConfigError: SLURM does not describe where the tasks of the step run.
    """
    if "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return
    if "SLURM_STEP_ID" not in environment:
        return
    try:
        per_node = tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
        variables = {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(per_node[int(environment["SLURM_NODEID"])]),
            "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": str(_port(environment["SLURM_JOB_ID"], environment["SLURM_STEP_ID"])),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise ConfigError(
            [f"srun: SLURM does not describe the tasks of this step ({error}); start the run with torchrun"]
        ) from None
    for name, value in variables.items():
        environment.setdefault(name, value)


def tasks_per_node(text: str) -> list[int]:
    """Parse SLURM's notation for tasks per node: `2(x3),1` is [2, 2, 2, 1]."""
    tasks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={text}")
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks


def first_host(nodes: str) -> str:
    """Return the first host in SLURM's notation: gpu07 for `gpu[07-09,12],login1`."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]  # at commas outside brackets
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", host):
        raise ValueError(f"SLURM_STEP_NODELIST={nodes}")
    return host


def threads_of_rank(environment: Mapping[str, str], *, threads: int | None, seen: int, local_size: int) -> int:
    """Return the number of CPU threads for this rank.

    Args:
        environment: OMP_NUM_THREADS is used if the user set it. torchrun and accelerate set it to 1 otherwise;
            `train.ranks.torchrun` keeps the user's value in PERILN_OMP_NUM_THREADS to distinguish the two.
        threads: engine.threads, which takes precedence.
        seen: See `cores_of_rank`, which provides the default.
        local_size: Number of ranks on this machine.
    """
    return threads or _users_threads(environment) or cores_of_rank(environment, seen=seen, local_size=local_size)


def _users_threads(environment: Mapping[str, str]) -> int | None:
    number = environment.get(USERS_THREADS, environment.get("OMP_NUM_THREADS", "")).split(",")[0].strip()
    if not number.isdecimal() or int(number) == 0:  # OpenMP rejects it too
        return None
    under_launcher = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"} & set(environment)
    set_by_launcher = number == "1" and under_launcher and USERS_THREADS not in environment
    return None if set_by_launcher else int(number)


def wait_passively_beside_other_ranks(environment: MutableMapping[str, str]) -> None:
    """Make idle threads of this rank sleep if other ranks share the machine; call it before torch is loaded."""
    if int(environment.get("LOCAL_WORLD_SIZE", "1")) > 1:
        wait_passively(environment)


def cores_of_rank(environment: Mapping[str, str], *, seen: int, local_size: int) -> int:
    """Return the number of cores this rank should use.

    Args:
        environment: In a SLURM job, contains the number of cores allocated; not every cluster binds jobs to them.
        seen: Cores that this process may run on: those of all ranks on the machine or, under a plain srun that binds
            its tasks, this rank's own.
        local_size: Number of ranks on this machine.
    """
    of_job = int(environment.get("SLURM_CPUS_ON_NODE", str(seen)))
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and _is_task(environment):
        return max(1, min(seen, of_job // local_size))
    return max(1, min(seen, of_job) // local_size)


def _is_task(environment: Mapping[str, str]) -> bool:
    """Return whether each rank is a task of srun itself, rather than a child of a torchrun that srun started."""
    names = (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))
    return "TORCHELASTIC_RUN_ID" not in environment and all(environment.get(a) == environment.get(b) for a, b in names)


def refuse_other_engines(config: RunConfig, environment: Mapping[str, str]) -> None:
    """Reject `accelerate launch` settings that this program would ignore, as it has an engine of its own.

    Raises:
        ConfigError: With each variable and the setting to use instead.
    """
    faults = list(_accelerate_faults(config, environment))
    if faults:
        raise ConfigError(faults)


def _accelerate_faults(config: RunConfig, environment: Mapping[str, str]) -> Iterator[str]:
    for name in ("FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        variable = f"ACCELERATE_USE_{name}"
        if environment.get(variable, "false").lower() in ("true", "1"):
            yield f"{variable}: this program shards with DeepSpeed; unset it and set engine.zero_stage"
    requests = {
        "ACCELERATE_MIXED_PRECISION": ("engine.precision", config.engine.precision, ("no",)),
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": ("engine.zero_stage", str(config.engine.zero_stage), ()),
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": (
            "engine.offload",
            "cpu" if config.engine.offload == "optimizer" else "none",
            (),
        ),
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("engine.offload", "none", ()),
    }
    for variable, (key, here, neutral) in requests.items():
        value = environment.get(variable, "").lower()
        if value and value not in neutral and value != here:
            yield f"{variable}={value}: conflicts with {key} {here}; change {key}, or unset the variable"
    if environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none").lower() not in ("none", ""):
        yield "ACCELERATE_DEEPSPEED_CONFIG_FILE: would be ignored; write its settings as engine.*"
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no" and not (backend == "inductor" and config.engine.compile):
        yield f"ACCELERATE_DYNAMO_BACKEND={backend}: would be ignored; unset it and set engine.compile=true"


def _port(job: str, step: str) -> int:
    """Return a port that is the same for all tasks of a step and below Linux's ephemeral range."""
    return 10_000 + (int(job) * 17 + int(step)) % 10_000


def slurm_job_is_running(job: str) -> bool | None:
    """Return whether processes of a SLURM job may exist; None if SLURM cannot be asked."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", f"--jobs={job}", "--format=%T"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode != 0:
        return False if "invalid job id" in done.stderr.lower() else None
    return done.stdout.strip() not in ("", "PENDING")


def end_with_launcher(environment: Mapping[str, str]) -> int | None:
    """Make Linux send this rank SIGTERM when the torchrun that started it dies, even by SIGKILL.

    Returns:
        The process id of the launcher with which this process ends; None if it may outlive the one that started it.
    """
    linux, launcher = ctypes.CDLL(None), os.getppid()
    if "TORCHELASTIC_RUN_ID" in environment:
        linux.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher:  # it died just before
        os.kill(os.getpid(), signal.SIGTERM)
    chosen = ctypes.c_int()
    linux.prctl(_PR_GET_PDEATHSIG, ctypes.byref(chosen))  # `python -m launch` sets it for a single rank
    return launcher if chosen.value else None


def report_to_torchrun(text: str) -> None:
    """Write the reason why this rank exits to torchrun's error file; does nothing under other launchers.

    torchrun attributes the failure to the rank with the earliest timestamp, in whole seconds, and stamps ranks that it
    terminates without an error file itself. A timestamp one second in the past precedes those.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with contextlib.suppress(OSError):
            message = {"message": text, "extraInfo": {"timestamp": str(int(time.time()) - 1)}}
            Path(path).write_text(json.dumps({"message": message}))
