"""Text, tokenizer and packed windows that the GPU script trains on, in one folder that may be moved.

    corpus.txt.xz   the documents            tokenizer/   trained on them, or a copy of the given one
    cache/          packed windows           data.json    sequence lengths, size of the tokenizer

Training finds packed windows by a key made of paths, sizes and times of the files. The script therefore trains with
this folder as its working folder, so that paths are relative, and `settle_times` gives the files a fixed time.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets

from train.config.tasks.language_model import EMBEDDED_CORPUS, SourceConfig, TextDataConfig
from train.data.text import cache, corpus

CORPUS, TOKENIZER, CACHE, FACTS = "corpus.txt.xz", "tokenizer", "cache", "data.json"
SEPARATOR = "<|document|>"
VALIDATION_FRACTION = 0.05
VOCAB_SIZE = 8192  # of the byte-level BPE, if no tokenizer is given
LENGTHS = (256, 2048, 8192)  # of the small decoder, of the speeds, of the longest window
MOST_CHARACTERS = 10_000_000  # about 2.5 million tokens: enough steps for a speed; keeps the kit small
PIECES = 200  # of a text that is one document, as documents are held out whole


class PackedData(NamedTuple):
    """A prepared folder."""

    folder: Path
    lengths: tuple[int, ...]
    tokenizer_size: int


def read_packed(folder: Path) -> PackedData:
    """Read what a folder holds and fix the times of its files.

    Raises:
        FileNotFoundError: The folder is not a prepared one.
    """
    facts = json.loads((folder / FACTS).read_text())
    settle_times(folder)
    return PackedData(folder, tuple(facts["lengths"]), facts["tokenizer_size"])


def pack(
    folder: Path,
    *,
    source: SourceConfig | None = None,
    tokenizer: Path | None = None,
    lengths: Sequence[int] = LENGTHS,
    vocab_size: int = VOCAB_SIZE,
) -> PackedData:
    """Write corpus, tokenizer and packed windows for each sequence length, replacing the folder.

    Args:
        folder: Where they go.
        source: The text; None for the standard library of Python.
        tokenizer: Folder of a tokenizer; None to train a byte-level BPE on the text.
        lengths: Sequence lengths, in tokens.
        vocab_size: Size of that BPE.

    Raises:
        ConfigError: The text or the tokenizer cannot be used.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as work:
        table = corpus.open_source(source or SourceConfig(path=EMBEDDED_CORPUS), path="CORPUS", cache_dir=Path(work))
        _write_corpus(folder / CORPUS, table)
        chosen = cache.train_byte_bpe(table, vocab_size=vocab_size) if tokenizer is None else None
        chosen = chosen or cache.load_tokenizer(str(tokenizer))
        chosen.save_pretrained(folder / TOKENIZER)
        del table
    (folder / FACTS).write_text(json.dumps({"lengths": list(lengths), "tokenizer_size": len(chosen)}) + "\n")
    settle_times(folder)
    before = Path.cwd()
    try:
        os.chdir(folder)  # the key of the packed windows is made of relative paths
        for length in lengths:
            cache.prepare(text_data(length), vocab_size=len(chosen), may_tokenize=True)
    finally:
        os.chdir(before)
    for lock in (folder / CACHE).glob("*.lock"):
        lock.unlink()
    return PackedData(folder, tuple(lengths), len(chosen))


def text_data(sequence_length: int) -> TextDataConfig:
    """Return the data settings of a run whose working folder is a prepared folder."""
    return TextDataConfig(
        sources=(SourceConfig(path=CORPUS, document_separator=SEPARATOR),),
        tokenizer=TOKENIZER,
        sequence_length=sequence_length,
        validation_fraction=VALIDATION_FRACTION,
        cache_dir=CACHE,
    )


def overrides(sequence_length: int) -> list[str]:
    """Return the same settings as words of a command line."""
    return [
        f'task.data.sources=[{{path: {CORPUS}, document_separator: "{SEPARATOR}"}}]',
        "task.data.validation_sources=[]",
        f"task.data.tokenizer={TOKENIZER}",
        f"task.data.sequence_length={sequence_length}",
        f"task.data.validation_fraction={VALIDATION_FRACTION}",
        f"task.data.cache_dir={CACHE}",
    ]


def settle_times(folder: Path) -> None:
    """Give the files that the key depends on a fixed time, which copying them changes."""
    for path in (folder / CORPUS, *(folder / TOKENIZER).iterdir()):
        os.utime(path, (0, 0))


def _write_corpus(path: Path, table: datasets.Dataset) -> None:
    texts = (row["text"] for row in table)  # type: ignore[index, call-overload]
    whole = _pieces(next(texts)) if len(table) == 1 else texts
    with lzma.open(path, "wt", encoding="utf-8", newline="\n", preset=6) as file:
        for text in _limited(whole):
            file.write(text if text.endswith("\n") else text + "\n")
            file.write(SEPARATOR + "\n")


def _pieces(text: str) -> Iterator[str]:
    """Cut a text at line ends into about PIECES pieces."""
    lines, size = [], 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= len(text) // PIECES:
            yield "".join(lines)
            lines, size = [], 0
    if lines:
        yield "".join(lines)


def _limited(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts until they hold MOST_CHARACTERS."""
    left = MOST_CHARACTERS
    for text in texts:
        if left <= 0:
            return
        left -= len(text)
        yield text
