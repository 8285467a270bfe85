"""Tensors that each layer of a decoder saves for its backward pass."""

from __future__ import annotations

from modeling.decoder.facts_periln import PLACEMENTS, DecoderShape

# Number of stream-wide tensors (N, D) that a layer saves for its backward pass, by placement: inputs of norms and
# projections. A compiled layer recomputes some of them. Counted with saved-tensor hooks; a test asserts that every
# placement is listed.
KEPT_STREAMS = {"pre": 4, "post": 4, "peri": 6, "output": 4}
KEPT_STREAMS_COMPILED = {"pre": 4, "post": 4, "peri": 5, "output": 4}
_KEPT_MLP, _KEPT_MLP_COMPILED = 4, 3  # (N, F): gate, up, act(gate) and their product; compiled without act(gate)
_FLOAT = 4  # bytes


def kept_per_token(
    model: DecoderShape, placement: str, *, itemsize: int, compiled: bool, attention: str, sequence_length: int
) -> int:
    """Return the bytes per token that a layer saves for its backward pass, given fused norms (as on a GPU).

    Args:
        model: Shape of the decoder.
        placement: Placement of the layer's norms.
        itemsize: Bytes of an activation.
        compiled: Whether the layer is compiled (`engine.compile`).
        attention: Implementation; `eager` saves the weights, (H, T) per token, others one log-sum-exp per head.
        sequence_length: Tokens per window.
    """
    streams = (KEPT_STREAMS_COMPILED if compiled else KEPT_STREAMS)[placement] * model.hidden_size
    elements = streams + (_KEPT_MLP_COMPILED if compiled else _KEPT_MLP) * model.intermediate_size
    statistics = 2 * PLACEMENTS[placement].num_norms
    if attention == "eager":
        weights = model.num_attention_heads * sequence_length * (_FLOAT + (itemsize if itemsize != _FLOAT else 0))
        elements, extra = elements + 4 * model.query_width, weights
    else:
        elements, extra = elements + 2 * (model.query_width + model.key_width), _FLOAT * model.num_attention_heads
    if model.qk_norm != "none":
        elements += model.query_width + model.key_width
        statistics += model.num_attention_heads + model.num_key_value_heads if model.qk_norm == "head" else 2
    per_norm = _FLOAT * (2 if model.norm_kind == "layernorm" else 1)
    return elements * itemsize + statistics * per_norm + extra
