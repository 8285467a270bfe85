"""Configuration of the PeriLN decoder: shape, normalization, positions, initialization."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import field, fields
from typing import Any, ClassVar, Literal, get_args, get_origin

import transformers

from .facts_periln import DecoderShape, Fault, default_rope_parameters
from .facts_placements_periln import CHOICES, PLACEMENTS, LayerPlacement, NormPlacement
from .facts_rope_periln import ROPE_RULES  # noqa: F401 (transformers 4 copies only what this file imports itself)
from .facts_rules_periln import shape_faults

REQUIRED_TRANSFORMERS = (5, 23)  # as in pyproject.toml

_FIELDS = tuple(each.name for each in fields(DecoderShape))
_SIZES = tuple(each.name for each in fields(DecoderShape) if each.type is int)
_COEFFICIENTS = tuple(each.name for each in fields(DecoderShape) if each.type is float)
_CHOICES = {each.name: get_args(each.type) for each in fields(DecoderShape) if get_origin(each.type) is Literal}


def _refuse_older_transformers(version: str) -> None:
    """Refuse versions of transformers with which this code would fail later, by the name of something missing.

    Raises:
        ImportError: `version` is older than REQUIRED_TRANSFORMERS.
    """
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < REQUIRED_TRANSFORMERS:
        required = ".".join(map(str, REQUIRED_TRANSFORMERS))
        remedy = f"pip install 'transformers>={required}'"
        raise ImportError(f"this model needs transformers {required} or later, and {version} is installed: {remedy}")


_refuse_older_transformers(transformers.__version__)  # the first of the model's files that transformers imports


class PeriLNConfig(transformers.PreTrainedConfig):
    """Shape and normalization of a decoder with a configurable norm placement.

    Args:
        vocab_size: Tokens that the model can read and write: the columns of its logits.
        vocab_size_multiple: The rows of embedding and head are rounded up to a multiple of it, for speed; the extra
            rows do not enter the loss and cannot be generated.
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside the gated MLP.
        num_hidden_layers: Blocks of attention and MLP.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads; fewer than query heads means grouped-query attention.
        head_dim: Width of a head, even. None: hidden_size / num_attention_heads.
        hidden_act: Activation of the MLP's gate: one of ACTIVATIONS (facts_periln.py).
        max_position_embeddings: Longest sequence that the positions are designed for.
        norm_placement: One name for all layers, or a sequence with one name per layer; facts_placements_periln.py
            lists them with equations, constants and sources.
        norm_kind: `rmsnorm`, or `layernorm` without bias, both with statistics in fp32; or `dyt`,
            scale * tanh(alpha x) + bias in the place of every norm (arXiv 2503.10622).
        norm_eps: Added to the mean square or variance.
        dyt_alpha: Value at which every alpha of `dyt` starts.
        frozen_norm_scales: Norms whose scales keep the value at which they start: `none`, those on sub-layer
            `output`s, or `all`. Frozen scales are buffers: they keep their keys in the state dict, but no optimizer
            sees them.
        embedding_norm: Whether there is a norm after the embedding.
        final_norm: Whether there is a norm before the head.
        qk_norm: Norm on queries and keys: over each head (Qwen 3) or over the whole projection (OLMo 2).
        residual_factor: Factor of what each sub-layer adds to the stream (arXiv 2510.09904).
        gpas: Gradient-preserving activation scaling (arXiv 2506.22049): after each addition, the stream shrinks by a
            learned factor, one per layer, whose gradient does not shrink; before it, where a norm follows.
        attention_gate: Sigmoid gates on the output of attention: `none`, one per `head`, or one per `element`
            (arXiv 2505.06708).
        rope_parameters: As in transformers: rope_type (default, linear, dynamic, llama3, yarn), rope_theta, and the
            parameters of that type.
        tie_word_embeddings: Embedding and head share one matrix.
        initializer_range: Standard deviation of embedding, head and, unless the placement has an initialization of its
            own, the matrices of the layers.
        initializer_scheme: `normal`, or `depth_scaled`: the matrices that write to the residual stream are divided
            by sqrt(2 num_hidden_layers) (GPT-2).
        z_loss_coefficient: Weight of logsumexp(logits)^2 in the loss (PaLM, section 5).
        use_cache: Keep keys and values unless a call says otherwise: in generation and evaluation, never in training.
        pad_token_id: Token of the padding, if there is one; its embedding is like any other.
        bos_token_id: Token at the start of a document, if there is one.
        eos_token_id: Token or tokens at the end of a document.

    Raises:
        ValueError: Fields are invalid or conflict; one message lists all faults, one per line.
    """

    model_type = "periln"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "z_loss"]
    _auto_class: ClassVar[str | None] = "AutoConfig"  # save_pretrained copies this file and names it in config.json

    vocab_size: int = DecoderShape.vocab_size
    vocab_size_multiple: int = DecoderShape.vocab_size_multiple
    hidden_size: int = DecoderShape.hidden_size
    intermediate_size: int = DecoderShape.intermediate_size
    num_hidden_layers: int = DecoderShape.num_hidden_layers
    num_attention_heads: int = DecoderShape.num_attention_heads
    num_key_value_heads: int = DecoderShape.num_key_value_heads
    head_dim: int | None = DecoderShape.head_dim
    hidden_act: str = DecoderShape.hidden_act
    max_position_embeddings: int = DecoderShape.max_position_embeddings
    norm_placement: NormPlacement | tuple[LayerPlacement, ...] = DecoderShape.norm_placement
    norm_kind: Literal["rmsnorm", "layernorm", "dyt"] = DecoderShape.norm_kind
    norm_eps: float = DecoderShape.norm_eps
    dyt_alpha: float = DecoderShape.dyt_alpha
    frozen_norm_scales: Literal["none", "output", "all"] = DecoderShape.frozen_norm_scales
    embedding_norm: bool = DecoderShape.embedding_norm
    final_norm: bool = DecoderShape.final_norm
    qk_norm: Literal["none", "head", "projection"] = DecoderShape.qk_norm
    residual_factor: float = DecoderShape.residual_factor
    gpas: bool = DecoderShape.gpas
    attention_gate: Literal["none", "head", "element"] = DecoderShape.attention_gate
    rope_parameters: dict[str, Any] = field(default_factory=default_rope_parameters)
    tie_word_embeddings: bool = DecoderShape.tie_word_embeddings
    initializer_range: float = DecoderShape.initializer_range
    initializer_scheme: Literal["normal", "depth_scaled"] = DecoderShape.initializer_scheme
    z_loss_coefficient: float = DecoderShape.z_loss_coefficient
    use_cache: bool = True  # from here on: fields that transformers and its clients expect of any decoder
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.norm_placement, str):
            self.norm_placement = tuple(self.norm_placement)  # JSON only has lists
        self.rope_parameters = dict(self.rope_parameters)  # a copy: transformers fills in defaults
        if faults := self._faults():
            raise ValueError("\n".join(f"{key}: {message}" for key, message in faults))
        self.head_dim = self.shape.head_width
        super().__post_init__(**kwargs)

    @property
    def shape(self) -> DecoderShape:
        """The fields of this model family, without those common to all transformers configurations."""
        return DecoderShape.of(self)

    @property
    def layer_norm_placements(self) -> tuple[LayerPlacement, ...]:
        """The placement of each layer."""
        return self.shape.layer_norm_placements

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: `vocab_size`, rounded up to `vocab_size_multiple`."""
        return self.shape.padded_vocab_size

    def _faults(self) -> list[Fault]:
        """Return all faults, of single values and of combinations, in the order of the fields."""
        faults = [*self._size_faults(), *self._coefficient_faults(), *self._choice_faults()]
        valid = {name: getattr(self, name) for name in _FIELDS}
        for fault in faults:
            del valid[fault.key]
        faults += shape_faults(valid)
        return sorted(faults, key=lambda fault: _FIELDS.index(fault.key.partition(".")[0]))

    def _size_faults(self) -> Iterator[Fault]:
        optional = () if self.head_dim is None else ("head_dim",)
        for name in (*_SIZES, *optional):
            if not _is_size(value := getattr(self, name)):
                yield Fault(name, f"{value!r} is not a whole number of at least 1")

    def _coefficient_faults(self) -> Iterator[Fault]:
        for name in _COEFFICIENTS:
            if not 0 <= (value := getattr(self, name)) < math.inf:
                yield Fault(name, f"{value!r} is negative or not a number; write 0 or more")

    def _choice_faults(self) -> Iterator[Fault]:
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                yield Fault(name, f"{value!r} is none of {', '.join(allowed)}")
        is_one = isinstance(self.norm_placement, str)
        names = (self.norm_placement,) if is_one else self.norm_placement
        known = tuple(CHOICES if is_one else PLACEMENTS)
        if unknown := [name for name in names if name not in known]:
            yield Fault("norm_placement", f"{unknown[0]!r} is none of {', '.join(known)}")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
