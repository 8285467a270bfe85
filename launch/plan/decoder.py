"""Closed forms for a run that trains a decoder: counts, operations, and the tensors of a forward and backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from launch.plan import decoder_layer
from launch.plan.case import FLOAT, Case
from modeling.decoder.facts_counts_periln import (
    ParameterCounts,
    count_frozen_scales,
    count_parameters,
    flops_per_token,
)
from modeling.decoder.facts_periln import DecoderShape, loss_chunk_tokens
from train.config.tasks.language_model import LanguageModelConfig

_OPERATIONS = {"layer": 63, "recomputed layer": 25, "outside": 56}  # of a pass, counted with a dispatch mode
FAST_HEAD_WIDTH = 128  # the widest that torch's cuDNN attention trains, but for 256 with cuDNN above 9.22


@dataclass(frozen=True)
class DecoderWorkload:
    """A decoder and its windows of tokens."""

    task: LanguageModelConfig
    sample: str = "window"
    mfu: float = 0.4  # typical of compiled bf16 training of such models on an H100
    can_recompute: bool = True

    @cached_property
    def model(self) -> DecoderShape:
        """Shape of the decoder."""
        return DecoderShape.of(self.task.model)

    @cached_property
    def counts(self) -> ParameterCounts:
        """Its parameters by part."""
        return count_parameters(self.model)

    @property
    def tokens(self) -> int:
        """Tokens per sample."""
        return self.task.data.sequence_length

    @property
    def samples_in_words(self) -> str:
        """What the samples are."""
        return f"windows of {self.tokens} tokens"

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return self.counts.total

    @property
    def groups(self) -> tuple[int, ...]:
        """Number of parameters in each of the optimizer's groups."""
        return self.counts.groups

    @property
    def first_gradient(self) -> int:
        """Number of parameters whose gradient comes first and in one piece: the head's."""
        return self.counts.head or self.counts.embedding

    @property
    def buffers(self) -> int:
        """Elements that are saved with the weights but not trained."""
        return count_frozen_scales(self.model)

    @property
    def exported_itemsize(self) -> int:
        """Bytes of a weight in an exported folder."""
        return 2

    @property
    def flops_per_sample(self) -> float:
        """Operations of a training step per sample, without recomputation."""
        return self.tokens * flops_per_token(self.model, self.tokens)

    def launches(self, case: Case) -> int:
        """Return the kernels of a pass, which bound the time of a small one; compiled about half as many (assumed)."""
        in_layer = _OPERATIONS["layer"] + _OPERATIONS["recomputed layer"] * case.checkpointing
        kernels = in_layer * self.model.num_hidden_layers + _OPERATIONS["outside"]
        return kernels // 2 if case.compiled else kernels

    def count_lines(self) -> Iterator[str]:
        """Yield parameters by part and operations."""
        for name in ("embedding", "head", "attention", "mlp", "norms"):
            note = "  (tied to the embedding)" if name == "head" and not self.counts.head else ""
            yield f"{name:30}{getattr(self.counts, name):>18,}{note}"
        yield f"{'parameters':30}{self.counts.total:>18,}"
        yield f"{'  without embedding and head':30}{self.counts.without_vocabulary:>18,}"
        flops = flops_per_token(self.model, self.tokens)
        yield f"{'training FLOPs per token':30}{flops:>18,.0f}  (6 N + 6 L H K T, causal attention counted once)"

    def remarks(self) -> Iterator[str]:
        """Yield remarks on the speed of attention."""
        width = self.model.head_width
        if width <= FAST_HEAD_WIDTH:
            return
        yield f"Attention: head width {width}: probably no fast kernel; torch's cuDNN path trains widths up to 128, and"
        yield "  256 with cuDNN above 9.22; others take FlashAttention 2, at about half the speed on an H100."
        if alternative := narrower_heads(self.model):
            words = [f"task.model.{key}={value}" for key, value in alternative.items()]
            yield f"  As many parameters at width {FAST_HEAD_WIDTH}: {' '.join(words)}"

    # ------------------------------------------------------------------------------------ activations and the loss

    def activation_bytes(self, case: Case) -> float:
        """Return the bytes that the forward pass saves; with checkpointing, only the input of each layer."""
        model = self.model
        outside = (3 + model.embedding_norm) * model.hidden_size * case.itemsize  # final norm, its output and gradient
        if case.checkpointing:
            layers = model.num_hidden_layers * model.hidden_size * case.itemsize
        else:
            layers = sum(self._saved_per_token(case, placement) for placement in model.layer_norm_placements)
        return float(self._tokens(case) * (layers + outside))

    def loss_bytes(self, case: Case) -> float:
        """Return the bytes of the chunked loss: forms of a chunk's logits, and the fp32 gradient of the head."""
        model, tokens, size = self.model, self._tokens(case), case.itemsize
        chunk = min(tokens, loss_chunk_tokens(model.vocab_size, "cuda")) * model.padded_vocab_size
        weight = model.padded_vocab_size * model.hidden_size
        # Compiled, in measured steps too: logits and their gradient. Otherwise: logits, an fp32 copy if they are bf16,
        # logsumexp's exponentials.
        forms = 2 * size if case.compiled else size + FLOAT + (FLOAT if case.bf16 else 0)
        hidden = tokens * model.hidden_size * size
        forward = chunk * forms + FLOAT * weight + hidden
        backward = (2 * size * case.bf16 + FLOAT * (1 + (not case.bf16))) * weight + hidden
        return float(max(forward, backward))

    def backward_bytes(self, case: Case) -> float:
        """Return the bytes of a layer's backward pass: gradients of its tensors, and recomputed ones if checkpointed.

        The MLP comes first, when all the layer's saved tensors are still allocated; the attention follows once the
        MLP's are freed. The attention kernel accumulates the gradient of the queries in fp32 and, with grouped queries,
        expands those of keys and values.
        """
        model = self.model
        query, key, mlp = model.query_width, model.key_width, model.intermediate_size
        in_mlp = (model.hidden_size + mlp) * case.itemsize
        in_attention = (2 * model.hidden_size + 3 * query + 2 * key - 3 * mlp) * case.itemsize
        weights = 2 * model.num_attention_heads * self.tokens if self.task.attention == "eager" else 0
        in_attention += FLOAT * (query + weights)
        recomputed = 0
        if case.checkpointing:
            recomputed = max(self._saved_per_token(case, name) for name in model.layer_norm_placements)
        return float(self._tokens(case) * (max(in_mlp, in_attention) + recomputed))

    def _saved_per_token(self, case: Case, placement: str) -> int:
        return decoder_layer.kept_per_token(
            self.model,
            placement,
            itemsize=case.itemsize,
            compiled=case.compiled_throughout,
            attention=self.task.attention,
            sequence_length=self.tokens,
        )

    def _tokens(self, case: Case) -> int:
        return case.micro_batch_size * self.tokens


def narrower_heads(model: DecoderShape) -> dict[str, int]:
    """Return the settings of heads of FAST_HEAD_WIDTH with as many parameters; empty if there are none."""
    heads, groups = model.query_width / FAST_HEAD_WIDTH, model.key_width / FAST_HEAD_WIDTH
    if not (heads.is_integer() and groups.is_integer() and heads % groups == 0):
        return {}
    settings = {"num_attention_heads": int(heads), "num_key_value_heads": int(groups)}
    if model.head_dim is not None:
        settings["head_dim"] = FAST_HEAD_WIDTH
    other = replace(model, **settings)
    return settings if count_parameters(other).total == count_parameters(model).total else {}
