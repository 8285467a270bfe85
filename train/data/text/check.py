"""The check of a corpus before a run: what preparation would refuse, as far as a sample of the sources tells."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
from tokenizers import pre_tokenizers

from train.config.errors import ConfigError
from train.config.tasks.language_model import TextDataConfig
from train.data.text import corpus
from train.data.text.cache import counting, quiet_datasets, require_window
from train.data.text.documents.reader import Sample
from train.data.text.tokenizer import BYTE_BPE, DOCUMENTS_AT_A_TIME, load, train_byte_bpe
from train.data.text.windows import batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def check(config: TextDataConfig, *, vocab_size: int) -> list[str]:
    """Check sources and tokenizer by the functions that prepare the data; return what was read, a line each.

    Small sources are read whole, of large ones the beginning of each file. If all are read whole, there must be enough
    text for a window.

    Raises:
        ConfigError: With every fault.
    """
    quiet_datasets()
    faults: list[str] = []
    tokenizer = None
    if config.tokenizer != BYTE_BPE:
        try:
            tokenizer = load(config.tokenizer, vocab_size=vocab_size)
        except ConfigError as error:
            faults += error.faults
    with tempfile.TemporaryDirectory() as work:
        try:
            read = corpus.read(config, Path(work), count=counting(tokenizer), sample=Sample())
        except ConfigError as error:
            raise ConfigError([*faults, *error.faults]) from error
        if faults:
            raise ConfigError(faults)
        if read.is_whole:
            _require_windows(read, config, tokenizer, vocab_size)
        return [*corpus.report(read.facts), *corpus.warnings(read.facts)]


def _require_windows(
    read: corpus.Corpus, config: TextDataConfig, tokenizer: PreTrainedTokenizerFast | None, vocab_size: int
) -> None:
    """Tokenize until each split has a window.

    Raises:
        ConfigError: One has not.
    """
    needed = config.sequence_length + 1
    for split, documents in (("training", read.training), ("validation", read.validation)):
        if tokenizer is None and _has_words(documents, needed):
            continue
        tokenizer = tokenizer or train_byte_bpe(read.training, vocab_size=vocab_size)
        count, tokens = counting(tokenizer), 0
        assert count is not None
        for batch in batches(documents, DOCUMENTS_AT_A_TIME):
            tokens += sum(count(batch["text"])) + len(batch["text"])
            if tokens >= needed:
                break
        require_window(tokens, split, config)


def _has_words(documents: datasets.Dataset, needed: int) -> bool:
    """Return whether there are that many words, of which byte-bpe makes at least a token each; no training needed."""
    split, words = pre_tokenizers.ByteLevel(add_prefix_space=False), 0
    for batch in batches(documents, DOCUMENTS_AT_A_TIME):
        for text in batch["text"]:
            words += len(split.pre_tokenize_str(text[: 16 * needed]))
            if words >= needed:
                return True
    return False
