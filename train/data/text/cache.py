"""Preparation of text: `prepare` reads, splits, tokenizes, packs and caches it, once.

    sources -> documents -> training | validation, by content -> tokens -> windows -> cache_dir/text-KEY/

The key is derived from the settings and from names, sizes and times of the files; the fingerprint that a resumed run
compares is derived from the windows themselves.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from train.config.errors import ConfigError
from train.config.tasks.language_model import DEFAULT_VALIDATION_FRACTION, SourceConfig, TextDataConfig
from train.data.text import corpus
from train.data.text.windows import TextData, WindowWriter, batches, token_byte_counts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

FORMAT = 1
BYTE_BPE = "byte-bpe"
END_OF_TEXT = "<|endoftext|>"
_OTHER_ENDS = ("</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")
BPE_TRAINING_BYTES = 8_000_000  # more text barely changes the merges and takes longer
PREPARE_FIRST_BYTES = 1_000_000_000
IN_PROCESS_BYTES = 64_000_000  # below this size, forking workers costs more than it saves
DOCUMENTS_AT_A_TIME = 256


def prepare(config: TextDataConfig, *, vocab_size: int, may_tokenize: bool = False) -> TextData:
    """Return the prepared data, preparing it first if it is not cached.

    Several processes may call this concurrently; one does the work and the others wait for it.

    Args:
        config: Sources, tokenizer, windows.
        vocab_size: Vocabulary size of the model; a tokenizer trained here has that size.
        may_tokenize: Whether a corpus over 1 GB may be tokenized now.

    Raises:
        ConfigError: Sources or tokenizer are invalid, or the corpus must be prepared first.
        OSError: The cache cannot be written.
    """
    folder = Path(config.cache_dir).expanduser() / f"text-{_key(config, vocab_size)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "facts.json").exists():
            _require_small(config, may_tokenize)
            _build(config, folder, vocab_size=vocab_size)
    return TextData(folder, validation_windows=config.validation_windows)


def check(config: TextDataConfig, *, vocab_size: int) -> None:
    """Check sources and tokenizer without preparing the data.

    Raises:
        ConfigError: With every fault.
    """
    faults: list[str] = []
    for path, source in _named_sources(config):
        files = corpus.local_files(source)
        is_local = source.path.startswith(("/", ".", "~")) or Path(source.path).suffix in (".txt", ".jsonl", ".parquet")
        if not files and is_local:
            faults.append(f"{path}.path: {source.path} does not exist or contains no files")
    if config.tokenizer != BYTE_BPE:
        try:
            _require_room(load_tokenizer(config.tokenizer), config.tokenizer, vocab_size)
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults)


def _named_sources(config: TextDataConfig) -> list[tuple[str, SourceConfig]]:
    groups = (("sources", config.sources), ("validation_sources", config.validation_sources))
    return [(f"task.data.{name}[{i}]", source) for name, group in groups for i, source in enumerate(group)]


def _key(config: TextDataConfig, vocab_size: int) -> str:
    ignored = replace(config, cache_dir="", num_workers=None, seed=0, validation_windows=None)
    parts = [FORMAT, ignored, [corpus.identity(source) for _, source in _named_sources(config)]]
    if config.tokenizer == BYTE_BPE:
        parts.append(vocab_size)
    elif Path(config.tokenizer).expanduser().exists():
        parts.append(corpus.identity(SourceConfig(path=config.tokenizer)))
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _require_small(config: TextDataConfig, may_tokenize: bool) -> None:
    size = corpus.size_on_disk([*config.sources, *config.validation_sources])
    if size > PREPARE_FIRST_BYTES and not may_tokenize:
        raise ConfigError(
            [
                f"task.data.sources: {size / 1e9:.1f} GB are not tokenized yet; run `python -m train CONFIG --prepare` "
                "first, which needs no GPU"
            ]
        )


# ------------------------------------------------------------------------------------------------------- building


def _build(config: TextDataConfig, folder: Path, *, vocab_size: int) -> None:
    """Build the cache folder under a temporary name and rename it at the end."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    logger.info("tokenizing %s", ", ".join(source.path for source in config.sources))
    training, validation, facts = _split(config, partial / "work")
    tokenizer = _tokenizer(config, training, vocab_size)
    end = end_of_text_id(tokenizer, config.tokenizer)
    tokenizer.save_pretrained(partial / "tokenizer")
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    digest = hashlib.blake2b(f"{config.sequence_length} {end}".encode(), digest_size=8)
    for split, documents in (("training", training), ("validation", validation)):
        writer = WindowWriter(partial / f"{split}.arrow", sequence_length=config.sequence_length, dtype=dtype)
        facts |= _write_windows(writer, documents, tokenizer.backend_tokenizer, end, config=config, split=split)
        _require_windows(writer.num_windows, split, config)
        digest.update(writer.digest.digest())
    del training, validation
    shutil.rmtree(partial / "work", ignore_errors=True)
    facts |= {"fingerprint": digest.hexdigest(), "eos_token_id": end, "tokenizer_size": len(tokenizer)}
    (partial / "facts.json").write_text(json.dumps(facts, indent=1))
    partial.rename(folder)


def _split(config: TextDataConfig, work: Path) -> tuple[datasets.Dataset, datasets.Dataset, dict[str, Any]]:
    """Return training and validation documents; equal documents are never in both."""
    opened = {path: corpus.open_source(source, path=path, cache_dir=work) for path, source in _named_sources(config)}
    documents = datasets.concatenate_datasets([t for path, t in opened.items() if path.startswith("task.data.sources")])
    keys = _content_keys(documents)
    separate = [table for path, table in opened.items() if path.startswith("task.data.validation_sources")]
    if separate:
        validation = datasets.concatenate_datasets(separate)
        held_out = np.isin(keys, _content_keys(validation))
        training = documents.select(np.flatnonzero(~held_out))
    else:
        fraction = config.validation_fraction or DEFAULT_VALIDATION_FRACTION
        held_out = keys < np.uint64(int(fraction * 2**64))
        training, validation = documents.select(np.flatnonzero(~held_out)), documents.select(np.flatnonzero(held_out))
    facts = {
        **corpus.facts(),
        "corpus_hash": hashlib.blake2b(np.sort(keys).tobytes(), digest_size=8).hexdigest(),
        "training_documents": len(training),
        "validation_documents": len(validation),
        "training_documents_dropped_as_in_validation": int(held_out.sum()) if separate else 0,
    }
    return training, validation, facts


def _content_keys(table: datasets.Dataset) -> np.ndarray:
    parts = [corpus.content_keys(batch["text"]) for batch in batches(table, DOCUMENTS_AT_A_TIME)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _write_windows(
    writer: WindowWriter,
    documents: datasets.Dataset,
    tokenizer: Tokenizer,
    end: int,
    *,
    config: TextDataConfig,
    split: str,
) -> dict[str, int]:
    """Tokenize and pack documents, each followed by the end-of-text token, and return counts."""
    counts_bytes = split == "validation"
    tokens = 0
    for row in _tokenized(documents, tokenizer, config, counts_bytes=counts_bytes, label=split):
        ids = np.append(np.asarray(row["ids"]), end)
        sizes = np.append(np.asarray(row["bytes"], np.int64), 0) if counts_bytes else None
        writer.add(ids, sizes)
        tokens += len(ids)
    return {
        f"{split}_tokens": tokens,
        f"{split}_tokens_dropped": writer.close(),
        f"{split}_windows": writer.num_windows,
    }


def _tokenized(
    documents: datasets.Dataset, tokenizer: Tokenizer, config: TextDataConfig, *, counts_bytes: bool, label: str
):
    """Yield the token ids of each document in order, regardless of the number of workers."""
    workers = config.num_workers
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if documents.data.nbytes > IN_PROCESS_BYTES else 1
    if workers == 1:  # in this process, on the tokenizer's own threads
        for batch in _with_progress(documents, label):
            encoded = encode(batch["text"], tokenizer, counts_bytes=counts_bytes)
            yield from ({key: encoded[key][i] for key in encoded} for i in range(len(batch["text"])))
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the library's threads do not survive a fork
    if sys.stderr.isatty():
        datasets.enable_progress_bars()
    table = documents.map(
        encode,
        batched=True,
        batch_size=DOCUMENTS_AT_A_TIME,
        fn_kwargs={"tokenizer": tokenizer, "counts_bytes": counts_bytes},
        input_columns=["text"],
        remove_columns=["text"],
        num_proc=min(workers, len(documents)),
        desc=f"tokenizing {label}",
        load_from_cache_file=False,
    )
    datasets.disable_progress_bars()
    for batch in batches(table.with_format("numpy"), DOCUMENTS_AT_A_TIME):
        yield from ({key: batch[key][i] for key in batch} for i in range(len(batch["ids"])))


def _with_progress(documents: datasets.Dataset, label: str):
    from tqdm import tqdm

    with tqdm(
        total=len(documents), desc=f"tokenizing {label}", unit="doc", leave=False, disable=not sys.stderr.isatty()
    ) as bar:
        for batch in batches(documents, DOCUMENTS_AT_A_TIME):
            yield batch
            bar.update(len(batch["text"]))


def encode(texts: list[str], tokenizer: Tokenizer, *, counts_bytes: bool) -> dict[str, list[Any]]:
    """Return the token `ids` of each document and, with `counts_bytes`, the number of `bytes` per token."""
    if not counts_bytes:
        return {"ids": [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]}
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    ends = [np.array([end for _, end in encoding.offsets], np.int64) for encoding in encodings]
    sizes = [token_byte_counts(text, end) for text, end in zip(texts, ends, strict=True)]
    return {"ids": [encoding.ids for encoding in encodings], "bytes": sizes}


def _require_windows(count: int, split: str, config: TextDataConfig) -> None:
    if count:
        return
    remedy = (
        "add text to task.data.sources"
        if split == "training"
        else "raise task.data.validation_fraction, or set task.data.validation_sources"
    )
    raise ConfigError(
        [f"task.data.sources: not enough text for a single {split} window of {config.sequence_length} tokens; {remedy}"]
    )


# ------------------------------------------------------------------------------------------------------ tokenizers


def _tokenizer(config: TextDataConfig, training: datasets.Dataset, vocab_size: int) -> PreTrainedTokenizerFast:
    if config.tokenizer == BYTE_BPE:
        return train_byte_bpe(training, vocab_size=vocab_size)
    tokenizer = load_tokenizer(config.tokenizer)
    _require_room(tokenizer, config.tokenizer, vocab_size)
    return tokenizer


def train_byte_bpe(documents: datasets.Dataset, *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE (as in GPT-2; it can encode any text) on up to 8 MB of evenly spaced documents."""
    from transformers import PreTrainedTokenizerFast

    stride = max(1, documents.data.nbytes // BPE_TRAINING_BYTES)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = documents.select(range(0, len(documents), stride))
    tokenizer.train_from_iterator((batch["text"] for batch in batches(sample, DOCUMENTS_AT_A_TIME)), trainer=trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a folder, a tokenizer.json, or a hub name.

    Raises:
        ConfigError: It cannot be loaded.
    """
    from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

    path = Path(name).expanduser()
    try:
        if path.is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(path))
        if path.is_dir() and not (path / "tokenizer.json").exists() and (path / "merges.txt").exists():
            return GPT2Tokenizer.from_pretrained(path)
        loaded = AutoTokenizer.from_pretrained(path if path.is_dir() else name)
    except Exception as error:  # the library passes on any error of its readers and the network
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise ConfigError(
            [
                f"task.data.tokenizer: {name!r} could not be loaded ({reason}); use {BYTE_BPE!r}, a folder with a "
                "tokenizer, a tokenizer.json, or a hub name"
            ]
        ) from error
    if not getattr(loaded, "is_fast", False):
        raise ConfigError([f"task.data.tokenizer: {name!r} has no fast tokenizer (tokenizer.json)"])
    return loaded


def _require_room(tokenizer: PreTrainedTokenizerFast, name: str, vocab_size: int) -> None:
    if len(tokenizer) > vocab_size:
        raise ConfigError(
            [
                f"task.model.vocab_size: the tokenizer {name!r} has {len(tokenizer)} tokens, but the model only "
                f"{vocab_size}; write task.model.vocab_size={len(tokenizer)}"
            ]
        )
    end_of_text_id(tokenizer, name)


def end_of_text_id(tokenizer: PreTrainedTokenizerFast, name: str) -> int:
    """Return the id of the token that ends a document.

    Raises:
        ConfigError: The tokenizer has none.
    """
    if isinstance(tokenizer.eos_token_id, int):
        return tokenizer.eos_token_id
    vocabulary = tokenizer.get_vocab()
    for token in (END_OF_TEXT, *_OTHER_ENDS):
        if token in vocabulary:
            tokenizer.eos_token = token
            return vocabulary[token]
    raise ConfigError(
        [f"task.data.tokenizer: {name!r} has no end-of-text token; set eos_token and save the tokenizer again"]
    )
