"""The memory of one GPU in closed form, by part, for every ZeRO stage: what a pass needs, and what the update needs.

What DeepSpeed 0.19.8 holds and when was measured with torch's profiler on one and two ranks; tests/launch/
test_plan_memory.py repeats it. P parameters, n GPUs, B elements of the bucket that gradients are reduced in.
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
CONTEXT = round(1.5 * GIB)  # CUDA context, cuBLAS workspaces, NCCL's channels; what an "80 GB" card lacks of 80 GiB
FRAGMENTATION = 0.05  # of all that comes and goes: activations, loss, buffers

# Elements; train/engine/engine.py writes them into DeepSpeed's configuration, the first is DeepSpeed's own.
_FALLBACK_BUCKET = 500_000_000  # stage 0 and stage 1 with fp32 gradients reduce in these, whatever the configuration
_MAX_LIVE, _PREFETCH, _SUB_GROUP = 1_000_000_000, 50_000_000, 1_000_000_000  # stage 3
_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Case:
    """What memory depends on beside the model."""

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
        """Bytes of a gradient that is accumulated and reduced."""
        return _FLOAT if self.fp32_gradients or not self.bf16 else 2

    @property
    def keeps_whole_gradients(self) -> bool:
        """Whether every GPU accumulates all gradients in fp32: DeepSpeed's BF16_Optimizer."""
        return self.zero_stage == 1 and self.bf16 and self.fp32_gradients and not self.offload


class Memory(NamedTuple):
    """Bytes on one GPU by part, at the fullest moment of a pass."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float  # buckets of gradients, gathered weights
    activations: float
    loss: float  # or, where that moment is fuller, the backward pass of a layer
    update: float  # copies at the optimizer step, when activations, loss and buffers are gone
    context: float
    margin: float

    @property
    def kept(self) -> float:
        """What is there all the time."""
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> float:
        """The larger of what a pass and what the update needs."""
        passing = self.buffers + self.activations + self.loss
        return self.kept + max(passing, self.update) + self.context + self.margin


class Moment(NamedTuple):
    """What comes and goes, at one moment of a pass."""

    buffers: float
    activations: float
    loss: float


def case_of(config: RunConfig, *, gpus: int, micro_batch_size: int) -> Case:
    """Return the case that a configuration describes on GPUs, where `precision: auto` is bf16."""
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
    """Return the case at another stage, with what that stage does not have taken away."""
    if zero_stage == 0:  # DeepSpeed has no fp32 accumulation there in bf16
        fp32 = not case.bf16
        return replace(case, zero_stage=0, fp32_gradients=fp32, offload=False, overlap=False)
    return replace(case, zero_stage=zero_stage, compiled=case.compiled and zero_stage < 3)


def memory(config: RunConfig, case: Case) -> Memory:
    """Reckon the memory of one GPU while training."""
    counts = count_parameters(shape.decoder_shape(config))
    weights, gradients, optimizer = held(counts.total, case)
    fullest = max(moments(config, case), key=sum)
    update = update_bytes(counts.groups, case)
    margin = FRAGMENTATION * max(sum(fullest), update)
    return Memory(weights, gradients, optimizer, *fullest, update, CONTEXT, margin)


def moments(config: RunConfig, case: Case) -> list[Moment]:
    """Return the moments of a pass that may be its fullest.

    The loss; the first layer of the backward pass, when the head's gradient already lies in the bucket; and the
    moment when the bucket is full and on its way, but the layers above have given their activations back.
    """
    counts = count_parameters(shape.decoder_shape(config))
    parameters, vocabulary = counts.total, counts.head or counts.embedding
    activations, layer = activation_bytes(config, case), layer_backward_bytes(config, case)
    bucket = case.gradient_size * min(case.bucket, parameters)
    filling = case.gradient_size * min(case.bucket, vocabulary) + bucket * (1 + case.overlap)
    live, gathering = gathered_weights(parameters, case)
    if case.zero_stage == 0 or case.keeps_whole_gradients:
        return [Moment(0.0, activations, max(head_bytes(config, case), layer))]
    if case.zero_stage == 1:  # the bucket stays from pass to pass
        return [Moment(bucket * (1 + case.overlap), activations, max(head_bytes(config, case), layer))]
    left = max(0.0, 1 - case.bucket / parameters)
    return [
        Moment(live + gathering, activations, head_bytes(config, case)),
        Moment(filling + live + gathering, activations, layer),
        Moment(bucket * (2 + case.overlap) + (live if left else 0.0), activations * left, layer if left else 0.0),
    ]


# ------------------------------------------------------------------------------------------------ what ZeRO shares out


def held(parameters: int, case: Case) -> tuple[float, float, float]:
    """Return the bytes of weights, gradients and optimizer state that a GPU holds between its micro-steps."""
    share = parameters / case.gpus
    stage = case.zero_stage
    state = case.optimizer.state_bytes
    weights = case.itemsize * (share if stage == 3 else parameters)
    if stage == 0:
        return weights, case.itemsize * parameters, (state + _FLOAT * case.bf16) * parameters
    optimizer = 0.0 if case.offload else (state + _FLOAT) * share
    if case.keeps_whole_gradients:  # in bf16 as autograd leaves them, and their sum in fp32
        gradients = (2 + _FLOAT) * parameters
    elif stage == 1:
        gradients = case.itemsize * parameters
    else:
        gradients = 0.0 if case.offload else case.gradient_size * share
    return weights, gradients, optimizer


def gathered_weights(parameters: int, case: Case) -> tuple[float, float]:
    """Return the bytes of the weights that stage 3 has gathered, and of those it is gathering."""
    if case.zero_stage < 3 or case.gpus == 1:
        return 0.0, 0.0
    return float(case.itemsize * min(parameters, _MAX_LIVE)), float(case.itemsize * min(parameters, _PREFETCH))


def update_bytes(groups: Sequence[int], case: Case) -> float:
    """Return the bytes of the copies after the last backward pass: for reducing, then for the optimizer's step.

    Args:
        groups: Parameters of each of the optimizer's groups.
        case: What it depends on.
    """
    parameters, largest = sum(groups), max(groups)
    stage, size = case.zero_stage, case.gradient_size
    if stage == 0:
        return float(max(size * min(parameters, _FALLBACK_BUCKET), _FLOAT * parameters if case.bf16 else 0))
    if case.keeps_whole_gradients:  # groups are flat tensors: a bucket ends with the one that overfills it
        return float(max(_FLOAT * _largest_copy(groups), case.itemsize * min(parameters, case.bucket)))
    gathered = case.itemsize * min(parameters, case.bucket) if case.gpus > 1 and stage < 3 else 0
    if case.offload:
        return float(gathered)
    sub_group = min(largest, _SUB_GROUP * case.gpus) if stage == 3 else largest
    flat = (size if size < _FLOAT else 0) + _FLOAT  # flattened as they are, then in fp32
    if stage == 2 and case.bf16 and case.fp32_gradients:  # accumulated in one flat buffer: nothing to flatten
        flat = 0
    clone = size * parameters / case.gpus if stage == 1 or (stage == 2 and flat) else 0.0
    return max(clone, flat * sub_group / case.gpus, float(gathered))


def _largest_copy(groups: Sequence[int]) -> int:
    """Return the elements of the largest flat copy that is reduced: a bucket of one tensor is reduced in place."""
    largest = filled = tensors = 0
    for size in (group for group in groups if group):
        filled, tensors = filled + size, tensors + 1
        largest = max(largest, filled if tensors > 1 else 0)
        if filled > _FALLBACK_BUCKET:
            filled = tensors = 0
    return largest


# ------------------------------------------------------------------------------------------------ what a pass computes


def activation_bytes(config: RunConfig, case: Case) -> float:
    """Return the bytes of all that the forward pass keeps; with checkpointing each layer keeps its input alone."""
    model, tokens = shape.decoder_shape(config), _tokens(config, case)
    outside = (3 + model.embedding_norm) * model.hidden_size * case.itemsize  # final norm, its output and its gradient
    if case.checkpointing:
        layers = model.num_hidden_layers * model.hidden_size * case.itemsize
    else:
        layers = sum(_kept(config, case, placement) for placement in model.layer_norm_placements)
    return float(tokens * (layers + outside))


def _kept(config: RunConfig, case: Case, placement: str) -> int:
    return shape.kept_per_token(
        shape.decoder_shape(config),
        placement,
        itemsize=case.itemsize,
        compiled=case.compiled,
        attention=shape.decoder_task(config).attention,
        sequence_length=shape.decoder_task(config).data.sequence_length,
    )


def head_bytes(config: RunConfig, case: Case) -> float:
    """Return the bytes of the chunked loss: logits of a chunk in several forms, and the fp32 gradient of the head."""
    model, tokens = shape.decoder_shape(config), _tokens(config, case)
    size = case.itemsize
    chunk = min(tokens, loss_chunk_tokens(model.vocab_size, "cuda")) * model.vocab_size
    weight = model.padded_vocab_size * model.hidden_size
    # Compiled: logits and their gradient. Else: logits, an fp32 copy where they are none, logsumexp's exponentials.
    forms = 2 * size if case.compiled else size + _FLOAT + (_FLOAT if case.bf16 else 0)
    hidden = tokens * model.hidden_size * size
    forward = chunk * forms + _FLOAT * weight + hidden
    backward = (2 * size * case.bf16 + _FLOAT * (1 + (not case.bf16))) * weight + hidden
    return float(max(forward, backward))


def layer_backward_bytes(config: RunConfig, case: Case) -> float:
    """Return the bytes of one layer's backward pass: gradients of its tensors; recomputed ones with checkpointing.

    The MLP comes first, when all that the layer keeps is still there; the attention when the MLP's is gone. Its kernel
    sums the queries' gradient in fp32 and, with grouped queries, widens those of keys and values.
    """
    model, tokens = shape.decoder_shape(config), _tokens(config, case)
    query, key, mlp = model.query_width, model.key_width, model.intermediate_size
    in_mlp = (model.hidden_size + mlp) * case.itemsize
    in_attention = (2 * model.hidden_size + 3 * query + 2 * key - 3 * mlp) * case.itemsize
    weights = 2 * model.num_attention_heads * shape.decoder_task(config).data.sequence_length if _eager(config) else 0
    in_attention += _FLOAT * (query + weights)
    again = max(_kept(config, case, name) for name in model.layer_norm_placements) if case.checkpointing else 0
    return float(tokens * (max(in_mlp, in_attention) + again))


def _tokens(config: RunConfig, case: Case) -> int:
    return case.micro_batch_size * shape.decoder_task(config).data.sequence_length


def _eager(config: RunConfig) -> bool:
    return shape.decoder_task(config).attention == "eager"
