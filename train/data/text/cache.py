"""Prepared corpora: found by what they are made of, or prepared, once.

    cache_dir/text-KEY/, with KEY from the settings and from names, sizes and times of the files

The key has neither the sequence length nor what is judged of the validation split: windows are views of one store. The
fingerprint that a resumed run compares is derived from the windows themselves.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from train.config.errors import ConfigError
from train.config.tasks.language_model import SourceConfig, TextDataConfig
from train.data.damage import DamagedDataError
from train.data.split import SPLITS, Split
from train.data.text import corpus
from train.data.text.documents import files
from train.data.text.preparation import build_store
from train.data.text.store import TextData
from train.data.text.token_store import TokenStore
from train.data.text.tokenizer import BYTE_BPE

logger = logging.getLogger(__name__)

FORMAT = 2
PREPARE_FIRST_BYTES = 1_000_000_000


def prepare(config: TextDataConfig, *, vocab_size: int, may_tokenize: bool = False) -> TextData:
    """Return the prepared data, preparing it first if it is not cached; what is damaged is prepared again.

    Several processes may call this concurrently; one does the work and the others wait for it.

    Args:
        config: Sources, tokenizer, windows.
        vocab_size: Vocabulary size of the model; a tokenizer trained here has that size.
        may_tokenize: Whether a corpus over 1 GB may be tokenized now.

    Raises:
        ConfigError: Sources or tokenizer are invalid, or the corpus must be prepared first.
        DamagedDataError: What was just written is damaged.
        OSError: The cache cannot be written.
    """
    folder = Path(config.cache_dir).expanduser() / f"text-{_key(config, vocab_size)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if (folder / "store.json").exists():
            try:
                return _opened(TokenStore(folder), config)
            except DamagedDataError as error:
                logger.warning("the prepared data are damaged, and are prepared again where they are: %s", error)
        _require_small(config, may_tokenize)
        _tell_of_older_form(folder.parent)
        build_store(config, folder, vocab_size=vocab_size)
        return _opened(TokenStore(folder, is_verified=True), config)


def _opened(store: TokenStore, config: TextDataConfig) -> TextData:
    for split in SPLITS:
        require_window(store.facts[f"{split}_tokens"], split, config)
    return TextData(store, length=config.sequence_length, validation_windows=config.validation_windows)


def _key(config: TextDataConfig, vocab_size: int) -> str:
    ignored = replace(config, cache_dir="", num_workers=None, seed=0, validation_windows=None, sequence_length=1)
    parts = [FORMAT, ignored, [files.identity(source) for _, source in corpus.named_sources(config)]]
    if config.tokenizer == BYTE_BPE:
        parts.append(vocab_size)
    elif Path(config.tokenizer).expanduser().exists():
        parts.append(files.identity(SourceConfig(path=config.tokenizer)))
    return hashlib.blake2b(files.stable_repr(parts).encode(), digest_size=8).hexdigest()


def _require_small(config: TextDataConfig, may_tokenize: bool) -> None:
    size = files.size_on_disk([*config.sources, *config.validation_sources])
    if size > PREPARE_FIRST_BYTES and not may_tokenize:
        raise ConfigError(
            [
                f"task.data.sources: {size / 1e9:.1f} GB are not tokenized yet; run `python -m train CONFIG --prepare` "
                "first, which needs no GPU"
            ]
        )


def _tell_of_older_form(cache_dir: Path) -> None:
    """Name prepared corpora of the first form, whose windows were files of their own for each sequence length."""
    older = sorted({path.parent.name for path in cache_dir.glob("text-*/training.arrow")})
    if older:
        names = ", ".join(older[:3]) + ", ..." * (len(older) > 3)
        logger.info("%s: of an older form, not used any more, can be deleted: %s", cache_dir, names)


def require_window(tokens: int, split: Split, config: TextDataConfig) -> None:
    """Check that the tokens of a split fill a window.

    Raises:
        ConfigError: They do not.
    """
    needed = config.sequence_length + 1
    if tokens >= needed:
        return
    remedy = (
        "add text to task.data.sources"
        if split == "training"
        else "raise task.data.validation_fraction, or set task.data.validation_sources"
    )
    if split == "validation" and config.validation_sources:
        remedy = "add text to task.data.validation_sources"
    raise ConfigError(
        [
            f"task.data.sources: not enough text for a single {split} window of {config.sequence_length}: there are "
            f"{tokens:,} tokens, {needed:,} are needed; {remedy}, or lower task.data.sequence_length"
        ]
    )
