"""Windows of a token store, of one sequence length, and their index: a hash of each, taken once.

    cache_dir/text-KEY/windows-1024/
        facts.json                      counts, fingerprint, checksums of the other files and its own
        training.hashes.npy             uint64 (windows,): content hashes; likewise for validation
        validation.bytes.npy            int64 (windows,): bytes of text that a window predicts

Window k of a split of T tokens each is the tokens [kT, kT + T] of its documents, one after the other: every token but
the very first is predicted exactly once, and an incomplete last window is dropped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.config.facts.sealed import DamagedFileError, read_sealed, sealed
from train.data.split import SPLITS, Split
from train.data.text.shards import TokenSequence
from train.data.text.token_store import TokenStore

logger = logging.getLogger(__name__)

_TOGETHER = 1024  # windows hashed at a time
_BYTES = "validation.bytes.npy"


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


class WindowIndex(NamedTuple):
    """The index of the windows of one sequence length.

    Args:
        facts: Number of windows and dropped tokens by split, and the fingerprint.
        hashes: Content hash of every window by split, uint64 (windows,).
        target_bytes: Bytes of text that each validation window predicts, int64 (windows,).
    """

    facts: dict[str, Any]
    hashes: dict[Split, np.ndarray]
    target_bytes: np.ndarray


def open_index(store: TokenStore, length: int) -> WindowIndex:
    """Return the index of a sequence length, made from the tokens if it is missing or damaged.

    Raises:
        DamagedDataError: It is to be made, and the tokens are not those that were written.
    """
    folder = store.folder / f"windows-{length}"
    if folder.exists():
        try:
            return _read(folder, store, length)
        except DamagedFileError as error:
            logger.warning("%s: %s; the index is made again from the tokens", folder, error)
    _write(folder, store, length)
    return _read(folder, store, length)


def _write(folder: Path, store: TokenStore, length: int) -> None:
    """Hash every window."""
    store.verify()
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
            np.save(partial / _BYTES, target_bytes)
        digest.update(of_split)
        facts[f"{split}_windows"] = len(windows)
        facts[f"{split}_tokens_dropped"] = max(0, len(windows.sequence) - 1 - len(windows) * length)
    facts["fingerprint"] = digest.hexdigest()
    proof = {"tokens": store.identity, "files": {path.name: _checksum(path) for path in sorted(partial.iterdir())}}
    (partial / "facts.json").write_text(json.dumps(sealed({**facts, "proof": proof}), indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _read(folder: Path, store: TokenStore, length: int) -> WindowIndex:
    """Return an index; one of an older version, without checksums, has the right sizes and types.

    Raises:
        DamagedFileError: It is not what was written, or was made from other tokens.
    """
    facts = read_sealed(folder / "facts.json")
    proof = facts.pop("proof", {"tokens": store.identity, "files": {}})
    if proof["tokens"] != store.identity:
        raise DamagedFileError("it was made from other tokens")
    for name, checksum in proof["files"].items():
        if not (folder / name).is_file() or _checksum(folder / name) != checksum:
            raise DamagedFileError(f"{name} is not what was written")
    if not isinstance(facts.get("fingerprint"), str):
        raise DamagedFileError("facts.json has no fingerprint")
    hashes: dict[Split, np.ndarray] = {}
    for split in SPLITS:
        count = len(Windows(store.sequence(split), length))
        if facts.get(f"{split}_windows") != count:
            raise DamagedFileError(f"facts.json counts other {split} windows than there are")
        hashes[split] = _array(folder / f"{split}.hashes.npy", np.dtype(np.uint64), count)
    return WindowIndex(facts, hashes, _array(folder / _BYTES, np.dtype(np.int64), len(hashes["validation"])))


def _array(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    try:
        values = np.load(path, mmap_mode="r" if count else None)
    except (OSError, ValueError, EOFError) as error:
        raise DamagedFileError(f"{path.name} cannot be read ({error})") from None
    if values.dtype != dtype or values.shape != (count,):
        raise DamagedFileError(f"{path.name} does not hold a value for each window")
    return values


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


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
