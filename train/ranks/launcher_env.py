"""What other launchers say, and are told: srun names the rank in its own words, accelerate asks for more.

torchrun's words (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT) are the ones that the rest
of the program reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from train.config.errors import ConfigError
from train.config.run import RunConfig

USERS_THREADS = "PERILN_OMP_NUM_THREADS"  # what the user had set before torchrun wrote OMP_NUM_THREADS=1


def adopt_srun(environment: MutableMapping[str, str]) -> None:
    """Describe a task of a bare `srun python -m train` in torchrun's words.

    Only inside a step of several tasks: SLURM_NTASKS and SLURM_PROCID=0 also stand in a batch script that starts
    Python without srun, and there nobody else would come.

    Raises:
        ConfigError: The step does not say where its tasks are.
    """
    if "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return
    if "SLURM_STEP_ID" not in environment:
        return
    try:
        per_node = tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
        described = {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(per_node[int(environment["SLURM_NODEID"])]),
            "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": str(_port(environment["SLURM_JOB_ID"], environment["SLURM_STEP_ID"])),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise ConfigError([f"srun: the step does not describe its tasks ({error}); start it with torchrun"]) from None
    for name, value in described.items():
        environment.setdefault(name, value)


def tasks_per_node(text: str) -> list[int]:
    """Return the tasks of each node from SLURM's notation: `2(x3),1` is [2, 2, 2, 1]."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={text}")
        found += [int(match[1])] * int(match[2] or 1)
    return found


def first_host(nodes: str) -> str:
    """Return the first host of SLURM's notation: `gpu[07-09,12],login1` begins with gpu07."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]  # at commas outside brackets
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", host):
        raise ValueError(f"SLURM_STEP_NODELIST={nodes}")
    return host


def threads_of_rank(environment: Mapping[str, str], *, threads: int | None, seen: int, local_size: int) -> int:
    """Return how many CPU threads this rank computes with.

    Args:
        environment: OMP_NUM_THREADS counts where the user has set it. torchrun and accelerate write 1 where nobody has;
            `train.ranks.torchrun` keeps the user's own number in PERILN_OMP_NUM_THREADS, to tell the two apart.
        threads: engine.threads, which comes first.
        seen: As in `cores_of_rank`, whose share is the default.
        local_size: Ranks on this machine.
    """
    return threads or _users_threads(environment) or cores_of_rank(environment, seen=seen, local_size=local_size)


def _users_threads(environment: Mapping[str, str]) -> int | None:
    number = environment.get(USERS_THREADS, environment.get("OMP_NUM_THREADS", "")).split(",")[0].strip()
    if not number.isdecimal() or int(number) == 0:  # OpenMP does not take it either
        return None
    under_launcher = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"} & set(environment)
    written_by_it = number == "1" and under_launcher and USERS_THREADS not in environment
    return None if written_by_it else int(number)


def wait_passively_beside_other_ranks(environment: MutableMapping[str, str]) -> None:
    """Let the threads of several ranks on one machine sleep while they wait for each other, unless the user decided.

    OpenMP's threads spin by default: 12 to 25 % faster for a process that has its cores to itself, several times slower
    for processes that share them. Counts only where it is called before torch, and with it OpenMP, is loaded.
    """
    if int(environment.get("LOCAL_WORLD_SIZE", "1")) > 1 and "GOMP_SPINCOUNT" not in environment:
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def cores_of_rank(environment: Mapping[str, str], *, seen: int, local_size: int) -> int:
    """Return how many cores this rank should use.

    Args:
        environment: In a SLURM job it says how many cores are the job's; not every cluster binds to them.
        seen: Cores that this process may run on: those of all ranks of the machine, or under a bare srun that binds its
            tasks, this rank's own.
        local_size: Ranks on this machine.
    """
    of_job = int(environment.get("SLURM_CPUS_ON_NODE", str(seen)))
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and _is_task(environment):
        return max(1, min(seen, of_job // local_size))
    return max(1, min(seen, of_job) // local_size)


def _is_task(environment: Mapping[str, str]) -> bool:
    """Return whether each rank is a task of srun, not a child of a torchrun that is one."""
    names = (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))
    return "TORCHELASTIC_RUN_ID" not in environment and all(environment.get(a) == environment.get(b) for a, b in names)


def refuse_other_engines(config: RunConfig, environment: Mapping[str, str]) -> None:
    """Refuse what `accelerate launch` was told to do and this program would not: it has an engine of its own.

    Raises:
        ConfigError: Naming each variable, and the key that stands for it here.
    """
    faults = list(_asked_of_accelerate(config, environment))
    if faults:
        raise ConfigError(faults)


def _asked_of_accelerate(config: RunConfig, environment: Mapping[str, str]) -> Iterator[str]:
    for name in ("FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        variable = f"ACCELERATE_USE_{name}"
        if environment.get(variable, "false").lower() in ("true", "1"):
            yield f"{variable}: this program shards with DeepSpeed; launch without it and set engine.zero_stage"
    asked = {
        "ACCELERATE_MIXED_PRECISION": ("engine.precision", config.engine.precision, ("no",)),
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": ("engine.zero_stage", str(config.engine.zero_stage), ()),
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": (
            "engine.offload",
            "cpu" if config.engine.offload == "optimizer" else "none",
            (),
        ),
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("engine.offload", "none", ()),
    }
    for variable, (key, here, neutral) in asked.items():
        value = environment.get(variable, "").lower()
        if value and value not in neutral and value != here:
            yield f"{variable}={value}: {key} is {here} here; set {key}, or launch without it"
    if environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none").lower() not in ("none", ""):
        yield "ACCELERATE_DEEPSPEED_CONFIG_FILE: would not be read; write its settings as engine.*"
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no" and not (backend == "inductor" and config.engine.compile):
        yield f"ACCELERATE_DYNAMO_BACKEND={backend}: set engine.compile=true instead, and launch without it"


def _port(job: str, step: str) -> int:
    """Return a port that all tasks of a step agree on, below those that Linux gives away by itself."""
    return 10_000 + (int(job) * 17 + int(step)) % 10_000


def tell_torchrun(text: str) -> None:
    """Leave the reason why this rank ends where torchrun looks for it; does nothing under other launchers.

    torchrun takes the rank with the earliest time, in whole seconds, for the cause. It dates itself those that it ends
    because of this one and that leave no reason: a second earlier is before them.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with contextlib.suppress(OSError):
            told = {"message": text, "extraInfo": {"timestamp": str(int(time.time()) - 1)}}
            Path(path).write_text(json.dumps({"message": told}))
