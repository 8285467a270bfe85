"""Closed-form parameter counts and operations per token of a decoder.

Standard library only; no model is built.
"""

from typing import NamedTuple

from .facts_periln import PLACEMENTS, DecoderShape


class ParameterCounts(NamedTuple):
    """Learnable parameters by part; a tied head has none, and frozen scales do not count."""

    embedding: int
    head: int
    attention: int
    mlp: int
    norms: int
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
        norms=0 if shape.frozen_norm_scales == "all" else others + output_norms,
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
    return 2 * shape.hidden_size * (shape.query_width + shape.key_width)


def _in_mlp(shape: DecoderShape) -> int:
    return 3 * shape.hidden_size * shape.intermediate_size


def _scales(shape: DecoderShape) -> tuple[int, int]:
    """Count the scales of the norms on the outputs of sub-layers, and of all other norms, frozen or not."""
    placements = [PLACEMENTS[name] for name in shape.layer_norm_placements]
    on_outputs = 2 * shape.hidden_size * sum(placement.output_norm for placement in placements)
    others = 2 * shape.hidden_size * sum(placement.input_norm + placement.stream_norm for placement in placements)
    of_queries_and_keys = {
        "none": 0,
        "head": 2 * shape.head_width,
        "projection": shape.query_width + shape.key_width,
    }[shape.qk_norm]
    others += shape.num_hidden_layers * of_queries_and_keys
    return on_outputs, others + shape.hidden_size * (shape.embedding_norm + shape.final_norm)
