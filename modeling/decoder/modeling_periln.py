"""A decoder-only transformer whose norms stand before, after or around its sub-layers, or on their outputs.

Shapes: B batch, T tokens, S tokens with those of the cache, D model, F MLP, H query heads, G key and value heads,
K head dim, V vocabulary, N = B * T.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedModel, initialization
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import ModelOutput, can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_periln import NormPlacement, PeriLNConfig

ParameterRole = Literal["matrix", "embedding", "output_norm", "norm_or_bias"]

IGNORE_INDEX = -100  # a label that takes no part in the loss

# Elements of [tokens, V] that exist at a time. CPU: 16 MiB in fp32 stay near the cache (V 8192: 162 ms against 193 for
# 64 MiB). CUDA: 1 GiB, because each chunk reads and writes the whole gradient of the weight (reckoned, not measured).
LOSS_CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}


class ScaleNorm(nn.Module):
    """RMSNorm, or LayerNorm without bias, over the last dimension; statistics in fp32.

    A frozen scale is a buffer: same key in the state dict, but no parameter.
    """

    weight: Tensor

    def __init__(self, config: PeriLNConfig, size: int, *, frozen: bool | None = None) -> None:
        super().__init__()
        self.kind, self.eps = config.norm_kind, config.norm_eps
        if config.frozen_norm_scales == "all" if frozen is None else frozen:
            self.register_buffer("weight", torch.ones(size))
        else:
            self.weight = nn.Parameter(torch.ones(size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalize over the last dimension."""
        weight = self.weight.to(hidden_states.dtype)  # a frozen scale stays in fp32 under DeepSpeed
        if self.kind == "layernorm":
            return F.layer_norm(hidden_states, weight.shape, weight, None, self.eps)
        return F.rms_norm(hidden_states, weight.shape, weight, self.eps)

    def extra_repr(self) -> str:
        """Show kind, size and eps."""
        return f"{self.kind}, {len(self.weight)}, eps={self.eps}"


class Residual(nn.Module):
    """One sub-layer on the residual stream, with its norms where the placement says.

    Equations 1-3 of Peri-LN (arXiv 2502.02732), and OLMo 2's output-only placement (arXiv 2501.00656). Norms that a
    placement lacks do not exist.
    """

    def __init__(self, config: PeriLNConfig, placement: NormPlacement, branch: nn.Module) -> None:
        super().__init__()
        self.placement: NormPlacement = placement
        self.branch = branch
        if placement in ("pre", "peri"):
            self.input_norm = ScaleNorm(config, config.hidden_size)
        if placement in ("peri", "output"):
            self.output_norm = ScaleNorm(config, config.hidden_size, frozen=config.frozen_norm_scales != "none")
        if placement == "post":
            self.stream_norm = ScaleNorm(config, config.hidden_size)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Add the branch's output to the stream; keyword arguments are the branch's."""

        def f(x: Tensor) -> Tensor:
            output = self.branch(x, **kwargs)
            return output[0] if isinstance(output, tuple) else output  # attention also returns its weights

        match self.placement:
            case "pre":
                return x + f(self.input_norm(x))
            case "post":
                return self.stream_norm(x + f(x))
            case "peri":
                return x + self.output_norm(f(self.input_norm(x)))
            case "output":
                return x + self.output_norm(f(x))


class ResidualProjection(nn.Linear):
    """The matrix with which a sub-layer writes to the residual stream; `depth_scaled` initialization shrinks it."""


class RotaryEmbedding(nn.Module):
    """Rotary position tables, with the scaling types of transformers (its name and buffers are transformers' too)."""

    inv_freq: Tensor
    original_inv_freq: Tensor

    def __init__(self, config: PeriLNConfig) -> None:
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        inverse_frequencies = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = inverse_frequencies(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: PeriLNConfig, **kwargs: Any) -> tuple[Tensor, float]:
        """Compute the frequencies theta^(-2i/K) of RoFormer (arXiv 2104.09864, section 3.2.2), and the scale 1."""
        assert config.head_dim is not None
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin of the angles at `position_ids` (B, T) or (1, T), in x's dtype."""
        frequencies = self.inv_freq.to(device=x.device, dtype=torch.float)
        angles = position_ids[..., None].float() * frequencies  # (B, T, K/2)
        angles = torch.cat((angles, angles), dim=-1)  # (B, T, K)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i+K/2}) by its position's angle (Llama's layout of RoPE)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attend with plain operations: softmax(Q K^T / sqrt(K) + mask) V.

    Returns:
        The output (B, T, H, K) and the weights (B, H, T, S), as transformers' attention interface wants.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)  # (B, H, S, K)
    scores = query @ key.transpose(2, 3) * scaling  # (B, H, T, S)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SelfAttention(nn.Module):
    """Causal self-attention with grouped queries, rotary positions and, if asked for, normalized queries and keys."""

    is_causal = True  # read by transformers' attention interface

    def __init__(self, config: PeriLNConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.head_dim is not None
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.o_proj = ResidualProjection(query_size, config.hidden_size, bias=False)
        if config.qk_norm != "none":
            per_head = config.qk_norm == "head"
            self.q_norm = ScaleNorm(config, config.head_dim if per_head else query_size)
            self.k_norm = ScaleNorm(config, config.head_dim if per_head else key_size)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over the tokens so far.

        Returns:
            The output (B, T, D), and the attention weights (B, H, T, S) where the implementation has them.
        """
        query, key, value = self._project(hidden_states)
        cos, sin = (table.unsqueeze(1) for table in position_embeddings)  # (B, 1, T, K)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, G, S, K)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation or "eager", eager_attention)
        output, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0, **kwargs)
        return self.o_proj(output.flatten(2)), weights

    def _project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, H, T, K), keys and values (B, G, T, K), normalized, before rotation."""
        query, key, value = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        if self.config.qk_norm == "projection":
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (x.unflatten(-1, (-1, self.head_dim)) for x in (query, key, value))
        if self.config.qk_norm == "head":
            query, key = self.q_norm(query), self.k_norm(key)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


class GatedMLP(nn.Module):
    """The gated MLP down(act(gate(x)) * up(x)): SwiGLU with `hidden_act: silu` (arXiv 2002.05202, eq. 6)."""

    def __init__(self, config: PeriLNConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = ResidualProjection(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D) by way of (B, T, F)."""
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class DecoderLayer(GradientCheckpointingLayer):
    """A block: attention, then MLP, each on the residual stream."""

    def __init__(self, config: PeriLNConfig, layer_idx: int) -> None:
        super().__init__()
        placement = config.layer_norm_placements[layer_idx]
        self.attention = Residual(config, placement, SelfAttention(config, layer_idx))
        self.mlp = Residual(config, placement, GatedMLP(config))

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Map the stream (B, T, D) to the stream; keyword arguments are the attention's."""
        return self.mlp(self.attention(hidden_states, **kwargs))


class ChunkLoss(NamedTuple):
    """The loss of some tokens, summed, and its derivative by their logits where it was asked for."""

    nll_sum: Tensor
    z_loss_sum: Tensor
    grad_logits: Tensor | None


def chunk_loss(logits: Tensor, labels: Tensor, z_loss_coefficient: float, needs_grad: bool) -> ChunkLoss:
    """Sum -log softmax(logits)[label] + z_loss_coefficient * logsumexp(logits)^2 over valid tokens, in fp32.

    Elementwise work and reductions only, so that torch.compile makes few passes of it.

    Args:
        logits: (n, V) in the compute dtype; overwritten.
        labels: (n,); IGNORE_INDEX marks a token that takes no part.
        z_loss_coefficient: Weight of the z-loss (PaLM, arXiv 2204.02311, section 5).
        needs_grad: Also give the derivative by the logits, in their dtype.
    """
    scores = logits.float()
    valid = (labels != IGNORE_INDEX).unsqueeze(1)  # (n, 1)
    target = labels.unsqueeze(1).clamp(min=0)  # (n, 1)
    log_normalizer = scores.logsumexp(dim=1, keepdim=True)  # (n, 1)
    nll = (log_normalizer - scores.gather(1, target)).masked_fill(~valid, 0.0)
    z_loss = (z_loss_coefficient * log_normalizer.square()).masked_fill(~valid, 0.0)
    if not needs_grad:
        return ChunkLoss(nll.sum(), z_loss.sum(), None)
    grad = scores.sub_(log_normalizer).exp_()  # in place: fresh memory is what costs most here
    if z_loss_coefficient:
        grad.mul_(1 + 2 * z_loss_coefficient * log_normalizer)
    grad.scatter_add_(1, target, torch.full_like(nll, -1.0)).masked_fill_(~valid, 0.0)
    return ChunkLoss(nll.sum(), z_loss.sum(), grad.to(logits.dtype))


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients of the head in one pass over chunks of tokens, as Liger Kernel's fused linear loss.

    The [tokens, V] logits exist one chunk at a time; the gradients are computed beside the loss, when each chunk is
    at hand, and backward only scales them.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden_states: Tensor, weight: Tensor, labels: Tensor, vocab_size: int, z: float, loss_of: Callable
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_states) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        nll_sum = hidden_states.new_zeros((), dtype=torch.float32)
        z_loss_sum = nll_sum.clone()
        rows = weight[:vocab_size]  # the padding of the vocabulary takes no part
        for chunk in _chunks(labels, vocab_size):
            hidden = hidden_states[chunk]
            part = loss_of(hidden @ rows.T, labels[chunk], z, needs_hidden or needs_weight)
            nll_sum += part.nll_sum
            z_loss_sum += part.z_loss_sum
            if grad_hidden is not None:
                grad_hidden[chunk] = part.grad_logits @ rows
            if grad_weight is not None:
                _accumulate(grad_weight[:vocab_size], part.grad_logits, hidden)
        ctx.mark_non_differentiable(z_loss_sum)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return nll_sum + z_loss_sum, z_loss_sum

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scale = grad_output.view(1)  # not a scalar, which would be rounded to bf16 first: 0.2 % off, all the same way
        grads = (None if grad is None else (grad * scale).to(grad.dtype) for grad in ctx.saved_tensors)
        return (*grads, None, None, None, None)


def _chunks(labels: Tensor, vocab_size: int) -> list[slice]:
    """Cut the tokens into chunks of a power of two, whose logits keep to LOSS_CHUNK_ELEMENTS."""
    elements = LOSS_CHUNK_ELEMENTS["cpu" if labels.device.type == "cpu" else "cuda"]
    size = 1 << max(0, (elements // vocab_size).bit_length() - 1)
    return [slice(start, start + size) for start in range(0, len(labels), size)]


def _accumulate(grad_weight: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
    """Add grad_logits^T hidden to an fp32 sum."""
    if grad_logits.dtype == hidden.dtype == grad_weight.dtype:
        grad_weight.addmm_(grad_logits.T, hidden)
    else:
        grad_weight.add_(grad_logits.T @ hidden)


class HeadLoss(NamedTuple):
    """The objective, summed over tokens in fp32 with its z-loss, and the z-loss's share."""

    loss_sum: Tensor
    z_loss_sum: Tensor


class LanguageModelHead(nn.Linear):
    """Hidden states to logits, or straight to the loss.

    The loss lives in this module's forward because ZeRO-3 gathers `weight` only around it.
    """

    def __init__(self, config: PeriLNConfig) -> None:
        super().__init__(config.hidden_size, config.padded_vocab_size, bias=False)
        self.vocab_size = config.vocab_size
        self.z_loss_coefficient = config.z_loss_coefficient
        self.chunk_loss = chunk_loss  # compile_blocks puts a compiled one here

    def forward(self, hidden_states: Tensor, labels: Tensor | None = None) -> Tensor | HeadLoss:  # type: ignore[override]
        """Return the logits (B, T, V) of (B, T, D); or, given the label (B, T) of each token, the summed loss."""
        if labels is None:
            return F.linear(hidden_states, self.weight[: self.vocab_size])
        hidden_states, labels = hidden_states.flatten(0, -2), labels.flatten()  # (N, D), (N,)
        weight = self.weight
        if not torch.is_grad_enabled():  # an autograd.Function can not see it: spare the gradients
            hidden_states, weight = hidden_states.detach(), weight.detach()
        sums = _ChunkedLoss.apply(
            hidden_states, weight, labels, self.vocab_size, self.z_loss_coefficient, self.chunk_loss
        )
        return HeadLoss(*sums)


class PeriLNPreTrainedModel(PreTrainedModel):
    """What transformers wants to know of this family."""

    config: PeriLNConfig
    config_class = PeriLNConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": DecoderLayer, "attentions": SelfAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw one module's own weights: N(0, initializer_range) for matrices and embeddings, ones for norms."""
        std = self.config.initializer_range
        if isinstance(module, ResidualProjection) and self.config.initializer_scheme == "depth_scaled":
            std /= math.sqrt(2 * self.config.num_hidden_layers)
        if isinstance(module, nn.Linear | nn.Embedding):
            initialization.normal_(module.weight, std=std)
        elif isinstance(module, ScaleNorm):
            initialization.ones_(module.weight)
        else:
            super()._init_weights(module)  # the tables of RotaryEmbedding


class PeriLNModel(PeriLNPreTrainedModel):
    """Embedding, blocks and final norm."""

    _auto_class = "AutoModel"

    def __init__(self, config: PeriLNConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        if config.embedding_norm:
            self.embedding_norm = ScaleNorm(config, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        if config.final_norm:
            self.norm = ScaleNorm(config, config.hidden_size)
        self.rotary_emb = RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Read tokens; arguments as in every decoder of transformers, but `use_cache` is off unless asked for.

        Without mask and cache, `position_ids` that start anew mark packed documents, which do not see each other.

        Returns:
            The stream after the final norm (B, T, D), the cache if used, hidden states and attentions if asked for.

        Raises:
            ValueError: Both or neither of `input_ids` (B, T) and `inputs_embeds` (B, T, D) are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids, inputs_embeds: give one of them")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        mask = create_causal_mask(self.config, hidden_states, attention_mask, past_key_values, position_ids)
        if position_ids is None:
            start = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(start, start + hidden_states.shape[1], device=hidden_states.device)[None]
        position_embeddings = self.rotary_emb(hidden_states, position_ids)

        if self.config.embedding_norm:
            hidden_states = self.embedding_norm(hidden_states)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
                **kwargs,
            )
        if self.config.final_norm:
            hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)  # type: ignore[arg-type]


@dataclass
class PeriLNOutput(ModelOutput):
    """What a forward pass of PeriLNForCausalLM gives."""

    loss: Tensor | None = None  # the objective, z-loss included; fp32 scalar
    z_loss: Tensor | None = None  # its share of z-loss, detached
    logits: Tensor | None = None  # (B, T, V); None when a loss was asked for
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None  # the stream before each layer, then the final (B, T, D)
    attentions: tuple[Tensor, ...] | None = None  # (B, H, T, S) per layer, with eager attention


class PeriLNForCausalLM(PeriLNPreTrainedModel, GenerationMixin):
    """The decoder with its language-model head."""

    _auto_class = "AutoModelForCausalLM"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: PeriLNConfig) -> None:
        super().__init__(config)
        self.model = PeriLNModel(config)
        self.lm_head = LanguageModelHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        shift_labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> PeriLNOutput:
        """Give the logits, or, when there are labels, the loss instead of them.

        The loss is computed without the logits ever existing as a whole, so a call with labels returns none, in
        training and in evaluation. Who wants both calls twice.

        Args:
            input_ids: (B, T).
            attention_mask: (B, S), 0 where there is padding.
            position_ids: (B, T).
            past_key_values: Keys and values of the tokens before.
            inputs_embeds: (B, T, D), instead of `input_ids`.
            labels: (B, T), the tokens themselves, shifted here by one; -100 takes no part.
            use_cache: Return a cache.
            logits_to_keep: The last so many positions, or these; 0: all.
            shift_labels: (B, T), the label of each position, not to be shifted.
            num_items_in_batch: The loss is its sum over tokens divided by this; None: the mean over valid tokens.
            kwargs: `output_hidden_states`, `output_attentions`, and what the attention implementation takes.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        if shift_labels is None and labels is not None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        loss = z_loss = logits = None
        if shift_labels is None:
            positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[:, positions])
        else:
            loss, z_loss = self._loss(outputs.last_hidden_state, shift_labels, num_items_in_batch)
        return PeriLNOutput(
            loss=loss,
            z_loss=z_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(
        self, hidden_states: Tensor, shift_labels: Tensor, num_items: int | Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss per item and its z-loss, None where there is none."""
        loss_sum, z_loss_sum = self.lm_head(hidden_states, shift_labels.to(hidden_states.device))
        if num_items is None:
            num_items = (shift_labels != IGNORE_INDEX).sum()
        return loss_sum / num_items, z_loss_sum / num_items if self.config.z_loss_coefficient else None

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count parameters; without embeddings means without the head too, as the sizes of papers are stated."""
        vocabulary = {self.model.embed_tokens.weight, self.lm_head.weight}
        counted = set(self.parameters()) - (vocabulary if exclude_embeddings else set())
        return sum(parameter.numel() for parameter in counted if parameter.requires_grad or not only_trainable)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """Name what each parameter is, for weight decay; a head tied to the embedding is the embedding."""
        return {name: parameter_role(name) for name, _ in self.named_parameters()}

    def flops_per_token(self, sequence_length: int) -> float:
        """Count the operations of a training step per token: 6 N + 6 L H K T.

        N are the parameters in matrix products: the head's rows without padding count, the embedding look-up does
        not. Causal attention is counted once, by the width H K of the queries, whatever the key and value heads.
        """
        modules = list(self.model.modules())  # their sizes hold under ZeRO-3 too, those of parameters do not
        in_blocks = sum(module.in_features * module.out_features for module in modules if isinstance(module, nn.Linear))
        in_head = self.config.vocab_size * self.config.hidden_size
        widths = sum(module.q_proj.out_features for module in modules if isinstance(module, SelfAttention))  # L H K
        return 6.0 * (in_blocks + in_head + widths * sequence_length)

    def compile_blocks(self) -> None:
        """Compile each layer and the loss's elementwise part in place, for fixed shapes; names stay as they are."""
        for layer in self.model.layers:
            layer.compile(dynamic=False)
        self.lm_head.chunk_loss = torch.compile(chunk_loss, dynamic=False)


def parameter_role(name: str) -> ParameterRole:
    """Tell from its name what a parameter of PeriLNForCausalLM is; an untied head is a matrix."""
    module, _, kind = name.rpartition(".")
    if module.endswith("output_norm"):
        return "output_norm"
    if module.endswith("norm") or kind == "bias":
        return "norm_or_bias"
    return "embedding" if module.endswith("embed_tokens") else "matrix"
