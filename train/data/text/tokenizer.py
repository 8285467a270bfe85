"""Tokenizers: loaded, or trained on the documents; text as token ids.

That of a prepared corpus is published with checksums of its files, and compared with them:

    cache_dir/text-KEY/
        tokenizer/               tokenizer.json, tokenizer_config.json
        tokenizer_files.json     the checksum of each, and what the tokenizer was trained on; written first
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from train.config.errors import ConfigError
from train.config.facts.sealed import DamagedFileError, read_sealed, sealed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BYTE_BPE = "byte-bpe"
END_OF_TEXT = "<|endoftext|>"
_OTHER_ENDS = ("</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")
DOCUMENTS_AT_A_TIME = 256
TOKENIZER = "tokenizer"  # folder in a prepared corpus
_STORED = "tokenizer_files.json"


def encode(texts: list[str], tokenizer: Tokenizer, *, counts_bytes: bool) -> dict[str, list[Any]]:
    """Return the token `ids` of each document and, with `counts_bytes`, the number of `bytes` per token.

    A special token's name within a document is text: only the reader says where a document ends.
    """
    tokenizer.encode_special_tokens = True  # not pickled, so it is set where it is used
    if not counts_bytes:
        return {"ids": [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]}
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    ends = [np.array([end for _, end in encoding.offsets], np.int64) for encoding in encodings]
    sizes = [token_byte_counts(text, end) for text, end in zip(texts, ends, strict=True)]
    return {"ids": [encoding.ids for encoding in encodings], "bytes": sizes}


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


def load(name: str, *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens all fit the model.

    Raises:
        ConfigError: It cannot be loaded, is too large, or has no end-of-text token.
    """
    tokenizer = load_tokenizer(name)
    if len(tokenizer) > vocab_size:
        raise ConfigError(
            [
                f"task.model.vocab_size: the tokenizer {name!r} has {len(tokenizer)} tokens, but the model only "
                f"{vocab_size}; write task.model.vocab_size={len(tokenizer)}"
            ]
        )
    end_of_text_id(tokenizer, name)
    return tokenizer


def train_byte_bpe(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE (as in GPT-2; it can encode any text)."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a folder, a tokenizer.json, or a hub name (NAME, NAME@REVISION).

    Raises:
        ConfigError: It cannot be loaded.
    """
    from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

    path = Path(name).expanduser()
    try:
        if path.is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(path))
        if path.is_dir() and not (path / "tokenizer.json").exists() and (path / "merges.txt").exists():
            return GPT2Tokenizer.from_pretrained(path)
        if path.is_dir():
            loaded = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        else:
            on_hub, _, revision = name.partition("@")
            loaded = AutoTokenizer.from_pretrained(on_hub, revision=revision or None, trust_remote_code=False)
    except Exception as error:  # the library passes on any error of its readers and the network
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise ConfigError(
            [
                f"task.data.tokenizer: {name!r} could not be loaded ({reason}); use {BYTE_BPE!r}, a folder with a "
                "tokenizer, a tokenizer.json, or a hub name (NAME, NAME@REVISION)"
            ]
        ) from error
    if not getattr(loaded, "is_fast", False):
        raise ConfigError([f"task.data.tokenizer: {name!r} has no fast tokenizer (tokenizer.json)"])
    return loaded


def end_of_text_id(tokenizer: PreTrainedTokenizerFast, name: str) -> int:
    """Return the id of the token that ends a document.

    Raises:
        ConfigError: The tokenizer has none.
    """
    if isinstance(tokenizer.eos_token_id, int):
        return tokenizer.eos_token_id
    vocabulary = tokenizer.get_vocab()
    for token in (END_OF_TEXT, *_OTHER_ENDS):
        if token in vocabulary:
            tokenizer.eos_token = token
            return vocabulary[token]
    raise ConfigError(
        [f"task.data.tokenizer: {name!r} has no end-of-text token; set eos_token and save the tokenizer again"]
    )


def padding_token_id(tokenizer: PreTrainedTokenizerFast, name: str) -> int:
    """Return the id of the token that fills up the shorter texts of a batch: its own, else the end-of-text token.

    No token is added: a vocabulary without room has no row for it in the embedding.

    Raises:
        ConfigError: The tokenizer has no end-of-text token.
    """
    end = end_of_text_id(tokenizer, name)
    return tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else end


def complete(folder: Path, *, max_length: int) -> None:
    """Set what clients of an exported folder expect of its tokenizer; no text has other ids than before.

    These are the end-of-text and padding tokens, padding on the left, after which a text can be continued, and the
    longest text of the model. Only tokenizer_config.json changes: a tokenizer that is loaded and saved again would keep
    the arguments with which it was loaded.

    Args:
        folder: The folder with the tokenizer.
        max_length: Tokens.
    """
    tokenizer = load_tokenizer(str(folder))
    padding = tokenizer.convert_ids_to_tokens(padding_token_id(tokenizer, str(folder)))
    path = folder / "tokenizer_config.json"
    settings = {
        **json.loads(path.read_text()),
        "eos_token": str(tokenizer.eos_token),
        "pad_token": padding,
        "padding_side": "left",
        "model_max_length": max_length,
    }
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


# ------------------------------------------------------------------------------------------- that of a prepared corpus


def publish_tokenizer(store: Path, tokenizer: PreTrainedTokenizerFast, sample: Mapping[str, Any]) -> None:
    """Write a tokenizer and what it was trained on; an earlier one is replaced."""
    partial = store / f"{TOKENIZER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save_pretrained(partial)
    (store / _STORED).write_text(json.dumps(sealed({"files": _checksums(partial), "sample": sample}), indent=1))
    shutil.rmtree(store / TOKENIZER, ignore_errors=True)
    partial.rename(store / TOKENIZER)


def published_sample(store: Path) -> dict[str, Any]:
    """Return what the tokenizer of a store was trained on; empty if it was loaded.

    Raises:
        DamagedFileError: There is no tokenizer, or it is damaged.
    """
    if fault := damage_of_tokenizer(store):
        raise DamagedFileError(fault)
    return read_sealed(store / _STORED)["sample"]


def damage_of_tokenizer(store: Path) -> str | None:
    """Return what is wrong with the tokenizer of a store, None if it is intact.

    A store of an older version has no checksums: its tokenizer.json is to be JSON.
    """
    folder = store / TOKENIZER
    if not (folder / "tokenizer.json").is_file():
        return "its tokenizer is missing"
    try:
        if not (store / _STORED).exists():
            read_sealed(folder / "tokenizer.json")
            return None
        written = read_sealed(store / _STORED)["files"]
    except (DamagedFileError, KeyError) as error:
        return f"its tokenizer cannot be verified ({error})"
    return None if written == _checksums(folder) else "its tokenizer is not what was written"


def _checksums(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
