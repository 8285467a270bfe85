"""Cross-field checks for language-model configs: shape, text sources, and settings that would be ignored."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields

from modeling.decoder.facts_counts_periln import count_parameters
from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.facts_rules_periln import has_output_norms, shape_faults
from train.config.tasks.language_model import EMBEDDED_CORPUS
from train.config.tasks.rules_labels import labels_name_metrics
from train.config.tasks.values import Rule, Values

_MOST_PARAMETERS = 10**15
_SMALLEST_BPE = 257  # 256 bytes and the end-of-text token


def _shape_goes_together(values: Values) -> Iterator[str]:
    """Apply the checks of the model configuration."""
    for fault in shape_faults(values.below("task.model.")):
        yield f"task.model.{fault.key}: {fault.message}"


def _model_can_exist(values: Values) -> Iterator[str]:
    model = values.below("task.model.")
    if model.keys() >= {each.name for each in fields(DecoderShape)} and not list(shape_faults(model)):
        count = count_parameters(DecoderShape(**model)).total
        if count > _MOST_PARAMETERS:
            yield (
                f"task.model: {count:.3g} parameters are more than any machine trains ({_MOST_PARAMETERS:.0e}); lower "
                "hidden_size, intermediate_size, num_hidden_layers or vocab_size"
            )


def _decayed_norms_exist(values: Values) -> Iterator[str]:
    frozen, layers = values["task.model.frozen_norm_scales"], values["task.model.num_hidden_layers"]
    lacking = not has_output_norms(values["task.model.norm_placement"], layers)
    if values["optim.output_norm_weight_decay"] and (lacking or frozen != "none"):
        why = "no layer has an output norm" if lacking else f"task.model.frozen_norm_scales is {frozen}"
        yield f"optim.output_norm_weight_decay: has no effect because {why}; write 0"


def _windows_fit_the_positions(values: Values) -> Iterator[str]:
    window, longest = values["task.data.sequence_length"], values["task.model.max_position_embeddings"]
    if window > longest:
        yield (
            f"task.data.sequence_length: {window} exceeds task.model.max_position_embeddings ({longest}); "
            f"lower the former or raise the latter"
        )


def _vocabulary_holds_the_bytes(values: Values) -> Iterator[str]:
    size = values["task.model.vocab_size"]
    if values["task.data.tokenizer"] == "byte-bpe" and size < _SMALLEST_BPE:
        yield f"task.model.vocab_size: {size} is too small for the byte-bpe tokenizer; write {_SMALLEST_BPE} or more"


def _there_is_a_source(values: Values) -> Iterator[str]:
    if not values["task.data.sources"]:
        yield f"task.data.sources: is empty; list at least one source, as in [{EMBEDDED_CORPUS}]"


def _validation_is_given_once(values: Values) -> Iterator[str]:
    fraction, path = values["task.data.validation_fraction"], "task.data.validation_fraction"
    if fraction is not None and values["task.data.validation_sources"]:
        yield (
            f"{path}: has no effect together with task.data.validation_sources; remove one of them, or write "
            f"{path}=null"
        )


def _sources_read_their_keys(values: Values) -> Iterator[str]:
    """Reject keys that a source would ignore, as far as its path tells."""
    for section in ("sources", "validation_sources"):
        for number, source in enumerate(values[f"task.data.{section}"]):
            for key in _ignored_keys(source.path):
                if getattr(source, key) is not None:
                    yield f"task.data.{section}.{number}.{key}: has no effect on {source.path}; remove it"


def _ignored_keys(path: str) -> tuple[str, ...]:
    if path == EMBEDDED_CORPUS:
        return ("name", "split", "text_column", "document_separator", "streaming")
    path = re.sub(r"\.(gz|zst|bz2|xz)$", "", path.lower())
    if re.search(r"\.(txt|text|md|markdown|rst)$", path):
        return ("name", "split", "text_column", "streaming")
    if re.search(r"\.(jsonl?|ndjson|parquet|csv|tsv)$", path):
        return ("name", "split", "document_separator", "streaming")
    return ()


def _tokens_can_be_counted(values: Values) -> Iterator[str]:
    if values["task.data.tokenizer"] != "byte-bpe":
        return
    for section in ("sources", "validation_sources"):
        for number, source in enumerate(values[f"task.data.{section}"]):
            if source.max_tokens is not None:
                yield (
                    f"task.data.{section}.{number}.max_tokens: byte-bpe is trained on the documents, so it cannot "
                    "count their tokens first; write max_documents, or another task.data.tokenizer"
                )


def _gradients_have_a_type(values: Values) -> Iterator[str]:
    gradients, precision = values["engine.gradient_dtype"], values["engine.precision"]
    if gradients == "bf16" and precision == "fp32":
        yield "engine.gradient_dtype: bf16 has no effect at engine.precision fp32; write fp32, or engine.precision=bf16"
    elif gradients == "fp32" and precision != "fp32" and values["engine.zero_stage"] == 0:
        yield (
            f"engine.gradient_dtype: fp32 is not available at engine.zero_stage 0 with engine.precision {precision}: "
            f"DeepSpeed has no fp32 accumulation there; write engine.zero_stage=1 or engine.gradient_dtype=bf16"
        )


def _flash_attention_has_bf16(values: Values) -> Iterator[str]:
    attention, precision = values["task.attention"], values["engine.precision"]
    if attention.startswith("flash_attention") and precision == "fp32":
        yield f"task.attention: {attention} does not run in engine.precision fp32; write sdpa, or engine.precision=bf16"


RULES: tuple[Rule, ...] = (
    _shape_goes_together,
    _model_can_exist,
    _decayed_norms_exist,
    _windows_fit_the_positions,
    _vocabulary_holds_the_bytes,
    _there_is_a_source,
    _validation_is_given_once,
    _sources_read_their_keys,
    _tokens_can_be_counted,
    labels_name_metrics,
    _gradients_have_a_type,
    _flash_attention_has_bf16,
)
