"""Under srun and accelerate launch: the same run, or an exit that names the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import tiny_run
from train.config.errors import ConfigError
from train.ranks.launcher_env import (
    USERS_THREADS,
    adopt_srun,
    cores_of_rank,
    first_host,
    refuse_other_engines,
    report_to_torchrun,
    tasks_per_node,
    threads_of_rank,
    wait_passively_beside_other_ranks,
)

# What a real step of 2 + 1 tasks says (SLURM 22.05), to its last task.
STEP = {
    "SLURM_JOB_ID": "71",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_CPUS_ON_NODE": "4",
}


def test_a_task_of_srun_is_a_rank() -> None:
    environment = dict(STEP)
    adopt_srun(environment)
    added = {name: value for name, value in environment.items() if name not in STEP}
    assert added == {
        "RANK": "2",
        "WORLD_SIZE": "3",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "11210",
    }


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_JOB_ID": "71", "SLURM_NTASKS": "3", "SLURM_PROCID": "0"},  # a batch script without srun
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {**STEP, "RANK": "0", "WORLD_SIZE": "1"},  # torchrun inside the step
        {},
    ],
)
def test_what_is_no_step_of_several_tasks_is_left_alone(environment: dict[str, str]) -> None:
    before = dict(environment)
    adopt_srun(environment)
    assert environment == before


def test_a_step_that_does_not_describe_itself_is_an_error() -> None:
    with pytest.raises(ConfigError, match="SLURM_STEP_NODELIST"):
        adopt_srun({name: value for name, value in STEP.items() if name != "SLURM_STEP_NODELIST"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu[07-09,12],login1", "gpu07"), ("a,b", "a"), ("r[1-2]n[3,5]", "r1n3"), ("n3.example.org", "n3.example.org")],
)
def test_the_first_host_of_a_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_tasks_are_counted_by_node() -> None:
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]


@pytest.mark.parametrize(
    ("environment", "seen", "local_size", "cores"),
    [
        ({}, 8, 2, 4),
        ({"SLURM_CPUS_ON_NODE": "4"}, 64, 2, 2),  # torchrun in a job that is not bound to its cores
        ({"SLURM_CPUS_ON_NODE": "64"}, 16, 2, 8),  # torchrun in a job that is
        ({**STEP, "RANK": "2", "WORLD_SIZE": "3"}, 64, 2, 2),  # a task of a step without binding
        ({**STEP, "RANK": "2", "WORLD_SIZE": "3"}, 2, 2, 2),  # with: it sees its own two cores
        ({"SLURM_CPUS_ON_NODE": "1"}, 4, 2, 1),
    ],
)
def test_a_rank_uses_its_share_of_the_cores(
    environment: dict[str, str], seen: int, local_size: int, cores: int
) -> None:
    assert cores_of_rank(environment, seen=seen, local_size=local_size) == cores


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1"}


@pytest.mark.parametrize(
    ("environment", "setting", "threads"),
    [
        ({}, None, 4),  # its share of the cores
        ({"OMP_NUM_THREADS": "3"}, None, 3),
        ({"OMP_NUM_THREADS": "3,2"}, None, 3),  # a number for each level of nesting
        ({"OMP_NUM_THREADS": "1"}, None, 1),
        ({"OMP_NUM_THREADS": "0"}, None, 4),  # OpenMP does not take it either
        ({**TORCHRUN, "OMP_NUM_THREADS": "1"}, None, 4),  # a bare torchrun wrote it, not the user
        ({**TORCHRUN, "OMP_NUM_THREADS": "2"}, None, 2),
        ({**TORCHRUN, "OMP_NUM_THREADS": "1", USERS_THREADS: "1"}, None, 1),
        ({"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}, None, 4),
        ({"OMP_NUM_THREADS": "3"}, 2, 2),  # engine.threads comes first
    ],
)
def test_the_users_number_of_threads_is_honoured(
    environment: dict[str, str], setting: int | None, threads: int
) -> None:
    assert threads_of_rank(environment, threads=setting, seen=8, local_size=2) == threads


@pytest.mark.parametrize(
    ("environment", "policy"),
    [
        ({}, None),  # alone: spinning is faster
        ({"LOCAL_WORLD_SIZE": "1"}, None),
        ({"LOCAL_WORLD_SIZE": "2"}, "PASSIVE"),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"LOCAL_WORLD_SIZE": "2", "GOMP_SPINCOUNT": "2000"}, None),
    ],
)
def test_threads_beside_other_ranks_do_not_spin(environment: dict[str, str], policy: str | None) -> None:
    wait_passively_beside_other_ranks(environment)
    assert environment.get("OMP_WAIT_POLICY") == policy


@pytest.mark.parametrize(
    ("environment", "key"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "engine.zero_stage"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "engine.zero_stage"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "engine.precision"),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "engine.zero_stage"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "engine.offload"),
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, "engine."),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "engine.compile"),
    ],
)
def test_an_accelerate_environment_that_asks_for_something_else(
    tmp_path: Path, environment: dict[str, str], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_other_engines(tiny_run(tmp_path), environment)
    (fault,) = caught.value.faults
    assert fault.startswith(next(iter(environment)))
    assert key in fault


def test_an_accelerate_environment_that_asks_for_the_same(tmp_path: Path) -> None:
    asked = {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": "none",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
    }
    refuse_other_engines(tiny_run(tmp_path, "engine.precision=bf16", "engine.zero_stage=2"), asked)
    refuse_other_engines(tiny_run(tmp_path), {"ACCELERATE_MIXED_PRECISION": "no"})  # what it says when nobody asked


def test_torchrun_is_told_the_reason_before_what_it_ends_because_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    told = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(told))
    report_to_torchrun("stopped by a signal")
    failures = {
        0: ProcessFailure(local_rank=0, pid=1, exitcode=-15, error_file="<N/A>"),
        1: ProcessFailure(local_rank=1, pid=2, exitcode=75, error_file=str(told)),
    }
    rank, first = ChildFailedError("train", failures).get_first_failure()
    assert (rank, first.exitcode) == (1, 75)
    assert first.error_file_data["message"]["message"] == "stopped by a signal"
