"""The decoder's sizes in closed form from its configuration: parameters by part, operations, what a layer keeps.

Nothing is built and torch is not imported; tests/launch/plan/test_shape.py holds every count equal to the model's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from train.config.errors import ConfigError
from train.config.language_model import DecoderConfig, LanguageModelConfig
from train.config.run import RunConfig

# Stream-wide tensors (N, D) that a layer keeps for its backward pass, by placement: inputs of norms and of
# projections. Compiled, a layer computes some of them again. Counted with saved-tensor hooks.
_KEPT_STREAMS = {"pre": 4, "post": 4, "peri": 6, "output": 4}
_KEPT_STREAMS_COMPILED = {"pre": 4, "post": 4, "peri": 5, "output": 4}
_KEPT_MLP, _KEPT_MLP_COMPILED = 4, 3  # (N, F): gate, up, act(gate) and their product; compiled without act(gate)
_NORMS = {"pre": 1, "post": 1, "peri": 2, "output": 1}  # of a sub-layer
_FLOAT = 4  # bytes


def decoder_task(config: RunConfig) -> LanguageModelConfig:
    """Return the task of a run that trains a decoder.

    Raises:
        ConfigError: It trains something else, whose sizes are not known in closed form.
    """
    if isinstance(config.task, LanguageModelConfig):
        return config.task
    raise ConfigError(
        [
            f"task.kind: a plan can be made for language_model only, not for {config.task.kind}; "
            f"python -m train CONFIG --describe counts its parameters"
        ]
    )


class Parameters(NamedTuple):
    """How many parameters there are, by part; a tied head is none, frozen scales are none."""

    embedding: int
    head: int
    attention: int
    mlp: int
    norms: int
    output_norms: int  # those of `norms` on what a sub-layer writes (placements peri and output)

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.head + self.attention + self.mlp + self.norms

    @property
    def without_vocabulary(self) -> int:
        """All but embedding and head, as the sizes of papers are stated."""
        return self.attention + self.mlp + self.norms

    @property
    def groups(self) -> tuple[int, ...]:
        """The optimizer's groups in their order: matrices, embedding, output norms, other norms."""
        return (
            self.head + self.attention + self.mlp,
            self.embedding,
            self.output_norms,
            self.norms - self.output_norms,
        )


class Widths(NamedTuple):
    """Widths of a layer's tensors, per token."""

    stream: int  # D
    query: int  # H K
    key: int  # G K: key and value have so much each
    mlp: int  # F
    heads: int  # H
    key_heads: int  # G


def widths(model: DecoderConfig) -> Widths:
    """Return the widths of a layer's tensors."""
    head = model.head_dim or model.hidden_size // model.num_attention_heads
    heads, key_heads = model.num_attention_heads, model.num_key_value_heads
    return Widths(model.hidden_size, heads * head, key_heads * head, model.intermediate_size, heads, key_heads)


def placements(model: DecoderConfig) -> tuple[str, ...]:
    """Return each layer's norm placement."""
    names = model.norm_placement
    return (names,) * model.num_hidden_layers if isinstance(names, str) else names


def padded_vocabulary(model: DecoderConfig) -> int:
    """Return the rows of the embedding."""
    return -(-model.vocab_size // model.vocab_size_multiple) * model.vocab_size_multiple


def parameters(model: DecoderConfig) -> Parameters:
    """Count the parameters; equal to what `python -m train CONFIG --describe` finds by building the model."""
    width, layers = widths(model), model.num_hidden_layers
    vocabulary = padded_vocabulary(model) * width.stream
    on_outputs = 2 * width.stream * sum(name in ("peri", "output") for name in placements(model))
    return Parameters(
        embedding=vocabulary,
        head=0 if model.tie_word_embeddings else vocabulary,
        attention=layers * _in_attention(width),
        mlp=layers * 3 * width.stream * width.mlp,
        norms=0 if model.frozen_norm_scales == "all" else _scales(model) + _learnt(model, on_outputs),
        output_norms=_learnt(model, on_outputs),
    )


def frozen_scales(model: DecoderConfig) -> int:
    """Count the scales that are buffers: in a checkpoint and an export, but not trained."""
    return parameters(replace(model, frozen_norm_scales="none")).norms - parameters(model).norms


def _in_attention(width: Widths) -> int:
    return 2 * width.stream * (width.query + width.key)


def _learnt(model: DecoderConfig, on_outputs: int) -> int:
    return on_outputs if model.frozen_norm_scales == "none" else 0


def _scales(model: DecoderConfig) -> int:
    """Count the scales of all norms but those on outputs."""
    width, layers = widths(model), model.num_hidden_layers
    of_streams = 2 * width.stream * sum(_NORMS[name] - (name in ("peri", "output")) for name in placements(model))
    per_layer = {
        "none": 0,
        "head": width.query // width.heads * 2,
        "projection": width.query + width.key,
    }[model.qk_norm]
    return of_streams + layers * per_layer + width.stream * (model.embedding_norm + model.final_norm)


def flops_per_token(model: DecoderConfig, sequence_length: int) -> float:
    """Count the operations of a training step per token, 6 N + 6 L H K T, as the model's own `flops_per_token`."""
    width, layers = widths(model), model.num_hidden_layers
    in_blocks = layers * (_in_attention(width) + 3 * width.stream * width.mlp)
    in_head = model.vocab_size * width.stream
    return 6.0 * (in_blocks + in_head + layers * width.query * sequence_length)


def kept_per_token(
    model: DecoderConfig, placement: str, *, itemsize: int, compiled: bool, attention: str, sequence_length: int
) -> int:
    """Return the bytes per token that a layer keeps for its backward pass, where norms are fused (as on a GPU).

    Args:
        model: The decoder.
        placement: Of the layer's norms.
        itemsize: Bytes of an activation.
        compiled: With `engine.compile`.
        attention: `eager` keeps its weights, (H, T) per token; the others keep a log-sum per head.
        sequence_length: Tokens of a window.
    """
    width = widths(model)
    streams = (_KEPT_STREAMS_COMPILED if compiled else _KEPT_STREAMS)[placement] * width.stream
    elements = streams + (_KEPT_MLP_COMPILED if compiled else _KEPT_MLP) * width.mlp
    statistics = 2 * _NORMS[placement]
    if attention == "eager":
        weights = width.heads * sequence_length * (_FLOAT + (itemsize if itemsize != _FLOAT else 0))
        elements, extra = elements + 4 * width.query, weights
    else:
        elements, extra = elements + 2 * (width.query + width.key), _FLOAT * width.heads
    if model.qk_norm != "none":
        elements += width.query + width.key
        statistics += width.heads + width.key_heads if model.qk_norm == "head" else 2
    per_norm = _FLOAT * (2 if model.norm_kind == "layernorm" else 1)
    return elements * itemsize + statistics * per_norm + extra
