"""The tokens of a prepared corpus on disk, opened only if they are what was written.

Opening compares sizes and the checksums of small files; `verify` reads all tokens, which is done before windows are
hashed, as hashes of damaged tokens would hide the damage. The windows' hashes guard the tokens from then on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from train.config.facts.sealed import DamagedFileError, read_sealed
from train.data.damage import DamagedDataError
from train.data.split import SPLITS, Split
from train.data.text.shards import ShardRecord, TokenSequence, damaged_file, shard_folder
from train.data.text.tokenizer import damage_of_tokenizer

DTYPES = ("uint16", "uint32")
_COUNTS = ("shards", "eos_token_id", *(f"{split}_tokens" for split in SPLITS))


class TokenStore:
    """The tokens of a prepared corpus.

    Args:
        folder: Its folder.
        is_verified: All tokens have just been written or compared with their checksums.

    Raises:
        DamagedDataError: Something is missing or is not what was written.
    """

    def __init__(self, folder: Path, *, is_verified: bool = False):
        self.folder = folder
        self.is_verified = is_verified
        self.facts = _facts(folder)
        self.dtype = np.dtype(self.facts["dtype"])
        self.records = [_record(folder, number, self.dtype) for number in range(self.facts["shards"])]
        for split in SPLITS:
            if sum(record.tokens[split] for record in self.records) != self.facts[f"{split}_tokens"]:
                raise DamagedDataError(f"{folder}: the shards do not hold the tokens that store.json counts")
        if fault := damage_of_tokenizer(folder):
            raise DamagedDataError(f"{folder}: {fault}")

    @property
    def identity(self) -> str:
        """A hash that changes when any token does, from the checksums of the shards."""
        content = [(record.source, sorted(record.files.items())) for record in self.records]
        return hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()

    def sequence(self, split: Split) -> TokenSequence:
        """Return the tokens of a split."""
        return TokenSequence(self.folder, self.records, split, self.dtype)

    def verify(self) -> None:
        """Compare every token with the checksums that were taken when they were written, once.

        Raises:
            DamagedDataError: Some have changed.
        """
        if self.is_verified:
            return
        for number, record in enumerate(self.records):
            place = shard_folder(self.folder, number)
            if name := damaged_file(place, record):
                raise DamagedDataError(f"{place / name} is not what was written")
        self.is_verified = True


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = read_sealed(folder / "store.json")
    except DamagedFileError as error:
        raise DamagedDataError(f"{folder}: {error}") from None
    if facts.get("dtype") not in DTYPES or not all(isinstance(facts.get(name), int) for name in _COUNTS):
        raise DamagedDataError(f"{folder}: store.json lacks facts about the corpus")
    return facts


def _record(folder: Path, number: int, dtype: np.dtype) -> ShardRecord:
    place = shard_folder(folder, number)
    record = ShardRecord.read(place)
    if record is None:
        raise DamagedDataError(f"{place} is missing or has no readable record")
    for name, file in record.files.items():
        if not (place / name).is_file() or (place / name).stat().st_size != file.bytes:
            raise DamagedDataError(f"{place / name} is missing or not as large as it was written")
    for split in SPLITS:
        if record.files[f"{split}.tokens"].bytes != record.tokens[split] * dtype.itemsize:
            raise DamagedDataError(f"{place}: its record counts other tokens than it has")
    return record
