"""A token store on disk: shards of documents as tokens, written once each and read as one long sequence.

    shards/000007/                       renamed into place when complete
        shard.json                       documents, tokens, size and checksum of every file and of itself
        training.tokens  validation.tokens    token ids, uint16 or uint32, each document ended by end-of-text
        training.ends    validation.ends      uint64: number of tokens up to the end of each document
        validation.bytes                      uint32: bytes of text per token

A shard is a function of its documents and the tokenizer, so it does not matter which process writes it, or when.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.config.facts.sealed import DamagedFileError, read_sealed, sealed
from train.data.split import SPLITS, Split

FILES = (*(f"{split}.{kind}" for split in SPLITS for kind in ("tokens", "ends")), "validation.bytes")
_RECORD = "shard.json"


class Encoded(NamedTuple):
    """A document as tokens, its end-of-text token included."""

    split: Split
    tokens: np.ndarray
    text_bytes: int
    token_bytes: np.ndarray | None = None  # bytes of text of each token; None in training


class StoredFile(NamedTuple):
    """Size and checksum of a file."""

    bytes: int
    blake2b: str


@dataclass(frozen=True)
class ShardRecord:
    """What a shard holds.

    Args:
        source: Number of the source, over training and validation sources.
        documents: Documents that were read for it; those that are in no split are among them.
        read_bytes: Their size, about.
        keys: Hash of the content keys of these documents, in order.
        split_documents: Documents by split.
        tokens: Tokens by split.
        text_bytes: Bytes of text by split.
        files: Size and checksum of each file, by name.
    """

    source: int
    documents: int
    read_bytes: int
    keys: str
    split_documents: dict[Split, int]
    tokens: dict[Split, int]
    text_bytes: dict[Split, int]
    files: dict[str, StoredFile]

    @staticmethod
    def read(folder: Path) -> ShardRecord | None:
        """Return the record of a complete shard, None if there is none or it is damaged."""
        try:
            record = read_sealed(folder / _RECORD)
            for name in ("split_documents", "tokens", "text_bytes"):
                record[name] = {split: int(record[name][split]) for split in SPLITS}
            record["files"] = {
                name: StoredFile(int(record["files"][name][0]), str(record["files"][name][1])) for name in FILES
            }
            return ShardRecord(**record)
        except (DamagedFileError, LookupError, TypeError, ValueError):
            return None


def shard_folder(store: Path, number: int) -> Path:
    """Return the folder of a shard."""
    return store / "shards" / f"{number:06d}"


def write_shard(
    folder: Path,
    encoded: Iterable[Encoded],
    *,
    dtype: np.dtype,
    source: int,
    documents: int,
    read_bytes: int,
    keys: str,
) -> ShardRecord:
    """Write a shard under a temporary name and rename it.

    Args:
        folder: Where it will be.
        encoded: Its documents.
        dtype: Of the token ids.
        source: See ShardRecord.
        documents: See ShardRecord.
        read_bytes: See ShardRecord.
        keys: See ShardRecord.

    Raises:
        OSError: It cannot be written.
    """
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    ends: dict[Split, list[int]] = {split: [] for split in SPLITS}
    tokens, text_bytes = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    names = [f"{split}.tokens" for split in SPLITS] + ["validation.bytes"]
    sinks = {name: _Sink(partial / name) for name in names}
    for split, ids, num_bytes, token_bytes in encoded:
        sinks[f"{split}.tokens"].write(ids.astype(dtype))
        tokens[split] += len(ids)
        text_bytes[split] += num_bytes
        ends[split].append(tokens[split])
        if token_bytes is not None:
            sinks["validation.bytes"].write(token_bytes.astype(np.uint32))
    for split in SPLITS:
        sinks[f"{split}.ends"] = _Sink(partial / f"{split}.ends")
        sinks[f"{split}.ends"].write(np.asarray(ends[split], np.uint64))
    record = ShardRecord(
        source=source,
        documents=documents,
        read_bytes=read_bytes,
        keys=keys,
        split_documents={split: len(ends[split]) for split in SPLITS},
        tokens=tokens,
        text_bytes=text_bytes,
        files={name: sink.close() for name, sink in sinks.items()},
    )
    (partial / _RECORD).write_text(json.dumps(sealed(asdict(record) | {"files": record.files}), indent=1))
    shutil.rmtree(folder, ignore_errors=True)  # one that is damaged or holds other documents
    partial.rename(folder)
    return record


def damaged_file(folder: Path, record: ShardRecord) -> str | None:
    """Return the name of a file that is not what was written, None if there is none; reads every byte of a shard."""
    for name, file in record.files.items():
        try:
            with (folder / name).open("rb") as content:
                digest = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        except OSError:
            return name
        if digest != file.blake2b:
            return name
    return None


class _Sink:
    """A file with a checksum of what was written to it."""

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._digest = hashlib.blake2b(digest_size=16)

    def write(self, values: np.ndarray) -> None:
        content = values.tobytes()
        self._digest.update(content)
        self._file.write(content)

    def close(self) -> StoredFile:
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        return StoredFile(size, self._digest.hexdigest())


class TokenSequence:
    """The tokens of one split, those of its shards one after the other, memory-mapped.

    Args:
        store: Folder of the store.
        records: Its shards, in order.
        split: The split.
        dtype: Of the token ids.
    """

    def __init__(self, store: Path, records: Sequence[ShardRecord], split: Split, dtype: np.dtype):
        folders = [shard_folder(store, number) for number in range(len(records))]
        lengths = [record.tokens[split] for record in records]
        self.starts = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))  # of each shard, and the end
        self._folders = folders
        self._tokens = [_mapped(folder / f"{split}.tokens", dtype) for folder in folders]
        self._ends = [_mapped(folder / f"{split}.ends", np.dtype(np.uint64)) for folder in folders]
        self._bytes = [_mapped(folder / f"{split}.bytes", np.dtype(np.uint32)) for folder in folders]

    def __len__(self) -> int:
        """Return the number of tokens."""
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return tokens [start, stop)."""
        return self._read(self._tokens, start, stop)

    def token_bytes(self, start: int, stop: int) -> np.ndarray:
        """Return the bytes of text of tokens [start, stop), uint32."""
        return self._read(self._bytes, start, stop)

    def document_ends(self) -> np.ndarray:
        """Return the position after the last token of each document, int64 (documents,)."""
        return np.concatenate(
            [np.zeros(0, np.int64)]
            + [ends.astype(np.int64) + start for ends, start in zip(self._ends, self.starts, strict=False)]
        )

    def folder_of(self, position: int) -> Path:
        """Return the folder of the shard that holds a token."""
        return self._folders[int(np.searchsorted(self.starts, position, side="right")) - 1]

    def _read(self, arrays: Sequence[np.ndarray], start: int, stop: int) -> np.ndarray:
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        pieces = []
        while start < stop:
            begin, end = int(self.starts[first]), int(self.starts[first + 1])
            pieces.append(arrays[first][start - begin : min(stop, end) - begin])
            start, first = min(stop, end), first + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """Map a file into memory; an empty or absent one, which cannot be mapped, is an empty array."""
    if not path.exists() or path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")
