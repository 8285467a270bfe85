"""A prepared corpus: a token store, its windows, and proof that what is read is what was prepared.

cache_dir/text-KEY/
store.json        facts about the corpus, with a checksum; written last
tokenizer/        see tokenizer.py
shards/           see shards.py
windows-1024/     of one sequence length, see windows.py
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from train.data.damage import DamagedDataError
from train.data.split import SPLITS, Split
from train.data.text.token_store import TokenStore
from train.data.text.tokenizer import TOKENIZER
from train.data.text.windows import Windows, content_hash, open_index


class TextData:
    """Prepared text: training and validation windows, tokenizer, and facts about the corpus.

    Every window is compared with the hash that was taken of it when the corpus was prepared.

    Args:
        store: The tokens.
        length: Tokens that a window predicts.
        validation_windows: Windows to validate on, from the first; None for all.

    Raises:
        DamagedDataError: The tokens are not those that were written.
    """

    def __init__(self, store: TokenStore, *, length: int, validation_windows: int | None = None):
        index = open_index(store, length)
        self.facts: dict[str, Any] = {**store.facts, **index.facts}
        self.fingerprint: str = index.facts["fingerprint"]
        self.eos_token_id: int = store.facts["eos_token_id"]
        self.tokenizer_folder = store.folder / TOKENIZER
        self._store = store
        self._windows = {split: Windows(store.sequence(split), length) for split in SPLITS}
        self._hashes = index.hashes
        self._target_bytes = index.target_bytes
        self.num_training_samples: int = index.facts["training_windows"]
        of_validation: int = index.facts["validation_windows"]
        self.num_validation_samples = min(of_validation, validation_windows or of_validation)

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
                f"delete {self._store.folder} and run `python -m train CONFIG --prepare`"
            )
        return window

    def target_bytes(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of UTF-8 bytes in the targets of each validation window, int64 (B,)."""
        return self._target_bytes[ids]

    def save_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer's files into a folder."""
        shutil.copytree(self.tokenizer_folder, folder, dirs_exist_ok=True)
