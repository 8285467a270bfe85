"""Packed token windows on disk: written once as Arrow, read by index."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter

from train.data.split import Split

WINDOWS_AT_A_TIME = 1024


class WindowWriter:
    """Concatenates documents and cuts them into windows of `sequence_length + 1` tokens, `sequence_length` apart.

    Thus every token but the very first is predicted exactly once. An incomplete last window is dropped.
    """

    def __init__(self, path: Path, *, sequence_length: int, dtype: np.dtype):
        self.num_windows = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self._length = sequence_length
        self._dtype = dtype
        self._tokens: list[np.ndarray] = []  # not yet written, with the number of bytes per token
        self._bytes: list[np.ndarray] = []
        self._buffered = 0
        features = datasets.Features(
            {
                "tokens": datasets.List(datasets.Value(dtype.name), length=sequence_length + 1),
                "target_bytes": datasets.Value("int64"),
            }
        )
        self._writer = ArrowWriter(path=str(path), features=features)

    def add(self, tokens: np.ndarray, token_bytes: np.ndarray | None = None) -> None:
        """Append the tokens of a document and the number of text bytes per token (0 if not needed)."""
        self._tokens.append(tokens.astype(self._dtype))
        self._bytes.append(np.zeros(len(tokens), np.int64) if token_bytes is None else token_bytes)
        self._buffered += len(tokens)
        if self._buffered > WINDOWS_AT_A_TIME * self._length:
            self._flush()

    def close(self) -> int:
        """Write the remaining windows and return the number of dropped tokens."""
        self._flush()
        self._writer.finalize()
        return self._buffered - 1 if self._buffered else 0  # the first buffered token is the last target written

    def _flush(self) -> None:
        if not self._buffered:
            return
        tokens, sizes = np.concatenate(self._tokens), np.concatenate(self._bytes)
        count = max(0, (len(tokens) - 1) // self._length)
        if count:
            starts = np.arange(count)[:, None] * self._length
            windows = tokens[starts + np.arange(self._length + 1)]
            target_bytes = sizes[1 : count * self._length + 1].reshape(count, self._length).sum(axis=1)
            self._write(windows, target_bytes)
        rest = slice(count * self._length, None)
        self._tokens, self._bytes, self._buffered = [tokens[rest]], [sizes[rest]], len(tokens[rest])

    def _write(self, windows: np.ndarray, target_bytes: np.ndarray) -> None:
        self.digest.update(windows.tobytes())
        self.digest.update(target_bytes.tobytes())
        for start in range(0, len(windows), WINDOWS_AT_A_TIME):
            part = windows[start : start + WINDOWS_AT_A_TIME]
            column = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), self._length + 1)
            sizes = pa.array(target_bytes[start : start + WINDOWS_AT_A_TIME])
            self._writer.write_table(pa.table({"tokens": column, "target_bytes": sizes}))
        self.num_windows += len(windows)


class WindowReader:
    """Random access to windows in a memory-mapped file."""

    def __init__(self, path: Path):
        table = datasets.Dataset.from_file(str(path)).data
        chunks = table.column("tokens").chunks
        self._parts = [_as_rows(chunk) for chunk in chunks]
        self._ends = np.cumsum([len(part) for part in self._parts])
        self.target_bytes = table.column("target_bytes").to_numpy()

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.target_bytes)

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Return windows, int64 (B, T + 1)."""
        parts = np.searchsorted(self._ends, ids, side="right")
        rows = [
            self._parts[part][index - (self._ends[part - 1] if part else 0)]
            for part, index in zip(parts, ids, strict=True)
        ]
        return np.stack(rows).astype(np.int64)


def _as_rows(chunk: Any) -> np.ndarray:
    return chunk.flatten().to_numpy(zero_copy_only=True).reshape(len(chunk), -1)


class TextData:
    """Prepared text: training and validation windows, tokenizer, and facts about the corpus."""

    def __init__(self, folder: Path, *, validation_windows: int | None = None):
        facts = json.loads((folder / "facts.json").read_text())
        self.fingerprint: str = facts["fingerprint"]
        self.eos_token_id: int = facts["eos_token_id"]
        self.facts: dict[str, Any] = facts
        self._tokenizer = folder / "tokenizer"
        self._readers = {split: WindowReader(folder / f"{split}.arrow") for split in ("training", "validation")}
        self.num_training_samples = len(self._readers["training"])
        self.num_validation_samples = min(
            len(self._readers["validation"]), validation_windows or len(self._readers["validation"])
        )

    def read(self, split: Split, ids: np.ndarray) -> np.ndarray:
        """Return windows, int64 (B, sequence_length + 1)."""
        return self._readers[split].read(ids)

    def target_bytes(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of UTF-8 bytes in the targets of each validation window, int64 (B,)."""
        return self._readers["validation"].target_bytes[ids]

    def save_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer's files into a folder."""
        shutil.copytree(self._tokenizer, folder, dirs_exist_ok=True)


def token_byte_counts(text: str, ends: np.ndarray) -> np.ndarray:
    """Return the number of bytes of a document per token; the sum is the size of the document.

    Args:
        text: The document.
        ends: (n,) the end of each token, in characters. Tokens that split a character all end after it; its bytes count
            for the first of them.
    """
    if not len(ends):
        return np.zeros(0, np.int64)
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (characters >= 0x80) + (characters >= 0x800) + (characters >= 0x10000)
    bytes_before = np.concatenate(([0], np.cumsum(sizes)))
    reached = bytes_before[np.maximum.accumulate(ends)]
    reached[-1] = bytes_before[-1]  # text that the tokenizer dropped at the end counts for the last token
    return np.diff(reached, prepend=0)


def batches(table: datasets.Dataset, size: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set in batches of `size`."""
    for start in range(0, len(table), size):
        yield table[start : start + size]
