"""Hugging Face folders of a native architecture: no code, loaded by plain transformers.

In memory are one shard of at most 2 GiB while the weights are written, then one module of one model at a time while
they are compared; models of up to 300M parameters are also loaded whole, to generate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig

from modeling.decoder.configuration_periln import PeriLNConfig
from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.modeling_periln import PeriLNForCausalLM
from train.config.facts.native import Architecture
from train.convert.rules import rules
from train.convert.steps import Read
from train.export.model_folder import complete_or_absent
from train.export.native_report import NativeReport
from train.export.native_weights import SHARD_BYTES, write_weights
from train.export.streaming import outline
from train.export.verification import verify
from train.tasks.task import Task

_WINDOWS, _TOKENS = 2, 64  # compared, of validation text and of random tokens each


def write_native_folder(
    config: PeriLNConfig,
    architecture: Architecture,
    read: Read,
    out: Path,
    *,
    dtype: torch.dtype,
    settings: Mapping[str, Any],
    tokens: dict[str, Tensor] | None,
    save_assets: Callable[[Path], None],
    card: Callable[[Path, NativeReport], None],
    shard_bytes: int = SHARD_BYTES,
) -> NativeReport:
    """Write a decoder as an architecture of transformers, atomically.

    Args:
        config: Ours, with its special tokens.
        architecture: The architecture, which fits it.
        read: Returns a tensor of ours by name, in fp32.
        out: The folder to write; an earlier one is replaced.
        dtype: Type of the weights on disk.
        settings: Of the configurations of model and generation, in addition.
        tokens: Tokens (B, T) to compare both models on, by what they are; None to skip the comparison.
        save_assets: Writes the tokenizer.
        card: Writes the model card into the folder.
        shard_bytes: Largest size of a file of weights.

    Raises:
        VerificationError: The folder does not compute what ours does; nothing is left of it.
    """
    with complete_or_absent(out) as partial:
        _write_config(config, architecture, partial, dtype, settings)
        shapes = {
            name: tensor.to("meta") for name, tensor in outline(lambda: PeriLNForCausalLM(config)).state_dict().items()
        }
        mapping = rules(architecture, DecoderShape.of(config))
        write_weights(partial, mapping, read, shapes=shapes, dtype=dtype, shard_bytes=shard_bytes)
        verification = None if tokens is None else verify(config, read, partial, tokens, dtype=dtype)
        report = NativeReport(architecture.class_name, _changes(architecture, DecoderShape.of(config)), verification)
        save_assets(partial)
        card(partial, report)
    return report


def _write_config(
    config: PeriLNConfig, architecture: Architecture, folder: Path, dtype: torch.dtype, settings: Mapping[str, Any]
) -> None:
    special = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")} | dict(settings)
    native = AutoConfig.for_model(architecture.model_type, **architecture.settings(DecoderShape.of(config)), **special)
    native.architectures, native.dtype = [architecture.class_name], dtype
    native.save_pretrained(folder)
    GenerationConfig(**special).save_pretrained(folder)


def _changes(architecture: Architecture, shape: DecoderShape) -> tuple[str, ...]:
    """Return what the export computed, cut off or reordered, a phrase each."""
    changes = {
        "embedding norm computed into the embedding, so `inputs_embeds` are normalized ones": shape.embedding_norm,
        "tied head written as a matrix of its own": shape.tie_word_embeddings and not architecture.is_tied(shape),
        f"{shape.padded_vocab_size - shape.vocab_size} rows of padding cut off the vocabulary": (
            shape.padded_vocab_size > shape.vocab_size
        ),
        "residual_factor multiplied into "
        + ("output-norm scales" if architecture.output_norms else "output projections"): (
            shape.residual_factor != 1 and not architecture.residual_multiplier
        ),
        "1/sqrt(l) of LNS multiplied into input-norm scales": "lns" in shape.layer_norm_placements,
    }
    return tuple(phrase for phrase, applies in changes.items() if applies)


def comparison_tokens(task: Task, config: PeriLNConfig) -> dict[str, Tensor]:
    """Return random tokens and, where the run has validation text, its first windows; (B, T) each."""
    generator, length = torch.Generator().manual_seed(0), min(_TOKENS, config.max_position_embeddings)
    tokens = {"random tokens": torch.randint(config.vocab_size, (_WINDOWS, length), generator=generator)}
    windows = min(_WINDOWS, task.num_validation_samples)
    if windows:
        batch = task.batch(np.arange(windows), split="validation", step=0)
        tokens["validation text"] = batch["tokens"][:, :length]
    return tokens
