"""Configuration of the PeriLN decoder: shape, normalization, positions, initialization."""

from __future__ import annotations

from dataclasses import field
from typing import Any, ClassVar, Literal, get_args

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

NormPlacement = Literal["pre", "post", "peri", "output"]

_SIZES = (
    "vocab_size",
    "vocab_size_multiple",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)

# What each kind of RoPE scaling needs and may have, beside `rope_type` and `rope_theta`.
_ROPE_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, set()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, {"original_max_position_embeddings"}),
    "yarn": (
        {"factor"},
        {"original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate"}
        | {"mscale", "mscale_all_dim"},
    ),
}


class PeriLNConfig(PreTrainedConfig):
    """Shape and normalization of a decoder whose norms stand where `norm_placement` says.

    With a sub-layer f (attention or MLP) and its input x, a placement means (Peri-LN, arXiv 2502.02732, eq. 1-3):
    `pre` x + f(norm(x)); `post` norm(x + f(x)); `peri` x + norm(f(norm(x))); `output` x + norm(f(x)) (OLMo 2).

    Args:
        vocab_size: Tokens that the model can read and write: the columns of its logits.
        vocab_size_multiple: The rows of embedding and head are rounded up to it, for speed; the extra rows take no
            part in the loss and can not be generated.
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside the gated MLP.
        num_hidden_layers: Blocks of attention and MLP.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads; fewer than query heads is grouped-query attention.
        head_dim: Width of a head, even. None: hidden_size / num_attention_heads.
        hidden_act: Activation of the MLP's gate, a name that transformers knows.
        max_position_embeddings: Longest sequence that the positions are meant for.
        norm_placement: One name for all layers, or a sequence with one name per layer (Mix-LN and the like).
        norm_kind: `rmsnorm`, or `layernorm` without bias; both with statistics in fp32.
        norm_eps: Added to the mean square or variance.
        frozen_norm_scales: Whose scales stay at one: of no norm, of the norms on sub-layer outputs, or of all. They
            are buffers then: the state dict keeps its keys, and no optimizer sees them.
        embedding_norm: A norm after the embedding.
        final_norm: A norm before the head.
        qk_norm: A norm on queries and keys, over each head (Qwen 3) or over the whole projection (OLMo 2).
        rope_parameters: As in transformers: rope_type (default, linear, dynamic, llama3, yarn), rope_theta, and what
            that type needs.
        tie_word_embeddings: Embedding and head share one matrix.
        initializer_range: Standard deviation of every matrix and embedding.
        initializer_scheme: `normal`, or `depth_scaled`: the matrices that write to the residual stream are divided
            by sqrt(2 num_hidden_layers) (GPT-2).
        z_loss_coefficient: Weight of logsumexp(logits)^2 in the loss (PaLM, section 5).

    Raises:
        ValueError: Fields that do not go together; all faults in one message, one per line.
    """

    model_type = "periln"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "z_loss"]
    _auto_class: ClassVar[str | None] = "AutoConfig"  # save_pretrained copies this file and names it in config.json

    vocab_size: int = 32_000
    vocab_size_multiple: int = 64
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    norm_placement: NormPlacement | tuple[NormPlacement, ...] = "peri"
    norm_kind: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-6
    frozen_norm_scales: Literal["none", "output", "all"] = "none"
    embedding_norm: bool = False
    final_norm: bool = True
    qk_norm: Literal["none", "head", "projection"] = "none"
    rope_parameters: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10_000.0})
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    initializer_scheme: Literal["normal", "depth_scaled"] = "normal"
    z_loss_coefficient: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.norm_placement, str):
            self.norm_placement = tuple(self.norm_placement)  # JSON has lists only
        self.rope_parameters = dict(self.rope_parameters)  # transformers fills defaults in: not into the caller's
        if faults := [*self._number_faults(), *self._choice_faults(), *self._rope_faults()]:
            raise ValueError("\n".join(faults))
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)

    @property
    def layer_norm_placements(self) -> tuple[NormPlacement, ...]:
        """The placement of each layer."""
        if isinstance(self.norm_placement, str):
            return (self.norm_placement,) * self.num_hidden_layers
        return self.norm_placement

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: `vocab_size`, rounded up to `vocab_size_multiple`."""
        return -(-self.vocab_size // self.vocab_size_multiple) * self.vocab_size_multiple

    def _number_faults(self) -> list[str]:
        """Say what is wrong with sizes and coefficients."""
        faults = [
            f"{name}: {getattr(self, name)!r} is not a whole number of at least 1"
            for name in _SIZES
            if not _is_size(getattr(self, name))
        ]
        faults += [
            f"{name}: {getattr(self, name)!r} is negative or no number; write 0 or more"
            for name in ("norm_eps", "initializer_range", "z_loss_coefficient")
            if not getattr(self, name) >= 0
        ]
        return faults or self._head_faults()

    def _head_faults(self) -> list[str]:
        """Say which head counts and widths do not fit together."""
        heads, groups, faults = self.num_attention_heads, self.num_key_value_heads, []
        if heads % groups:
            allowed = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            faults.append(f"num_key_value_heads: {groups} does not divide num_attention_heads {heads}; write {allowed}")
        if self.head_dim is None and self.hidden_size % heads:
            faults.append(
                f"num_attention_heads: {heads} does not divide hidden_size {self.hidden_size}; "
                f"write a divisor, or give head_dim"
            )
        elif self.head_dim is None and self.hidden_size // heads % 2:
            faults.append(
                f"num_attention_heads: {heads} heads make each {self.hidden_size // heads} wide, but rotary positions "
                f"turn pairs; give an even head_dim"
            )
        elif self.head_dim is not None and not (_is_size(self.head_dim) and self.head_dim % 2 == 0):
            faults.append(f"head_dim: {self.head_dim!r} is not even; rotary positions turn pairs: write an even number")
        return faults

    def _choice_faults(self) -> list[str]:
        """Say which names are not among the allowed ones, and which have no effect."""
        choices = {
            "norm_kind": ("rmsnorm", "layernorm"),
            "frozen_norm_scales": ("none", "output", "all"),
            "qk_norm": ("none", "head", "projection"),
            "initializer_scheme": ("normal", "depth_scaled"),
        }
        faults = [
            f"{name}: {getattr(self, name)!r} is none of {', '.join(allowed)}"
            for name, allowed in choices.items()
            if getattr(self, name) not in allowed
        ]
        if self.hidden_act not in ACT2FN:
            faults.append(f"hidden_act: {self.hidden_act!r} is none of {', '.join(sorted(ACT2FN))}")
        return faults + self._placement_faults()

    def _placement_faults(self) -> list[str]:
        """Say what is wrong with `norm_placement` and what hangs on it."""
        names = (self.norm_placement,) if isinstance(self.norm_placement, str) else self.norm_placement
        allowed = get_args(NormPlacement)
        if unknown := [name for name in names if name not in allowed]:
            return [f"norm_placement: {unknown[0]!r} is none of {', '.join(allowed)}"]
        faults = []
        if not isinstance(self.norm_placement, str) and len(names) != self.num_hidden_layers:
            faults.append(
                f"norm_placement: {len(names)} names for num_hidden_layers {self.num_hidden_layers}; "
                f"write one name, or one per layer"
            )
        if self.frozen_norm_scales == "output" and not {"peri", "output"} & set(names):
            faults.append(
                f"frozen_norm_scales: 'output' has no effect with norm_placement {self.norm_placement!r}, which has "
                f"no norm on sub-layer outputs; write none or all"
            )
        return faults

    def _rope_faults(self) -> list[str]:
        """Say what is wrong with `rope_parameters`: transformers would only log it."""
        rope_type = self.rope_parameters.get("rope_type", "default")
        if rope_type not in _ROPE_KEYS:
            return [f"rope_parameters.rope_type: {rope_type!r} is none of {', '.join(_ROPE_KEYS)}"]
        required, optional = _ROPE_KEYS[rope_type]
        given = self.rope_parameters.keys() - {"rope_type", "rope_theta"}
        allowed = ", ".join(sorted({"rope_theta"} | required | optional))
        faults = [f"rope_parameters.{key}: rope_type {rope_type!r} needs it" for key in sorted(required - given)]
        if not self.rope_parameters.get("rope_theta", self.default_theta) > 0:
            faults.append(f"rope_parameters.rope_theta: {self.rope_parameters['rope_theta']!r} is not positive")
        faults += [
            f"rope_parameters.{key}: rope_type {rope_type!r} does not read it; it reads {allowed}"
            for key in sorted(given - required - optional)
        ]
        return faults


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
