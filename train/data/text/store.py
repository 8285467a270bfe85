"""A prepared corpus: a token store, its windows, and proof that what is read is what was prepared.

    cache_dir/text-KEY/
        store.json        facts about the corpus; written last
        tokenizer/
        shards/           see shards.py
        windows-1024/     of one sequence length: facts.json, content hashes and target bytes of every window

Window k of a split of T tokens each is the tokens [kT, kT + T] of its documents, one after the other: every token but
the very first is predicted exactly once, and an incomplete last window is dropped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from train.data.damage import DamagedDataError
from train.data.split import SPLITS, Split
from train.data.text.shards import ShardRecord, TokenSequence, shard_folder

_TOGETHER = 1024  # windows hashed at a time


class TokenStore:
    """The tokens of a prepared corpus.

    Args:
        folder: Its folder; store.json is there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / "store.json").read_text())
        self.dtype = np.dtype(self.facts["dtype"])
        self.records = [_record(folder, number) for number in range(self.facts["shards"])]

    def sequence(self, split: Split) -> TokenSequence:
        """Return the tokens of a split."""
        return TokenSequence(self.folder, self.records, split, self.dtype)


def _record(folder: Path, number: int) -> ShardRecord:
    place = shard_folder(folder, number)
    record = ShardRecord.read(place)
    if record is None:
        raise DamagedDataError(f"{place} is missing or has no readable record; {_remedy(folder)}")
    for name, file in record.files.items():
        if not (place / name).exists() or (place / name).stat().st_size != file.bytes:
            raise DamagedDataError(f"{place / name} is missing or not as large as it was written; {_remedy(folder)}")
    return record


def _remedy(folder: Path) -> str:
    return f"delete {folder} and run `python -m train CONFIG --prepare`"


class Windows:
    """The windows of one split.

    Args:
        sequence: The tokens.
        length: Tokens that a window predicts, T.
    """

    def __init__(self, sequence: TokenSequence, length: int):
        self.sequence = sequence
        self.length = length

    def __len__(self) -> int:
        """Return their number."""
        return max(0, len(self.sequence) - 1) // self.length

    def read(self, index: int) -> np.ndarray:
        """Return the tokens of a window, (T + 1,)."""
        start = index * self.length
        return self.sequence.read(start, start + self.length + 1)

    def target_bytes(self, index: int) -> int:
        """Return the bytes of text of the tokens that a window predicts."""
        start = index * self.length
        return int(self.sequence.token_bytes(start + 1, start + self.length + 1).sum())


def content_hash(window: np.ndarray) -> int:
    """Return a 64-bit hash of the tokens of a window."""
    return int.from_bytes(hashlib.blake2b(window.tobytes(), digest_size=8).digest(), "little")


# ------------------------------------------------------------------------------------------------------------- index


def index_windows(store: TokenStore, length: int) -> Path:
    """Hash every window of a sequence length, once; return the folder of the index."""
    folder = store.folder / f"windows-{length}"
    if (folder / "facts.json").exists():
        return folder
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    digest = hashlib.blake2b(f"{length} {store.facts['eos_token_id']}".encode(), digest_size=8)
    facts: dict[str, Any] = {}
    for split in SPLITS:
        windows = Windows(store.sequence(split), length)
        hashes, target_bytes, of_split = _hashed(windows, counts_bytes=split == "validation")
        np.save(partial / f"{split}.hashes.npy", hashes)
        if split == "validation":
            np.save(partial / "validation.bytes.npy", target_bytes)
        digest.update(of_split)
        facts[f"{split}_windows"] = len(windows)
        facts[f"{split}_tokens_dropped"] = max(0, len(windows.sequence) - 1 - len(windows) * length)
    facts["fingerprint"] = digest.hexdigest()
    (partial / "facts.json").write_text(json.dumps(facts, indent=1))
    partial.rename(folder)
    return folder


def _hashed(windows: Windows, *, counts_bytes: bool) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Return the content hash and the target bytes of every window, and a digest of all.

    The digest is that of the first form of the cache, so that runs which began with it go on: there, windows were
    hashed in groups, as documents filled a buffer, each followed by its target bytes.
    """
    hashes, target_bytes = np.zeros(len(windows), np.uint64), np.zeros(len(windows), np.int64)
    digest = hashlib.blake2b(digest_size=16)
    for group in _groups(windows):
        for index in group:
            window = windows.read(index)
            digest.update(window.tobytes())
            hashes[index] = content_hash(window)
            if counts_bytes:
                target_bytes[index] = windows.target_bytes(index)
        digest.update(target_bytes[group.start : group.stop].tobytes())
    return hashes, target_bytes, digest.digest()


def _groups(windows: Windows) -> Iterator[range]:
    """Yield ranges of windows: one begins where a document first fills the buffer after the last one."""
    ends, length = windows.sequence.document_ends(), windows.length
    first = 0
    while True:
        document = int(np.searchsorted(ends, first * length + _TOGETHER * length, side="right"))
        is_last = document >= len(ends)
        stop = (len(windows.sequence) if is_last else int(ends[document])) - 1
        stop = max(first, stop // length)
        if stop > first:
            yield range(first, stop)
        if is_last:
            return
        first = stop


# ----------------------------------------------------------------------------------------------------------- reading


class TextData:
    """Prepared text: training and validation windows, tokenizer, and facts about the corpus.

    Every window is compared with the hash that was taken of it when the corpus was prepared.

    Args:
        store: The tokens.
        length: Tokens that a window predicts.
        validation_windows: Windows to validate on, from the first; None for all.
    """

    def __init__(self, store: TokenStore, *, length: int, validation_windows: int | None = None):
        index = index_windows(store, length)
        windows = json.loads((index / "facts.json").read_text())
        self.facts: dict[str, Any] = {**store.facts, **windows}
        self.fingerprint: str = windows["fingerprint"]
        self.eos_token_id: int = store.facts["eos_token_id"]
        self.tokenizer_folder = store.folder / "tokenizer"
        self._store = store
        self._windows = {split: Windows(store.sequence(split), length) for split in SPLITS}
        self._hashes = {split: np.load(index / f"{split}.hashes.npy", mmap_mode="r") for split in SPLITS}
        self._target_bytes = np.load(index / "validation.bytes.npy")
        self.num_training_samples = windows["training_windows"]
        self.num_validation_samples = min(
            windows["validation_windows"], validation_windows or windows["validation_windows"]
        )

    def read(self, split: Split, ids: np.ndarray) -> np.ndarray:
        """Return windows, int64 (B, T + 1).

        Raises:
            DamagedDataError: One is not what was prepared.
        """
        return np.stack([self._read(split, int(index)) for index in ids]).astype(np.int64)

    def _read(self, split: Split, index: int) -> np.ndarray:
        windows = self._windows[split]
        window = windows.read(index)
        if content_hash(window) != self._hashes[split][index]:
            place = windows.sequence.folder_of(index * windows.length)
            raise DamagedDataError(
                f"{place}: {split} window {index} is not what was prepared (a bad disk, or the file was changed); "
                f"{_remedy(self._store.folder)}"
            )
        return window

    def target_bytes(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of UTF-8 bytes in the targets of each validation window, int64 (B,)."""
        return self._target_bytes[ids]

    def save_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer's files into a folder."""
        shutil.copytree(self.tokenizer_folder, folder, dirs_exist_ok=True)
