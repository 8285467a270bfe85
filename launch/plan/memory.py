"""Closed-form estimate of one GPU's memory, by part, for every ZeRO stage: micro-step peak and optimizer-step peak.

DeepSpeed 0.19.8's allocations and their timing were measured with torch's profiler on one and two ranks;
tests/launch/plan/test_memory.py repeats the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from launch.plan import shape
from modeling.decoder.facts_counts_periln import count_parameters
from modeling.decoder.facts_periln import loss_chunk_tokens
from train.config.facts.optimizers import OPTIMIZERS, OptimizerFacts
from train.config.run import RunConfig

GIB = 2**30
CONTEXT = round(1.5 * GIB)  # CUDA context, cuBLAS workspaces, NCCL channels; what an "80 GB" card lacks of 80 GiB
FRAGMENTATION = 0.05  # share of all transient memory: activations, loss, buffers

# In elements. The first is hard-coded in DeepSpeed; train/engine/engine.py writes the others into its configuration.
_FALLBACK_BUCKET = 500_000_000  # used by stage 0, and by stage 1 with fp32 gradients, whatever the configuration says
_MAX_LIVE, _PREFETCH, _SUB_GROUP = 1_000_000_000, 50_000_000, 1_000_000_000  # stage 3
_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Case:
    """Everything but the model that determines memory."""

    zero_stage: int
    gpus: int
    micro_batch_size: int
    checkpointing: bool
    compiled: bool
    bf16: bool  # else fp32
    fp32_gradients: bool
    offload: bool
    overlap: bool
    bucket: int  # elements
    optimizer: OptimizerFacts

    @property
    def itemsize(self) -> int:
        """Bytes of a weight and of an activation."""
        return 2 if self.bf16 else _FLOAT

    @property
    def gradient_size(self) -> int:
        """Bytes of a gradient as it is accumulated and reduced."""
        return _FLOAT if self.fp32_gradients or not self.bf16 else 2

    @property
    def keeps_whole_gradients(self) -> bool:
        """Whether every GPU accumulates all gradients in fp32: DeepSpeed's BF16_Optimizer."""
        return self.zero_stage == 1 and self.bf16 and self.fp32_gradients and not self.offload


class Memory(NamedTuple):
    """Bytes on one GPU by part, at the peak of a micro-step."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float  # gradient buckets, gathered weights
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


def case_of(config: RunConfig, *, gpus: int, micro_batch_size: int) -> Case:
    """Return the case that a configuration describes on GPUs, where `precision: auto` means bf16."""
    engine = config.engine
    bf16 = engine.precision != "fp32"
    return Case(
        zero_stage=engine.zero_stage,
        gpus=gpus,
        micro_batch_size=micro_batch_size,
        checkpointing=engine.activation_checkpointing,
        compiled=engine.compile,
        bf16=bf16,
        fp32_gradients=engine.gradient_dtype == "fp32",
        offload=engine.offload == "optimizer",
        overlap=engine.overlap_communication,
        bucket=engine.reduce_bucket_size,
        optimizer=OPTIMIZERS[config.optim.optimizer],
    )


def at_stage(case: Case, zero_stage: int) -> Case:
    """Return the case at another stage, without the options that this stage does not support."""
    if zero_stage == 0:  # DeepSpeed cannot accumulate bf16 gradients in fp32 there
        fp32 = not case.bf16
        return replace(case, zero_stage=0, fp32_gradients=fp32, offload=False, overlap=False)
    return replace(case, zero_stage=zero_stage, compiled=case.compiled and zero_stage < 3)


def memory(config: RunConfig, case: Case) -> Memory:
    """Estimate the memory of one GPU during training."""
    counts = count_parameters(shape.decoder_shape(config))
    weights, gradients, optimizer = model_state_bytes(counts.total, case)
    peak = max(pass_peaks(config, case), key=sum)
    update = update_bytes(counts.groups, case)
    margin = FRAGMENTATION * max(sum(peak), update)
    return Memory(weights, gradients, optimizer, *peak, update, CONTEXT, margin)


def pass_peaks(config: RunConfig, case: Case) -> list[PassPeak]:
    """Return the points of a forward and backward pass that may be its peak.

    These are the loss; the first layer of the backward pass, with the head's gradient already in the bucket; and the
    reduction of the first full bucket, by which time the layers above have freed their activations.
    """
    counts = count_parameters(shape.decoder_shape(config))
    parameters, vocabulary = counts.total, counts.head or counts.embedding
    activations, layer = activation_bytes(config, case), layer_backward_bytes(config, case)
    bucket = case.gradient_size * min(case.bucket, parameters)
    filling = case.gradient_size * min(case.bucket, vocabulary) + bucket * (1 + case.overlap)
    live, gathering = gathered_weights(parameters, case)
    if case.zero_stage == 0 or case.keeps_whole_gradients:
        return [PassPeak(0.0, activations, max(head_bytes(config, case), layer))]
    if case.zero_stage == 1:  # the bucket stays allocated between passes
        return [PassPeak(bucket * (1 + case.overlap), activations, max(head_bytes(config, case), layer))]
    left = max(0.0, 1 - case.bucket / parameters)
    return [
        PassPeak(live + gathering, activations, head_bytes(config, case)),
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
        return weights, case.itemsize * parameters, (state + _FLOAT * case.bf16) * parameters
    optimizer = 0.0 if case.offload else (state + _FLOAT) * share
    if case.keeps_whole_gradients:  # autograd's in bf16, and their sum in fp32
        gradients = (2 + _FLOAT) * parameters
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
        return float(max(size * min(parameters, _FALLBACK_BUCKET), _FLOAT * parameters if case.bf16 else 0))
    if case.keeps_whole_gradients:  # groups are flat tensors: a bucket ends with the tensor that overfills it
        return float(max(_FLOAT * _largest_copy(groups), case.itemsize * min(parameters, case.bucket)))
    gathered = case.itemsize * min(parameters, case.bucket) if case.gpus > 1 and stage < 3 else 0
    if case.offload:
        return float(gathered)
    sub_group = min(largest, _SUB_GROUP * case.gpus) if stage == 3 else largest
    flat = (size if size < _FLOAT else 0) + _FLOAT  # flattened in their own dtype, then converted to fp32
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


# ----------------------------------------------------------------------------------------- activations and the loss


def activation_bytes(config: RunConfig, case: Case) -> float:
    """Return the bytes that the forward pass saves; with checkpointing, only the input of each layer."""
    model, tokens = shape.decoder_shape(config), _tokens(config, case)
    outside = (3 + model.embedding_norm) * model.hidden_size * case.itemsize  # final norm, its output and its gradient
    if case.checkpointing:
        layers = model.num_hidden_layers * model.hidden_size * case.itemsize
    else:
        layers = sum(_saved_per_token(config, case, placement) for placement in model.layer_norm_placements)
    return float(tokens * (layers + outside))


def _saved_per_token(config: RunConfig, case: Case, placement: str) -> int:
    return shape.kept_per_token(
        shape.decoder_shape(config),
        placement,
        itemsize=case.itemsize,
        compiled=case.compiled,
        attention=shape.decoder_task(config).attention,
        sequence_length=shape.decoder_task(config).data.sequence_length,
    )


def head_bytes(config: RunConfig, case: Case) -> float:
    """Return the bytes of the chunked loss: several forms of a chunk's logits, and the fp32 gradient of the head."""
    model, tokens = shape.decoder_shape(config), _tokens(config, case)
    size = case.itemsize
    chunk = min(tokens, loss_chunk_tokens(model.vocab_size, "cuda")) * model.vocab_size
    weight = model.padded_vocab_size * model.hidden_size
    # Compiled: logits and their gradient. Otherwise: logits, an fp32 copy if they are bf16, logsumexp's exponentials.
    forms = 2 * size if case.compiled else size + _FLOAT + (_FLOAT if case.bf16 else 0)
    hidden = tokens * model.hidden_size * size
    forward = chunk * forms + _FLOAT * weight + hidden
    backward = (2 * size * case.bf16 + _FLOAT * (1 + (not case.bf16))) * weight + hidden
    return float(max(forward, backward))


def layer_backward_bytes(config: RunConfig, case: Case) -> float:
    """Return the bytes of one layer's backward pass: gradients of its tensors, and recomputed ones with checkpointing.

    The MLP comes first, when all the layer's saved tensors are still allocated; the attention follows once the MLP's
    are freed. The attention kernel accumulates the gradient of the queries in fp32 and, with grouped queries, expands
    those of keys and values.
    """
    model, tokens = shape.decoder_shape(config), _tokens(config, case)
    query, key, mlp = model.query_width, model.key_width, model.intermediate_size
    in_mlp = (model.hidden_size + mlp) * case.itemsize
    in_attention = (2 * model.hidden_size + 3 * query + 2 * key - 3 * mlp) * case.itemsize
    task = shape.decoder_task(config)
    weights = 2 * model.num_attention_heads * task.data.sequence_length if task.attention == "eager" else 0
    in_attention += _FLOAT * (query + weights)
    recomputed = 0
    if case.checkpointing:
        recomputed = max(_saved_per_token(config, case, name) for name in model.layer_norm_placements)
    return float(tokens * (max(in_mlp, in_attention) + recomputed))


def _tokens(config: RunConfig, case: Case) -> int:
    return case.micro_batch_size * shape.decoder_task(config).data.sequence_length
