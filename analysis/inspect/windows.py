"""Windows of text to measure on: a file, or sources of Python's standard library.

A window is T tokens, cut one after the other from the start of the text. Where the tokenizer puts a token before every
text (BOS), each window starts with it: models trained with one misbehave without it.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from analysis.runs import InputError

DEFAULT_SOURCES = ("argparse.py", "difflib.py", "fractions.py", "heapq.py", "statistics.py", "textwrap.py")

_OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_FIRST_CHARACTERS_PER_TOKEN = 8  # read first; doubled until it is enough


@dataclass(frozen=True)
class Windows:
    """Tokens to measure on.

    Attributes:
        tokens: (windows, T) int64.
        num_bytes: UTF-8 bytes of the text whose tokens are predicted; None where the tokenizer cannot tell.
        bos: The token that each window begins with, None if it begins with text.
        notes: What the reader should know.
    """

    tokens: Tensor
    num_bytes: int | None
    bos: int | None
    notes: tuple[str, ...]


class Text:
    """A text that is read only as far as it is needed."""

    def __init__(self, path: Path | None) -> None:
        """Open a text lazily.

        Args:
            path: Plain text, or .gz, .xz, .bz2; None: the sources of DEFAULT_SOURCES, one after the other.

        Raises:
            InputError: There is no such file.
        """
        if path is not None and not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise InputError(f"--text {path}: {what}; give a plain-text file (or .gz, .xz, .bz2)")
        self.path = path

    @property
    def described(self) -> str:
        """What the text is, for people."""
        if self.path is not None:
            return str(self.path)
        return f"Python {sysconfig.get_python_version()} standard library: {', '.join(DEFAULT_SOURCES)}"

    def start(self, characters: int) -> str:
        """Return the first characters.

        Raises:
            InputError: It is no UTF-8 text.
        """
        if self.path is None:
            return _standard_library()[:characters]
        try:
            with _opened(self.path) as file:
                return file.read(characters)
        except (UnicodeDecodeError, OSError, EOFError, lzma.LZMAError) as error:
            raise InputError(f"--text {self.path}: not readable as UTF-8 text: {error}") from error


def _standard_library() -> str:
    folder = Path(sysconfig.get_path("stdlib"))
    return "".join((folder / name).read_text(encoding="utf-8") for name in DEFAULT_SOURCES)


def _opened(path: Path) -> IO[str]:
    opener: Any = _OPENERS.get(path.suffix, open)
    return opener(path, "rt", encoding="utf-8", newline="")


def cut(text: Text, tokenizer: Any, *, length: int, count: int) -> Windows:
    """Tokenize as much of a text as is needed, and cut it into windows.

    Args:
        text: The text.
        tokenizer: Of transformers.
        length: Tokens per window, BOS included.
        count: Windows wanted; fewer where the text is shorter.

    Raises:
        InputError: The text is shorter than one window.
    """
    bos = _leading_token(tokenizer)
    taken = length - (bos is not None)
    found, offsets, characters, is_whole = _tokenized(text, tokenizer, wanted=count * taken)
    full = min(count, len(found) // taken)
    if not full:
        shorter = len(found) + (bos is not None)
        advice = f", or write --sequence-length {shorter}" if shorter > 1 else ""
        raise InputError(
            f"--text {text.described}: has only {len(found)} tokens with this tokenizer, but a window needs {taken}; "
            f"give a longer text{advice}"
        )
    body = torch.tensor(found[: full * taken]).view(full, taken)
    tokens = body if bos is None else torch.cat((torch.full((full, 1), bos), body), dim=1)
    notes = () if full == count else (f"the text fills only {full} of {count} windows of {length} tokens.",)
    num_bytes = None
    if offsets is not None:
        first = 0 if bos is not None else 1
        num_bytes = sum(_bytes(characters, offsets, first=w * taken + first, last=(w + 1) * taken) for w in range(full))
    assert is_whole or full == count
    return Windows(tokens, num_bytes, bos, notes)


def _leading_token(tokenizer: Any) -> int | None:
    """Return BOS if the tokenizer puts it before a text."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos if bos is not None and ids and ids[0] == bos else None


def _tokenized(text: Text, tokenizer: Any, *, wanted: int) -> tuple[list[int], list[tuple[int, int]] | None, str, bool]:
    """Return tokens, their character offsets, the characters, and whether that is the whole text."""
    size = wanted * _FIRST_CHARACTERS_PER_TOKEN
    while True:
        characters = text.start(size)
        is_whole = len(characters) < size
        given = tokenizer(characters, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
        # The last tokens of a piece that was cut out of a longer text may be others in the whole.
        if is_whole or len(given["input_ids"]) > wanted + 8:
            return given["input_ids"], given.get("offset_mapping"), characters, is_whole
        size *= 2


def _bytes(characters: str, offsets: list[tuple[int, int]], *, first: int, last: int) -> int:
    """Count the bytes from the end of the token before `first` to the end of the one before `last`."""
    start = offsets[first - 1][1] if first else 0
    return len(characters[start : offsets[last - 1][1]].encode())
