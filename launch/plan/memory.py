"""Closed-form estimate of one GPU's memory, by part, for every ZeRO stage: micro-step peak and optimizer-step peak.

DeepSpeed 0.19.8's allocations and their timing were measured with torch's profiler on one and two ranks;
tests/launch/plan/test_memory.py repeats the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from launch.plan.case import FLOAT, Case
from launch.plan.workload import Workload, workload_of
from train.config.run import RunConfig

GIB = 2**30
CONTEXT = round(1.5 * GIB)  # CUDA context, cuBLAS workspaces, NCCL channels
FRAGMENTATION = 0.05  # share of all transient memory: activations, loss, buffers

# In elements. The first is hard-coded in DeepSpeed; train/engine/engine.py writes the others into its configuration.
_FALLBACK_BUCKET = 500_000_000  # used by stage 0, and by stage 1 with fp32 gradients, whatever the configuration says
_MAX_LIVE, _PREFETCH, _SUB_GROUP = 1_000_000_000, 50_000_000, 1_000_000_000  # stage 3


class Memory(NamedTuple):
    """Bytes on one GPU by part, at the peak of a micro-step."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float  # gradient buckets, bf16 gradients of a pass, gathered weights
    activations: float
    loss: float  # or the backward pass of a layer, if the peak is there
    update: float  # copies during the optimizer step, after activations, loss and buffers have been freed
    context: float
    margin: float

    @property
    def persistent(self) -> float:
        """Bytes that are allocated all the time."""
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> float:
        """Bytes at the larger of two peaks: the micro-step's and the optimizer step's."""
        micro_step = self.buffers + self.activations + self.loss
        return self.persistent + max(micro_step, self.update) + self.context + self.margin


class PassPeak(NamedTuple):
    """Transient bytes at a point of the forward and backward pass that may be its peak."""

    buffers: float
    activations: float
    loss: float


def memory(config: RunConfig, case: Case) -> Memory:
    """Estimate the memory of one GPU during training, in the steps that need most."""
    work = workload_of(config)
    weights, gradients, optimizer = model_state_bytes(work.parameters, case)
    weights += case.itemsize * work.buffers  # ZeRO does not partition what is not trained
    peak = max(pass_peaks(work, case), key=sum)
    update = update_bytes(work.groups, case)
    margin = FRAGMENTATION * max(sum(peak), update)
    return Memory(weights, gradients, optimizer, *peak, update, CONTEXT, margin)


def pass_peaks(work: Workload, case: Case) -> list[PassPeak]:
    """Return the points of a forward and backward pass that may be its peak.

    These are the loss; the first layer of the backward pass, with the head's gradient already in the bucket; and the
    reduction of the first full bucket, by which time the layers above have freed their activations. Where gradients
    have a place of their own, or are added to their fp32 sum as soon as they are there, the first two suffice.
    """
    parameters = work.parameters
    activations, loss, layer = work.activation_bytes(case), work.loss_bytes(case), work.backward_bytes(case)
    bucket = case.gradient_size * min(case.bucket, parameters)
    filling = case.gradient_size * min(case.bucket, work.first_gradient) + bucket * (1 + case.overlap)
    live, gathering = gathered_weights(parameters, case)
    if case.zero_stage == 0 or case.keeps_whole_gradients:
        return [PassPeak(0.0, activations, max(loss, layer))]
    if case.zero_stage == 1:  # the bucket stays allocated between passes
        return [PassPeak(bucket * (1 + case.overlap), activations, max(loss, layer))]
    left = max(0.0, 1 - case.bucket / parameters)
    return [
        PassPeak(live + gathering, activations, loss),
        PassPeak(filling + live + gathering, activations, layer),
        PassPeak(bucket * (2 + case.overlap) + (live if left else 0.0), activations * left, layer if left else 0.0),
    ]


# ------------------------------------------------------------------------------------------- state partitioned by ZeRO


def model_state_bytes(parameters: int, case: Case) -> tuple[float, float, float]:
    """Return the bytes of weights, gradients and optimizer state that a GPU holds between micro-steps."""
    share = parameters / case.gpus
    stage = case.zero_stage
    state = case.optimizer.state_bytes
    weights = case.itemsize * (share if stage == 3 else parameters)
    if stage == 0:
        return weights, case.itemsize * parameters, (state + FLOAT * case.bf16) * parameters
    optimizer = 0.0 if case.offload else (state + FLOAT) * share
    if case.keeps_whole_gradients:  # their fp32 sum; bf16 gradients are freed one by one
        gradients = FLOAT * parameters
    elif stage == 1:
        gradients = case.itemsize * parameters
    else:
        gradients = 0.0 if case.offload else case.gradient_size * share
    return weights, gradients, optimizer


def gathered_weights(parameters: int, case: Case) -> tuple[float, float]:
    """Return the bytes of the weights that stage 3 has gathered, and of those it is prefetching."""
    if case.zero_stage < 3 or case.gpus == 1:
        return 0.0, 0.0
    return float(case.itemsize * min(parameters, _MAX_LIVE)), float(case.itemsize * min(parameters, _PREFETCH))


def update_bytes(groups: Sequence[int], case: Case) -> float:
    """Return the bytes of the copies made after the last backward pass, for the reduction and the optimizer step.

    Args:
        groups: Number of parameters in each parameter group.
        case: Everything but the model that determines memory.
    """
    parameters, largest = sum(groups), max(groups)
    stage, size = case.zero_stage, case.gradient_size
    if stage == 0:
        return float(max(size * min(parameters, _FALLBACK_BUCKET), FLOAT * parameters if case.bf16 else 0))
    if case.keeps_whole_gradients:  # groups are flat tensors: a bucket ends with the tensor that overfills it
        return float(max(FLOAT * _largest_copy(groups), case.itemsize * min(parameters, case.bucket)))
    gathered = case.itemsize * min(parameters, case.bucket) if case.gpus > 1 and stage < 3 else 0
    if case.offload:
        return float(gathered)
    sub_group = min(largest, _SUB_GROUP * case.gpus) if stage == 3 else largest
    flat = (size if size < FLOAT else 0) + FLOAT  # flattened in their own dtype, then converted to fp32
    if stage == 2 and case.bf16 and case.fp32_gradients:  # accumulated in a flat buffer: no need to flatten
        flat = 0
    clone = size * parameters / case.gpus if stage == 1 or (stage == 2 and flat) else 0.0
    return max(clone, flat * sub_group / case.gpus, float(gathered))


def _largest_copy(groups: Sequence[int]) -> int:
    """Return the elements of the largest flat copy made for a reduction: a one-tensor bucket is reduced in place."""
    largest = filled = tensors = 0
    for size in (group for group in groups if group):
        filled, tensors = filled + size, tensors + 1
        largest = max(largest, filled if tensors > 1 else 0)
        if filled > _FALLBACK_BUCKET:
            filled = tensors = 0
    return largest
