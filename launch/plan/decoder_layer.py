"""Tensors that each layer of a decoder saves for its backward pass."""

from __future__ import annotations

from collections.abc import Iterator

from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.facts_placements_periln import PLACEMENTS, SubLayer

_KEPT_MLP, _KEPT_MLP_COMPILED = 4, 3  # (N, F): gate, up, act(gate) and their product; compiled without act(gate)
_FLOAT = 4  # bytes


def kept_per_token(
    model: DecoderShape, placement: str, *, itemsize: int, compiled: bool, attention: str, sequence_length: int
) -> int:
    """Return the bytes per token that a layer saves for its backward pass, given fused norms (as on a GPU).

    Counted with saved-tensor hooks; a test compares every placement.

    Args:
        model: Shape of the decoder.
        placement: Placement of the layer's norms.
        itemsize: Bytes of an activation.
        compiled: Whether the layer is compiled (`engine.compile`), which recomputes some of them.
        attention: Implementation; `eager` saves the weights, (H, T) per token, others one log-sum-exp per head.
        sequence_length: Tokens per window.
    """
    in_attention, in_mlp = PLACEMENTS[placement].sub_layers
    heads = model.num_attention_heads
    streams = _kept_streams(in_attention, model) + _kept_streams(in_mlp, model)
    if compiled and in_mlp.input_norm and in_mlp.output_norm:
        streams -= 1  # the sum between attention and MLP is computed again
    elements = streams * model.hidden_size
    elements += (_KEPT_MLP_COMPILED if compiled else _KEPT_MLP) * model.intermediate_size
    statistics = in_attention.num_norms + in_mlp.num_norms
    extra = 0
    if attention == "eager":
        extra = heads * sequence_length * (_FLOAT + (itemsize if itemsize != _FLOAT else 0))
        elements += 4 * model.query_width
    else:
        elements, extra = elements + 2 * (model.query_width + model.key_width), _FLOAT * heads
    for width, norms in _norms_inside(in_attention, in_mlp, model):
        elements, statistics = elements + width * _tensors_of_norm(model), statistics + norms
    if model.attention_gate != "none":  # the gates, and the output after them
        elements += model.query_width + model.attention_gate_width
    per_norm = {"rmsnorm": 1, "layernorm": 2, "dyt": 0}[model.norm_kind] * _FLOAT
    return elements * itemsize + statistics * per_norm + extra


def _norms_inside(attention: SubLayer, mlp: SubLayer, model: DecoderShape) -> Iterator[tuple[int, int]]:
    """Yield what is normalized inside attention and MLP: its width, and the number of norms per token."""
    heads, groups = model.num_attention_heads, model.num_key_value_heads
    if model.qk_norm == "projection":
        yield from ((model.query_width, 1), (model.key_width, 1))
    elif model.qk_norm == "head" or attention.value_norm:
        yield from ((model.query_width, heads), (model.key_width, groups))
    if attention.value_norm:
        yield model.key_width, groups
    if attention.inner_norm:
        yield model.query_width, 1
    if mlp.inner_norm:
        yield model.intermediate_size, 1


def _kept_streams(sub_layer: SubLayer, model: DecoderShape) -> int:
    """Return the number of stream-wide tensors (N, D) that a sub-layer saves."""
    of_norms = sub_layer.num_norms * _tensors_of_norm(model)
    norm_follows = sub_layer.stream_norm and not sub_layer.normalizes_first  # GPAS keeps the sum, or what f reads too
    return 1 + of_norms + (model.gpas and not norm_follows)  # 1: the input of the first matrices


def _tensors_of_norm(model: DecoderShape) -> int:
    """Return the tensors that a norm saves: its input, and DyT also the tanh."""
    return 2 if model.norm_kind == "dyt" else 1
