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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
from filelock import FileLock
from tokenizers import Tokenizer

from train.config.errors import ConfigError
from train.config.tasks.language_model import SourceConfig, TextDataConfig
from train.data.text import corpus
from train.data.text.documents import files
from train.data.text.tokenizer import BYTE_BPE, DOCUMENTS_AT_A_TIME, encode, end_of_text_id, load, train_byte_bpe
from train.data.text.windows import TextData, WindowWriter, batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

FORMAT = 1
PREPARE_FIRST_BYTES = 1_000_000_000
IN_PROCESS_BYTES = 64_000_000  # below this size, forking workers costs more than it saves


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


def _key(config: TextDataConfig, vocab_size: int) -> str:
    ignored = replace(config, cache_dir="", num_workers=None, seed=0, validation_windows=None)
    parts = [FORMAT, ignored, [files.identity(source) for _, source in corpus.named_sources(config)]]
    if config.tokenizer == BYTE_BPE:
        parts.append(vocab_size)
    elif Path(config.tokenizer).expanduser().exists():
        parts.append(files.identity(SourceConfig(path=config.tokenizer)))
    return hashlib.blake2b(files.stable_repr(parts).encode(), digest_size=8).hexdigest()


def _require_small(config: TextDataConfig, may_tokenize: bool) -> None:
    size = files.size_on_disk([*config.sources, *config.validation_sources])
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
    quiet_datasets()
    logger.info("tokenizing %s", ", ".join(source.path for source in config.sources))
    tokenizer = None if config.tokenizer == BYTE_BPE else load(config.tokenizer, vocab_size=vocab_size)
    training, validation, facts, _ = corpus.read(config, partial / "work", count=counting(tokenizer))
    for line in corpus.report(facts):
        logger.info("%s", line)
    for line in corpus.warnings(facts):
        logger.warning("%s", line)
    tokenizer = tokenizer or train_byte_bpe(training, vocab_size=vocab_size)
    end = end_of_text_id(tokenizer, config.tokenizer)
    tokenizer.save_pretrained(partial / "tokenizer")
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    digest = hashlib.blake2b(f"{config.sequence_length} {end}".encode(), digest_size=8)
    for split, documents in (("training", training), ("validation", validation)):
        writer = WindowWriter(partial / f"{split}.arrow", sequence_length=config.sequence_length, dtype=dtype)
        facts |= _write_windows(writer, documents, tokenizer.backend_tokenizer, end, config=config, split=split)
        require_window(facts[f"{split}_tokens"], split, config)
        digest.update(writer.digest.digest())
    del training, validation
    shutil.rmtree(partial / "work", ignore_errors=True)
    facts |= {"fingerprint": digest.hexdigest(), "eos_token_id": end, "tokenizer_size": len(tokenizer)}
    (partial / "facts.json").write_text(json.dumps(facts, indent=1))
    partial.rename(folder)


def quiet_datasets() -> None:
    """Keep the progress bars and messages of `datasets` off the screen."""
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()


def counting(tokenizer: PreTrainedTokenizerFast | None) -> Callable[[list[str]], list[int]] | None:
    """Return a function that counts the tokens of documents, given a tokenizer."""
    if tokenizer is None:
        return None
    backend = tokenizer.backend_tokenizer
    return lambda texts: [len(ids) for ids in encode(texts, backend, counts_bytes=False)["ids"]]


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


def require_window(tokens: int, split: str, config: TextDataConfig) -> None:
    """Check that the tokens of a split fill a window.

    Raises:
        ConfigError: They do not.
    """
    needed = config.sequence_length + 1
    if tokens >= needed:
        return
    remedy = (
        "add text to task.data.sources"
        if split == "training"
        else "raise task.data.validation_fraction, or set task.data.validation_sources"
    )
    if split == "validation" and config.validation_sources:
        remedy = "add text to task.data.validation_sources"
    raise ConfigError(
        [
            f"task.data.sources: not enough text for a single {split} window of {config.sequence_length}: there are "
            f"{tokens:,} tokens, {needed:,} are needed; {remedy}, or lower task.data.sequence_length"
        ]
    )
