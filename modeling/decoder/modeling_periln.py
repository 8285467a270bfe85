"""Decoder-only transformer with a choice of norm placements.

Shapes: B batch, T tokens, S tokens with those of the cache, D model, H query heads, K head dim, V vocabulary.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedModel, initialization
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import ModelOutput, can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention_periln import RotaryEmbedding, SelfAttention
from .configuration_periln import PeriLNConfig
from .facts_counts_periln import flops_per_token
from .head_periln import IGNORE_INDEX, HeadLoss, LanguageModelHead, chunk_loss, loss_of_logits
from .mlp_periln import GatedMLP
from .norms_periln import ScaleNorm
from .residual_periln import BranchMatrix, GateMatrix, Residual

ParameterRole = Literal["matrix", "embedding", "output_norm", "norm_or_bias"]


class DecoderLayer(GradientCheckpointingLayer):
    """A block: attention, then MLP, each on the residual stream."""

    def __init__(self, config: PeriLNConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention = Residual(config, layer_idx, "attention", SelfAttention(config, layer_idx))
        self.mlp = Residual(config, layer_idx, "mlp", GatedMLP(config, layer_idx))
        self.gpas_gate = nn.Parameter(torch.zeros(1)) if config.gpas else None  # one for both sub-layers

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Map the stream (B, T, D) to the stream; keyword arguments are the attention's."""
        hidden_states = self.attention(hidden_states, gpas_gate=self.gpas_gate, **kwargs)
        return self.mlp(hidden_states, gpas_gate=self.gpas_gate)


class PeriLNPreTrainedModel(PreTrainedModel):
    """Declarations that transformers needs for this model family."""

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
        """Draw one module's own weights: matrices and embeddings from N(0, std), scales and gates at their start."""
        if isinstance(module, BranchMatrix):
            generator = module.generator if isinstance(module, GateMatrix) else None
            initialization.normal_(module.weight, std=module.initial_std, generator=generator)
        elif isinstance(module, nn.Linear | nn.Embedding):
            initialization.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, ScaleNorm):
            module.reset()
        elif isinstance(module, DecoderLayer):
            if module.gpas_gate is not None:
                initialization.zeros_(module.gpas_gate)
        else:
            super()._init_weights(module)  # the tables of RotaryEmbedding

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize embedding and head as transformers does: to these rows and no more, so without padding rows.

        Added tokens start as if the padding rows, which are untrained, were not there. The head keeps its class, and so
        its chunked loss. `vocab_size_multiple` becomes 1 where the new number of tokens is no multiple of it.

        Args:
            new_num_tokens: The new `vocab_size`; None: as before.
            pad_to_multiple_of: The new `vocab_size` is rounded up to a multiple of it.
            mean_resizing: Draw new rows around the mean of the old ones rather than as at initialization.
        """
        if new_num_tokens is None and pad_to_multiple_of is None:
            return self.get_input_embeddings()  # type: ignore[return-value]
        head = self.get_output_embeddings()
        super().resize_token_embeddings(self.config.vocab_size)
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if self.config.padded_vocab_size != self.config.vocab_size:
            self.config.vocab_size_multiple = 1
        resized = self.get_output_embeddings()  # a plain matrix, where it is not tied
        if isinstance(head, LanguageModelHead) and isinstance(resized, nn.Linear):
            head.replace_weight(resized.weight)
            self.set_output_embeddings(head)
        return embedding


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
        """Compute the stream; arguments as in any transformers decoder.

        Without a mask and the cache of tokens before, `position_ids` that restart mark packed documents, which do not
        attend to each other.

        Returns:
            The stream after the final norm (B, T, D), the cache if used, and hidden states and attentions if requested.

        Raises:
            ValueError: Both or neither of `input_ids` (B, T) and `inputs_embeds` (B, T, D) are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids, inputs_embeds: give exactly one of them")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        mask = create_causal_mask(self.config, hidden_states, attention_mask, past_key_values, position_ids)
        if use_cache and past_key_values is None:  # after the mask: beside a cache, packed documents are not recognized
            past_key_values = DynamicCache(config=self.config)
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
    """Output of a forward pass of PeriLNForCausalLM."""

    loss: Tensor | None = None  # the objective, z-loss included; fp32 scalar
    z_loss: Tensor | None = None  # the z-loss part of it, detached
    logits: Tensor | None = None  # (B, T, V); None beside labels where `return_logits` says so
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
        return_logits: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> PeriLNOutput:
        """Return the logits and, if there are labels, the loss.

        Without logits, the loss is computed in chunks of tokens, so that all logits never exist at once. In training
        that is the default; otherwise logits come beside the loss, as evaluation with metrics of its own expects.

        Args:
            input_ids: (B, T).
            attention_mask: (B, S), 0 where there is padding.
            position_ids: (B, T).
            past_key_values: Keys and values of the tokens before.
            inputs_embeds: (B, T, D), instead of `input_ids`.
            labels: (B, T), the tokens themselves, shifted by one in here; -100 is ignored.
            use_cache: Return a cache; None: as `config.use_cache` says, but never in training.
            logits_to_keep: Number of final positions, or indices of the positions, to return logits for; 0: all.
            return_logits: Return logits beside the loss; None: unless the model is in training mode.
            num_items_in_batch: Divisor of the summed loss; None: the number of valid tokens.
            kwargs: `shift_labels` (B, T), the label of each position, already shifted, instead of `labels`; not in the
                signature, as transformers' Trainer would then require it beside `labels`. `output_hidden_states`,
                `output_attentions`, and arguments of the attention implementation.
        """
        shift_labels: Tensor | None = kwargs.pop("shift_labels", None)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=False if use_cache is None and self.training else use_cache,
            **kwargs,
        )
        if shift_labels is None and labels is not None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        loss = z_loss = logits = None
        if shift_labels is None:
            logits = self._logits(outputs.last_hidden_state[:, positions])
        else:
            shift_labels = shift_labels.to(outputs.last_hidden_state.device)  # the last of several, under a device_map
            with_logits = not self.training if return_logits is None else return_logits
            sums, logits = self._loss(outputs.last_hidden_state, shift_labels, with_logits=with_logits)
            num_items = (shift_labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
            num_items = num_items.to(sums.loss_sum.device) if isinstance(num_items, Tensor) else num_items
            loss = sums.loss_sum / num_items
            z_loss = sums.z_loss_sum / num_items if self.config.z_loss_coefficient else None
            logits = None if logits is None else logits[:, positions]
        return PeriLNOutput(
            loss=loss,
            z_loss=z_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _logits(self, hidden_states: Tensor) -> Tensor:
        """Return logits (B, T, V), without the columns of the padding."""
        columns = self.config.vocab_size
        if isinstance(self.lm_head, LanguageModelHead):
            return self.lm_head(hidden_states, columns=columns)
        return self.lm_head(hidden_states)[..., :columns].contiguous()  # for instance PEFT's around ours

    def _loss(self, hidden_states: Tensor, labels: Tensor, *, with_logits: bool) -> tuple[HeadLoss, Tensor | None]:
        """Return the summed loss of (B, T, D) and, if requested, the logits (B, T, V)."""
        if isinstance(self.lm_head, LanguageModelHead) and not with_logits:
            return self.lm_head(hidden_states, labels), None
        logits = self._logits(hidden_states)
        return loss_of_logits(logits, labels, self.config.z_loss_coefficient), logits if with_logits else None

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, and name the decoder without head too, so that AutoModel loads the folder."""
        code = type(self).__module__.rpartition(".")[2]
        auto_map = getattr(self.config, "auto_map", None) or {}
        self.config.auto_map = auto_map | {PeriLNModel._auto_class: f"{code}.{PeriLNModel.__name__}"}
        super().save_pretrained(save_directory, *args, **kwargs)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count parameters; `exclude_embeddings` excludes the head too, as in the sizes stated in papers."""
        vocabulary = {self.model.embed_tokens.weight, self.lm_head.weight}
        counted = set(self.parameters()) - (vocabulary if exclude_embeddings else set())
        return sum(parameter.numel() for parameter in counted if parameter.requires_grad or not only_trainable)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """Return the role of each parameter, for weight decay; a head tied to the embedding counts as the embedding."""
        return {name: parameter_role(name) for name, _ in self.named_parameters()}

    def flops_per_token(self, sequence_length: int) -> float:
        """Count the operations of a training step per token: 6 N + 6 L H K T (facts_counts_periln.py)."""
        return flops_per_token(self.config.shape, sequence_length)

    def compile_blocks(self) -> None:
        """Compile each layer and the elementwise part of the loss in place, for fixed shapes; names do not change."""
        for layer in self.model.layers:
            layer.compile(dynamic=False)
        self.lm_head.chunk_loss = torch.compile(chunk_loss, dynamic=False)


def parameter_role(name: str) -> ParameterRole:
    """Return the role of a parameter of PeriLNForCausalLM by its name; an untied head is a matrix."""
    module, _, kind = name.rpartition(".")
    if module.endswith("output_norm"):
        return "output_norm"
    if module.endswith("norm") or kind in ("bias", "gpas_gate"):
        return "norm_or_bias"
    return "embedding" if module.endswith("embed_tokens") else "matrix"
