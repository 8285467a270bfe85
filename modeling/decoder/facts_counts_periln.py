"""Closed-form parameter counts and operations per token of a decoder.

Standard library only; no model is built.
"""

from collections.abc import Iterator
from typing import NamedTuple

from .facts_periln import DecoderShape
from .facts_placements_periln import PLACEMENTS, SubLayer


class ParameterCounts(NamedTuple):
    """Learnable parameters by part; a tied head has none, and frozen scales do not count."""

    embedding: int
    head: int
    attention: int
    mlp: int
    norms: int  # with the gates of GPAS
    output_norms: int  # those of `norms` on the outputs of sub-layers

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.head + self.attention + self.mlp + self.norms

    @property
    def without_vocabulary(self) -> int:
        """All but embedding and head, as papers state sizes."""
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


def count_parameters(shape: DecoderShape) -> ParameterCounts:
    """Count the learnable parameters of a decoder without building it."""
    vocabulary = shape.padded_vocab_size * shape.hidden_size
    on_outputs, others = _scales(shape)
    output_norms = on_outputs if shape.frozen_norm_scales == "none" else 0
    return ParameterCounts(
        embedding=vocabulary,
        head=0 if shape.tie_word_embeddings else vocabulary,
        attention=shape.num_hidden_layers * _in_attention(shape),
        mlp=shape.num_hidden_layers * _in_mlp(shape),
        norms=shape.gpas * shape.num_hidden_layers if shape.frozen_norm_scales == "all" else others + output_norms,
        output_norms=output_norms,
    )


def count_frozen_scales(shape: DecoderShape) -> int:
    """Count the scales that are buffers: saved with the weights, but not trained."""
    return sum(_scales(shape)) - count_parameters(shape).norms


def flops_per_token(shape: DecoderShape, sequence_length: int) -> float:
    """Count the operations of a training step per token: 6 N + 6 L H K T.

    N is the number of parameters in matrix products: the head counts without padding, the embedding look-up does not.
    Causal attention is counted once, by the width H K of the queries, whatever the number of key and value heads.
    """
    in_blocks = shape.num_hidden_layers * (_in_attention(shape) + _in_mlp(shape))
    in_head = shape.vocab_size * shape.hidden_size
    widths = shape.num_hidden_layers * shape.query_width  # L H K
    return 6.0 * (in_blocks + in_head + widths * sequence_length)


def _in_attention(shape: DecoderShape) -> int:
    widths = 2 * (shape.query_width + shape.key_width) + shape.attention_gate_width
    return shape.hidden_size * widths


def _in_mlp(shape: DecoderShape) -> int:
    return 3 * shape.hidden_size * shape.intermediate_size


def _scales(shape: DecoderShape) -> tuple[int, int]:
    """Count the parameters of the norms on the outputs of sub-layers, and of all else that is no matrix."""
    on_outputs, others = 0, shape.gpas * shape.num_hidden_layers
    for name in shape.layer_norm_placements:
        attention, mlp = PLACEMENTS[name].sub_layers
        on_outputs += sum(_in_norm(shape, shape.hidden_size) for each in (attention, mlp) if each.output_norm)
        sizes = [*_in_branches(shape, attention, mlp), *_on_stream(shape, attention), *_on_stream(shape, mlp)]
        others += sum(_in_norm(shape, size) for size in sizes)
    return on_outputs, others + (shape.embedding_norm + shape.final_norm) * _in_norm(shape, shape.hidden_size)


def _in_norm(shape: DecoderShape, size: int) -> int:
    return 2 * size + 1 if shape.norm_kind == "dyt" else size  # DyT: scale, bias and alpha


def _on_stream(shape: DecoderShape, sub_layer: SubLayer) -> list[int]:
    """Return the sizes of a sub-layer's input and stream norms."""
    return [shape.hidden_size] * (sub_layer.input_norm + sub_layer.stream_norm)


def _in_branches(shape: DecoderShape, attention: SubLayer, mlp: SubLayer) -> Iterator[int]:
    """Yield the sizes of the norms inside attention and MLP."""
    if attention.value_norm:
        yield from 3 * [shape.head_width]
    if shape.qk_norm == "head":
        yield from 2 * [shape.head_width]
    if shape.qk_norm == "projection":
        yield from (shape.query_width, shape.key_width)
    if attention.inner_norm:
        yield shape.query_width
    if mlp.inner_norm:
        yield shape.intermediate_size
