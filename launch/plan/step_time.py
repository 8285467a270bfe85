"""Seconds of an optimizer step: computation, and the communication that nothing hides.

Communication follows DeepSpeed 0.19.8 with the settings of train/engine/engine.py (runtime/engine.py,
bf16_optimizer.py, zero/stage_1_and_2.py, zero/stage3.py); tests/launch/plan/test_communication.py counts the bytes on
two ranks. Collectives run as rings through all GPUs, at the speed of the slowest link; their latency is not counted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from launch.plan.case import FLOAT, Case, case_of
from launch.plan.machine import Machine
from launch.plan.workload import Workload, workload_of
from train.config.run import RunConfig

# Speeds relative to a compiled step without recomputation: 3 of 4 passes' worth of operations count; an assumption.
RECOMPUTING = 0.75
UNCOMPILED = 0.7
LAUNCH = 10e-6  # seconds that the CPU takes to launch a kernel; assumed

# Parameters at the end of a model that stage 3 keeps from the forward to the backward pass: half of
# stage3_max_reuse_distance, which counts both passes.
_REUSE = 500_000_000


class Transfer(NamedTuple):
    """Data that all GPUs exchange.

    Attributes:
        what: Description, with how often.
        size: Bytes of the whole tensor.
        rounds: Passes of the data around the ring: 2 for an all-reduce, 1 for an all-gather or a reduce-scatter.
        times: Number of times in an optimizer step.
        reduces: Whether it reduces gradients; otherwise it gathers weights.
    """

    what: str
    size: float
    rounds: int
    times: int
    reduces: bool

    def seconds_once(self, machine: Machine) -> float:
        """Return the time of one transfer: (n - 1) / n of the data passes each GPU per round."""
        return self.rounds * (machine.gpus - 1) / machine.gpus * self.size / machine.bandwidth

    def seconds(self, machine: Machine) -> float:
        """Return the time in an optimizer step."""
        return self.times * self.seconds_once(machine)


class StepTime(NamedTuple):
    """Seconds of an optimizer step."""

    computation: float
    communication: float  # in all
    exposed: float  # the part of it that computation does not hide

    @property
    def total(self) -> float:
        """Seconds from one step to the next."""
        return self.computation + self.exposed


def step_time(config: RunConfig, case: Case, machine: Machine) -> StepTime:
    """Estimate the time of an optimizer step; evaluation, checkpoints and measured steps are not counted."""
    work, passes = workload_of(config), num_passes(config, case)
    flops = config.global_batch_size / case.gpus * work.flops_per_sample
    computation = flops / (machine.card.peak_flops * expected_mfu(config, case, machine))
    computation = max(computation, passes * work.launches(case) * LAUNCH)
    exchanged = transfers(work, case, passes=passes)
    communication = sum(transfer.seconds(machine) for transfer in exchanged)
    if not can_overlap(case):
        return StepTime(computation, communication, communication)
    share = min(1.0, case.bucket / work.parameters)
    exposed = _exposed(exchanged, case, machine, bucket_share=share, pass_seconds=computation / passes)
    return StepTime(computation, communication, exposed)


def num_passes(config: RunConfig, case: Case) -> int:
    """Return the forward and backward passes of each GPU in an optimizer step."""
    return config.global_batch_size // case.gpus // case.micro_batch_size


def expected_mfu(config: RunConfig, case: Case, machine: Machine) -> float:
    """Return the expected share of the peak: the user's, which is that of the configuration as is, or a guess."""
    if machine.mfu is None:
        return workload_of(config).mfu * _relative_speed(case)
    own = case_of(config, gpus=case.gpus, micro_batch_size=case.micro_batch_size)
    return min(1.0, machine.mfu * _relative_speed(case) / _relative_speed(own))


def _relative_speed(case: Case) -> float:
    return (RECOMPUTING if case.checkpointing else 1.0) * (1.0 if case.compiled else UNCOMPILED)


def transfers(work: Workload, case: Case, *, passes: int) -> list[Transfer]:
    """Return what is exchanged in an optimizer step; nothing on one GPU.

    Gradients are all-reduced whole at stages 0 to 2, also where a rank keeps only its part: stages 1 and 2 combine the
    parts of all ranks in one all-reduce (`use_multi_rank_bucket_allreduce`, on by default). Stages 0 and 1 do so once a
    step, BF16_Optimizer with its fp32 sums; stages 2 and 3 after every pass.
    """
    if case.gpus == 1:
        return []
    dtype = "fp32" if case.gradient_size == FLOAT else "bf16"
    gradients, weights = float(case.gradient_size * work.parameters), case.itemsize * work.parameters
    if case.zero_stage == 3:
        again = case.itemsize * max(0, work.parameters - _REUSE)
        return [
            Transfer(f"{dtype} gradients scattered after each pass", gradients, 1, passes, reduces=True),
            Transfer("weights gathered in each pass", float(weights + again), 1, passes, reduces=False),
        ]
    times, often = (passes, "after each pass") if case.zero_stage == 2 else (1, "once a step")
    reduced = Transfer(f"{dtype} gradients all-reduced {often}", gradients, 2, times, reduces=True)
    if case.zero_stage == 0:
        return [reduced]
    return [reduced, Transfer("weights gathered once a step", float(weights), 1, 1, reduces=False)]


def can_overlap(case: Case) -> bool:
    """Return whether DeepSpeed communicates during the passes; BF16_Optimizer never does."""
    return case.overlap and case.zero_stage > 0 and not case.keeps_whole_gradients


def _exposed(
    exchanged: list[Transfer], case: Case, machine: Machine, *, bucket_share: float, pass_seconds: float
) -> float:
    """Return the seconds that a step waits for communication, given overlap.

    A bucket's reduction starts when it is full, and the next waits for it; stage 3 prefetches weights meanwhile.
    """
    backward = pass_seconds * (3 / 4 if case.checkpointing else 2 / 3)
    exposed = 0.0
    for transfer in exchanged:
        once = transfer.seconds_once(machine)
        if transfer.reduces:
            exposed += transfer.times * _beyond_backward(once, backward, bucket_share)
        elif case.zero_stage < 3:
            exposed += transfer.seconds(machine)
    if case.zero_stage == 3:  # gathers and reductions share the links
        in_all = sum(transfer.seconds(machine) for transfer in exchanged)
        exposed = max(exposed, in_all - exchanged[0].times * pass_seconds)
    return exposed


def _beyond_backward(reduction: float, backward: float, bucket_share: float) -> float:
    """Return how long reductions go on after the backward pass whose gradients they reduce.

    With buckets of equal size, the wait for the network is longest from the first full bucket, from the last full one,
    or from the rest at the end of the pass.
    """
    full = math.ceil(1 / bucket_share) - 1  # buckets before the last, which the end of the pass sends
    last = reduction * (1 - full * bucket_share)
    ends = [backward + last]
    if full:
        ends.append(bucket_share * backward + reduction)
        ends.append(full * bucket_share * backward + reduction * bucket_share + last)
    return max(ends) - backward
