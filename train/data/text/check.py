"""The check of a corpus before a run: what preparation would refuse, as far as a sample of the sources tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tokenizers import pre_tokenizers

from train.config.errors import ConfigError
from train.config.tasks.language_model import TextDataConfig
from train.data.split import SPLITS, Split
from train.data.text import corpus
from train.data.text.cache import require_window
from train.data.text.corpus import NamedReader, Splitter
from train.data.text.documents.reader import Sample
from train.data.text.tokenizer import BYTE_BPE, encode, load, train_byte_bpe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def check(config: TextDataConfig, *, vocab_size: int) -> list[str]:
    """Check sources and tokenizer by the functions that prepare the data; return what was read, a line each.

    Small sources are read whole, of large ones the beginning of each file. If all are read whole, there must be enough
    text for a window.

    Raises:
        ConfigError: With every fault.
    """
    faults: list[str] = []
    tokenizer = None
    if config.tokenizer != BYTE_BPE:
        try:
            tokenizer = load(config.tokenizer, vocab_size=vocab_size)
        except ConfigError as error:
            faults += error.faults
    readers: list[NamedReader] = []
    for path, source in corpus.named_sources(config):
        try:
            readers.append(corpus.open_reader(config, path, source, sample=Sample()))
            for _ in readers[-1].reader:
                pass
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults)
    facts = corpus.facts(config, readers)
    if not any(named.reader.counts.files_cut for named in readers):
        _require_windows(config, readers, tokenizer, vocab_size)
    return [*corpus.report(facts), *corpus.warnings(facts)]


def _require_windows(
    config: TextDataConfig, readers: Sequence[NamedReader], tokenizer: PreTrainedTokenizerFast | None, vocab_size: int
) -> None:
    """Tokenize until each split has a window.

    Raises:
        ConfigError: One has not.
    """
    needed, split_of = config.sequence_length + 1, corpus.splitter(config, readers)
    for split in SPLITS:
        if tokenizer is None and _has_words(_texts(readers, split_of, split), needed):
            continue
        tokenizer = tokenizer or train_byte_bpe(corpus.training_sample(readers, split_of)[0], vocab_size=vocab_size)
        require_window(_count(readers, split_of, split, tokenizer, needed), split, config)


def _count(
    readers: Sequence[NamedReader], split_of: Splitter, split: Split, tokenizer: PreTrainedTokenizerFast, needed: int
) -> int:
    """Return the number of tokens of a split, or one that is at least `needed`."""
    tokens = 0
    for named in readers:
        most, of_source = named.reader.source.max_tokens, 0
        for document in named.reader:
            ids = encode([document.text], tokenizer.backend_tokenizer, counts_bytes=False)["ids"][0]
            of_source += len(ids) + 1
            if split_of(named, corpus.content_key(document.text)) == split:
                tokens += len(ids) + 1
            if tokens >= needed or (most is not None and of_source >= most):
                break
        if tokens >= needed:
            break
    return tokens


def _texts(readers: Sequence[NamedReader], split_of: Splitter, split: Split) -> Iterator[str]:
    for named in readers:
        for document in named.reader:
            if split_of(named, corpus.content_key(document.text)) == split:
                yield document.text


def _has_words(texts: Iterable[str], needed: int) -> bool:
    """Return whether there are that many words, of which byte-bpe makes at least a token each; no training needed."""
    split, words = pre_tokenizers.ByteLevel(add_prefix_space=False), 0
    for text in texts:
        words += len(split.pre_tokenize_str(text[: 16 * needed]))
        if words >= needed:
            return True
    return False
