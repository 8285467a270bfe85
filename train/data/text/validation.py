"""Validation text by itself: its sources tokenized into memory, the text of each label as windows of its own.

T  sequence_length

For evaluations, which need no training text, and for runs whose validation sources have labels. Window k of a set is
the tokens [kT, kT + T] of its documents, each followed by the end-of-text token, as in a prepared corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from train.config.errors import ConfigError
from train.config.tasks.language_model import TextDataConfig
from train.data.text.documents.reader import DocumentReader
from train.data.text.tokenizer import DOCUMENTS_AT_A_TIME, encode, end_of_text_id, load

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from train.data.text.cache import TextData

_FILES = 20  # that are named in the facts


def without_labels(config: TextDataConfig) -> TextDataConfig:
    """Return the configuration of the same text without labels, on which no prepared corpus depends."""
    return replace(config, validation_sources=tuple(replace(s, label=None) for s in config.validation_sources))


def labels(config: TextDataConfig) -> list[str | None]:
    """Return the labels of the validation sources in their order; None stands for sources without one."""
    return list(dict.fromkeys(source.label for source in config.validation_sources))


class ValidationSet(NamedTuple):
    """The text of one label.

    Args:
        tokens: (n,) uint32.
        token_bytes: (n,) int32, bytes of text of each token.
        num_windows: Windows that are judged.
        facts: What was read.
    """

    tokens: np.ndarray
    token_bytes: np.ndarray
    num_windows: int
    facts: dict[str, Any]


class ValidationText:
    """The validation windows of one or several sets, one set after the other; takes 8 bytes of memory per token.

    Args:
        config: Sources, sequence length, and the number of windows of each set to judge.
        tokenizer: The tokenizer of the model.

    Raises:
        ConfigError: A source cannot be read, or a set is shorter than a window.
    """

    def __init__(self, config: TextDataConfig, tokenizer: PreTrainedTokenizerFast):
        self.labels = labels(config)
        self.eos_token_id = end_of_text_id(tokenizer, config.tokenizer)
        self._length = config.sequence_length
        self._sets, faults = list[ValidationSet](), list[str]()
        for label in self.labels:
            try:
                self._sets.append(_read(config, label, tokenizer, self.eos_token_id))
            except ConfigError as error:
                faults += error.faults
        if faults:
            raise ConfigError(faults)
        self.sizes = [each.num_windows for each in self._sets]
        self._ends = np.cumsum(self.sizes)

    @property
    def num_samples(self) -> int:
        """Number of windows in all sets."""
        return sum(self.sizes)

    @property
    def facts(self) -> list[dict[str, Any]]:
        """What was read, by set."""
        return [each.facts for each in self._sets]

    @property
    def fingerprint(self) -> str:
        """A hash of all windows."""
        digest = hashlib.blake2b(f"{self._length} {self.labels}".encode(), digest_size=8)
        for each in self._sets:
            count = each.num_windows * self._length + 1
            digest.update(each.tokens[:count].tobytes())
            digest.update(each.token_bytes[:count].tobytes())
        return digest.hexdigest()

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Return windows, int64 (B, T + 1)."""
        places = (self._place(int(index)) for index in ids)
        return np.stack([of.tokens[start : start + self._length + 1] for of, start in places]).astype(np.int64)

    def target_bytes(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of UTF-8 bytes in the targets of each window, int64 (B,)."""
        places = (self._place(int(index)) for index in ids)
        sums = [of.token_bytes[start + 1 : start + self._length + 1].sum() for of, start in places]
        return np.array(sums, np.int64)

    def sets(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of each window's set, int64 (B,)."""
        return np.searchsorted(self._ends, ids, side="right").astype(np.int64)

    def _place(self, index: int) -> tuple[ValidationSet, int]:
        number = int(self.sets(np.array(index)))
        first = int(self._ends[number]) - self.sizes[number]
        return self._sets[number], (index - first) * self._length


def labelled(config: TextDataConfig, data: TextData, *, vocab_size: int) -> ValidationText | None:
    """Return the validation text of a configuration with labels, None without; tokenized as the prepared corpus."""
    if not any(labels(config)):
        return None
    with TemporaryDirectory() as folder:
        data.save_tokenizer(Path(folder))
        return ValidationText(config, load(folder, vocab_size=vocab_size))


def facts_of(data: TextData, validation: ValidationText | None) -> dict[str, Any]:
    """Return the facts about a prepared corpus and the validation text apart from it."""
    facts: dict[str, Any] = dict(data.facts)
    if validation is not None:
        facts["validation_sets"] = validation.facts
    elif data.num_validation_samples < facts["validation_windows"]:
        facts["validation_windows_used"] = data.num_validation_samples
    return facts


def _read(config: TextDataConfig, label: str | None, tokenizer: PreTrainedTokenizerFast, end: int) -> ValidationSet:
    """Read the sources of a label, no further than the windows that are judged.

    Raises:
        ConfigError: One cannot be read, or all of them together are shorter than a window.
    """
    length, most = config.sequence_length, config.validation_windows
    readers = {
        number: DocumentReader(source, path=path_of(number), on_bad_document=config.on_bad_document)
        for number, source in enumerate(config.validation_sources)
        if source.label == label
    }
    tokens: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    files: dict[str, None] = {}
    count, is_cut = 0, False
    for file, ids, token_bytes in (each for reader in readers.values() for each in _encoded(reader, tokenizer, end)):
        files[file] = None
        tokens.append(ids)
        sizes.append(token_bytes)
        count += len(ids)
        is_cut = most is not None and count > most * length
        if is_cut:
            break
    windows = max(0, count - 1) // length
    if windows == 0:
        raise ConfigError([_too_short(config, label, list(readers), count)])
    windows = min(windows, most or windows)
    all_bytes = np.concatenate(sizes)
    amounts = {"documents": len(tokens), "bytes": int(all_bytes.sum()), "tokens": count, "windows": windows}
    rest = {"first_windows_only": True} if is_cut else {"tokens_dropped": count - 1 - windows * length}
    skipped = sum(reader.counts.skipped for reader in readers.values())
    facts = {"label": label, "files": len(files), "first_files": list(files)[:_FILES], **amounts, **rest}
    facts |= {"skipped": skipped} if skipped else {}
    return ValidationSet(np.concatenate(tokens), all_bytes, windows, facts)


def path_of(number: int) -> str:
    """Return the path of a validation source in the configuration."""
    return f"task.data.validation_sources[{number}]"


def _encoded(
    reader: DocumentReader, tokenizer: PreTrainedTokenizerFast, end: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the file of each document, its tokens and their bytes, up to `max_tokens`."""
    most, tokens = reader.source.max_tokens, 0
    documents = iter(reader)
    while some := list(islice(documents, DOCUMENTS_AT_A_TIME if most is None else 1)):
        encoded = encode([found.text for found in some], tokenizer.backend_tokenizer, counts_bytes=True)
        for found, ids, token_bytes in zip(some, encoded["ids"], encoded["bytes"], strict=True):
            token_bytes = np.append(token_bytes, 0).astype(np.int32)  # the end of a document is no text
            yield found.file, np.array([*ids, end], np.uint32), token_bytes
            tokens += len(ids) + 1
        if most is not None and tokens >= most:
            return


def _too_short(config: TextDataConfig, label: str | None, numbers: list[int], tokens: int) -> str:
    where = path_of(numbers[0]) if len(numbers) == 1 else "task.data.validation_sources"
    of_label = "" if label is None else f" of the label {label}"
    return (
        f"{where}: not enough text{of_label} for a single validation window of {config.sequence_length}: there are "
        f"{tokens:,} tokens, {config.sequence_length + 1:,} are needed; add text, or lower task.data.sequence_length"
    )
