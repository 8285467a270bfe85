"""The fastest way to run a configuration that fits into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from launch.plan.case import Case, at_stage, case_of
from launch.plan.machine import Machine
from launch.plan.memory import GIB, Memory, memory
from launch.plan.step_time import StepTime, step_time
from launch.plan.workload import workload_of
from train.config.batch import divisors, micro_batches
from train.config.run import RunConfig

HEADROOM = 0.08  # share of a GPU's memory that a recommendation leaves free, to cover the error of the estimate
ALIKE = 1.02  # ways within this factor of the fastest count as equally fast


class Plan(NamedTuple):
    """One way to run a configuration, with its memory and time."""

    case: Case
    memory: Memory
    time: StepTime


def recommend(config: RunConfig, machine: Machine) -> Plan | None:
    """Return the fastest way to run that fits with headroom, or None if nothing does.

    Among equally fast ways the largest micro-batch wins, whose passes use a GPU best, then the configured setting. The
    optimizer is offloaded only where nothing else fits: copies over the bus in every step cost more than anything that
    is estimated here.
    """
    own = own_case(config, machine)
    careful = machine._replace(memory_gib=machine.memory_gib * (1 - HEADROOM))
    for ways in (_on_the_gpu(config, own), _offloaded(config, own)):
        fitting = [plan_of(config, case, machine) for way in ways for case in _at_its_largest(config, way, careful)]
        if fitting:
            fastest = min(plan.time.total for plan in fitting)
            alike = [plan for plan in fitting if plan.time.total <= ALIKE * fastest]
            return max(alike, key=lambda plan: (plan.case.micro_batch_size, *_nearness(plan.case, own)))
    return None


def _nearness(case: Case, own: Case) -> tuple[bool, int]:
    """Return a key that is largest for the configured stage, then for lower stages."""
    return case.zero_stage == own.zero_stage, -case.zero_stage


def _at_its_largest(config: RunConfig, case: Case, machine: Machine) -> Iterator[Case]:
    if largest := largest_micro_batch(config, case, machine):
        yield replace(case, micro_batch_size=largest)


def _on_the_gpu(config: RunConfig, own: Case) -> Iterator[Case]:
    stages = (1, 2, 3) if own.bf16 and own.fp32_gradients else (0, 1, 2, 3)
    return _ways(config, own, stages, offload=False)


def _offloaded(config: RunConfig, own: Case) -> Iterator[Case]:
    return _ways(config, own, (1, 2, 3), offload=True)


def _ways(config: RunConfig, own: Case, stages: Sequence[int], *, offload: bool) -> Iterator[Case]:
    for checkpointing in recomputations(config):
        for stage in stages:
            yield at_stage(replace(own, checkpointing=checkpointing, offload=offload), stage)


def recomputations(config: RunConfig) -> tuple[bool, ...]:
    """Return the values of engine.activation_checkpointing that a configuration may have."""
    return (False, True) if workload_of(config).can_recompute else (False,)


def largest_micro_batch(config: RunConfig, case: Case, machine: Machine) -> int:
    """Return the largest micro-batch that divides a GPU's share of the global batch and fits, or 0 if none does."""
    share = config.global_batch_size // machine.gpus
    cases = [replace(case, micro_batch_size=size) for size in divisors(share)]
    return max((each.micro_batch_size for each in cases if fits(memory(config, each), machine)), default=0)


def own_case(config: RunConfig, machine: Machine) -> Case:
    """Return the configuration as is."""
    size, _ = micro_batches(config, machine.gpus)
    return case_of(config, gpus=machine.gpus, micro_batch_size=size)


def plan_of(config: RunConfig, case: Case, machine: Machine) -> Plan:
    """Return a case with its memory and time."""
    return Plan(case, memory(config, case), step_time(config, case, machine))


def fits(needed: Memory, machine: Machine) -> bool:
    """Return whether a GPU's memory suffices."""
    return needed.peak <= machine.memory_gib * GIB


def settings(case: Case, config: RunConfig) -> list[str]:
    """Return the `key=value` overrides that turn a configuration into this case, without those that change nothing."""
    engine, (size, _) = config.engine, micro_batches(config, case.gpus)
    own = case_of(config, gpus=case.gpus, micro_batch_size=size)
    words = [
        (case.zero_stage != own.zero_stage, f"engine.zero_stage={case.zero_stage}"),
        (case.checkpointing != own.checkpointing, f"engine.activation_checkpointing={_yaml(case.checkpointing)}"),
        (case.offload != own.offload, f"engine.offload={'optimizer' if case.offload else 'none'}"),
        (case.compiled != own.compiled, f"engine.compile={_yaml(case.compiled)}"),
        (case.fp32_gradients != own.fp32_gradients, "engine.gradient_dtype=bf16"),
        (case.micro_batch_size != own.micro_batch_size, f"micro_batch_size={case.micro_batch_size}"),
    ]
    if case.zero_stage == 0:
        words += [
            (case.overlap != own.overlap, "engine.overlap_communication=false"),
            (engine.reduce_bucket_size != 500_000_000, "engine.reduce_bucket_size=500_000_000"),
        ]
    return [word for changed, word in words if changed]


def _yaml(value: bool) -> str:
    return "true" if value else "false"
