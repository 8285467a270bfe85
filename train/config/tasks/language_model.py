"""Settings of language models: decoder, text, and task."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from modeling.decoder.facts_periln import default_rope_parameters
from modeling.decoder.facts_placements_periln import LayerPlacement, NormPlacement
from train.config.setting import section, setting

EMBEDDED_CORPUS = "python-stdlib"  # the source that every machine has
DEFAULT_VALIDATION_FRACTION = 0.01


@section
class DecoderConfig:
    """Shape and normalization of the decoder, with the fields and defaults of `modeling.decoder`'s PeriLNConfig."""

    vocab_size: int = setting(
        "Vocabulary size; also the target size of a byte-level BPE trained on the sources",
        default=32_000,
        at_least=1,
        at_most=10**8,
    )
    vocab_size_multiple: int = setting(
        "Embedding rows are padded to a multiple of this; padding is excluded from the loss",
        default=64,
        at_least=1,
        at_most=10**6,
    )
    hidden_size: int = setting("Width of the residual stream", default=1024, at_least=1, at_most=10**6)
    intermediate_size: int = setting("Width inside the gated MLP", default=4096, at_least=1, at_most=10**7)
    num_hidden_layers: int = setting("Number of blocks", default=24, at_least=1, at_most=10_000)
    num_attention_heads: int = setting("Number of query heads", default=8, at_least=1, at_most=10**5)
    num_key_value_heads: int = setting(
        "Number of key and value heads (grouped-query attention); divides the query heads",
        default=8,
        at_least=1,
        at_most=10**5,
    )
    head_dim: int | None = setting(
        "Width of a head; even", default=None, at_least=1, null="hidden_size / num_attention_heads", at_most=10**5
    )
    hidden_act: str = setting("Activation of the MLP's gate, by its name in transformers", default="silu")
    max_position_embeddings: int = setting("Longest sequence", default=8192, at_least=1, unit="tokens", at_most=10**9)
    norm_placement: NormPlacement | tuple[LayerPlacement, ...] = setting(
        "Placement of norms around each sub-layer: one name, or one per layer (docs/placements.md)", default="peri"
    )
    norm_kind: Literal["rmsnorm", "layernorm", "dyt"] = setting(
        "Kind of every norm; dyt is scale * tanh(alpha x) + bias", default="rmsnorm"
    )
    norm_eps: float = setting("Added to the mean square before its root", default=1e-6, at_least=1e-24, at_most=1e3)
    dyt_alpha: float = setting("Start of every alpha of dyt", default=0.5, at_least=1e-6, at_most=1e3)
    frozen_norm_scales: Literal["none", "output", "all"] = setting(
        "Norm scales fixed at their start: none, those on sub-layer outputs, or all", default="none"
    )
    embedding_norm: bool = setting("Normalize the embeddings", default=False)
    final_norm: bool = setting("Normalize the stream before the head", default=True)
    qk_norm: Literal["none", "head", "projection"] = setting(
        "Norm on queries and keys: none, per head, or over the whole projection", default="none"
    )
    residual_factor: float = setting(
        "Factor of what each sub-layer adds to the stream", default=1.0, at_least=1e-6, at_most=1e3
    )
    gpas: bool = setting(
        "Shrink the stream by a learned factor per layer that leaves its gradient alone (GPAS)", default=False
    )
    attention_gate: Literal["none", "head", "element"] = setting(
        "Sigmoid gates on the output of attention: none, one per head, or one per element", default="none"
    )
    rope_parameters: dict[str, Any] = setting(
        "Rotary position parameters in transformers' format: rope_type, rope_theta, and any others the type requires",
        factory=default_rope_parameters,
    )
    tie_word_embeddings: bool = setting("Share the embedding matrix with the head", default=False)
    initializer_range: float = setting(
        "Standard deviation of initial weights, unless the placement has an initialization of its own",
        default=0.02,
        at_least=1e-12,
        at_most=1e6,
    )
    initializer_scheme: Literal["normal", "depth_scaled"] = setting(
        "depth_scaled divides the deviation of output projections by sqrt(2 num_hidden_layers)", default="normal"
    )
    z_loss_coefficient: float = setting(
        "Coefficient of the squared log-partition term in the loss", default=0.0, at_least=0, at_most=1e6
    )


@section
class SourceConfig:
    """Source of text. A plain string in YAML is short for `{path: ...}`."""

    shorthand: ClassVar[str] = "path"

    path: str = setting(
        f"{EMBEDDED_CORPUS} (embedded); a file, glob or folder of text, JSON Lines, Parquet, CSV or saved `datasets`; "
        "or a `datasets` name",
        resume="by_fingerprint",
    )
    name: str | None = setting("Configuration of a `datasets` name", default=None, null="its default")
    split: str | None = setting("Split of a `datasets` name or saved folder", default=None, null="train")
    text_column: str | None = setting(
        "Column of JSON Lines, Parquet, CSV and `datasets`; a.b is the field b of the column a",
        default=None,
        null="text",
    )
    document_separator: str | None = setting(
        "Text files: the line that separates documents", default=None, null="one document per file"
    )
    max_documents: int | None = setting(
        "Number of documents, from the first", default=None, at_least=1, null="all", at_most=10**15
    )
    max_tokens: int | None = setting(
        "Number of tokens, from the first, after which no further document is read; not with byte-bpe",
        default=None,
        at_least=1,
        null="all",
        at_most=10**15,
    )
    streaming: bool | None = setting(
        "Read a `datasets` name from the hub while tokenizing, without storing it",
        default=None,
        null="true if max_documents or max_tokens is set",
    )
    label: str | None = setting(
        "Validation sources: sources with one label are a set with metrics of its own, as in validation_LABEL_loss",
        default=None,
        null="part of validation_loss only",
    )


@section
class TextDataConfig:
    """Text, tokenizer and windows of a language model."""

    sources: tuple[SourceConfig, ...] = setting("Text to train on", evaluation="run")
    tokenizer: str = setting(
        "byte-bpe (trained on the sources, vocab_size tokens), a folder, a tokenizer.json or a hub name "
        "(NAME, NAME@REVISION)",
        resume="by_fingerprint",
        judges=True,
    )
    sequence_length: int = setting("Length of a sample", unit="tokens", at_least=1, evaluation=True, at_most=10**9)
    validation_fraction: float | None = setting(
        "Fraction of documents held out for validation, chosen by a content hash",
        default=None,
        above=0,
        below=1,
        null=f"{DEFAULT_VALIDATION_FRACTION}",
        evaluation="run",
        judges=True,
    )
    validation_sources: tuple[SourceConfig, ...] = setting(
        "Text to validate on, instead of a held-out fraction", default=(), evaluation=True, judges=True
    )
    validation_windows: int | None = setting(
        "Number of samples to validate on, from the first; of each label, if there are several",
        default=None,
        at_least=1,
        null="all",
        evaluation=True,
        judges=True,
        at_most=10**12,
    )
    on_bad_document: Literal["refuse", "skip"] = setting(
        "What becomes of a document that cannot be read (malformed, not UTF-8, no text, cut off): refuse the data, or "
        "leave it out and count it",
        default="refuse",
        resume="free",  # the fingerprint of the data tells whether it made a difference
        report="ignored",
        evaluation=True,
    )
    seed: int = setting("Seed of the sample order", default=0, at_least=0, report="seed", at_most=2**64 - 1)
    cache_dir: str = setting(
        "Cache folder for tokenized text", default="cache", resume="free", report="ignored", evaluation="run"
    )
    num_workers: int | None = setting(
        "Number of tokenizer processes",
        default=None,
        at_least=1,
        null="one per core",
        resume="free",
        report="ignored",
        evaluation="run",
        at_most=1024,
    )


@section
class LanguageModelConfig:
    """Causal language modeling."""

    kind: Literal["language_model"] = setting("The task", default="language_model")
    model: DecoderConfig = setting("The decoder")
    data: TextDataConfig = setting("Its text")
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = setting(
        "Attention implementation, by its name in transformers", default="sdpa", evaluation="run"
    )
