"""Formats of files: recognized by their first bytes, then by their suffix, then as text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from train.data.text.documents import encoding, streams
from train.data.text.documents.document import Format, Part

KNOWN = (
    "JSON Lines (.jsonl, .ndjson, .json), text (.txt, .md and other UTF-8 files) and, with text_column, .csv and .tsv, "
    "each also as .gz, .zst, .bz2 or .xz; Parquet; saved `datasets` folders"
)
SUFFIXES: dict[str, Format] = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".rst": "text",
}
# Binary formats: suffix -> first bytes, and the format; they compress by themselves.
BINARY: dict[str, tuple[bytes, Format]] = {
    ".parquet": (b"PAR1", "parquet"),
}
# First bytes that no text has, and what they are; other binary files are recognized by not being UTF-8.
_NOT_TEXT: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF89a", "a GIF image"),
    (b"%PDF-", "a PDF; extract its text first"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"\x04\x22\x4d\x18", "compressed with lz4; decompress it, or use zstd"),
    (b"\x1f\x9d", "compressed with compress; decompress it, or use gzip"),
    (b"ARROW1\x00", "an Arrow file; save it as Parquet"),
    (b"\xff\xff\xff\xff", "an Arrow stream; name its data set's folder instead, or save it as Parquet"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"MMIDIDX\x00", "a Megatron index of tokens, not text"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x7fELF", "a program"),
)
_HEAD = 1 << 16
_TAR = (257, b"ustar")


class UnknownFormatError(Exception):
    """A file that cannot be read as text; the message is the reason."""


class _Name(NamedTuple):
    """A file's suffixes: the last, before those of a compression, and the compression's."""

    suffix: str
    compression: str | None


def has_known_suffix(path: str) -> bool:
    """Return whether a name is that of a file, as far as its suffix tells."""
    name = _name(path)
    return name.compression is not None or name.suffix in {*SUFFIXES, *BINARY}


def recognize(path: Path, *, names_column: bool) -> Part:
    """Return how a file is read.

    Args:
        path: The file.
        names_column: Whether the source has a `text_column`, which CSV requires.

    Raises:
        UnknownFormatError: It holds no text, or none that can be told from markup.
        OSError: It cannot be read.
    """
    raw, name = streams.head(path, None, _HEAD), _name(path.name)
    compression = next((c for c, starts in streams.COMPRESSIONS.items() if raw.startswith(starts)), None)
    start = raw if compression is None else streams.head(path, compression, _HEAD)
    for suffix, (magic, found) in BINARY.items():
        if start.startswith(magic):
            if compression is not None:
                raise UnknownFormatError(f"is a {suffix} compressed as a whole; decompress it")
            return Part(path, found)
    _refuse_binary(start, name)
    found = SUFFIXES.get(name.suffix)
    if found is None:
        found = _of_content(start)
        return Part(path, found, compression, is_guess=True)
    if found == "csv" and not names_column and start:
        raise UnknownFormatError(f"is a table; name the column that holds the text: text_column ({_columns(start)})")
    if found == "text" and _is_json_lines(start):
        raise UnknownFormatError("is named as text but holds JSON objects, one a line; rename it to end in .jsonl")
    return Part(path, found, compression)


def _name(name: str) -> _Name:
    path = Path(name.lower())
    if path.suffix in streams.COMPRESSIONS:
        return _Name(Path(path.stem).suffix, path.suffix)
    return _Name(path.suffix, None)


def _refuse_binary(start: bytes, name: _Name) -> None:
    for magic, meaning in _NOT_TEXT:
        if start.startswith(magic):
            raise UnknownFormatError(f"is {meaning}")
    if start[_TAR[0] :].startswith(_TAR[1]):
        raise UnknownFormatError("is a tar archive; unpack it")
    if name.suffix in BINARY and start:
        raise UnknownFormatError(f"does not begin as a {name.suffix} does; it may be damaged")


def _of_content(start: bytes) -> Format:
    """Return the format of a file whose suffix says nothing. Text in another encoding is refused when it is read."""
    if encoding.looks_binary(start):
        raise UnknownFormatError("is neither of a known format nor text")
    return "json" if _is_json_lines(start) else "text"


def _is_json_lines(start: bytes) -> bool:
    """Return whether the first lines, up to three, are JSON objects; one that the head cuts begins as one."""
    lines = start.removeprefix(encoding.BOM).decode("utf-8", "replace").split("\n")
    cut = lines.pop() if len(start) == _HEAD else ""
    whole = [line for line in lines if line.strip()][:3]
    if whole:
        return all(isinstance(_parsed(line), dict) for line in whole)
    return bool(re.match(r'\s*\{\s*"[^"\n]*"\s*:', cut))


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _columns(start: bytes) -> str:
    header = start.removeprefix(encoding.BOM).decode("utf-8", "replace").partition("\n")[0]
    names = ", ".join(re.split(r"[,\t]", header.strip()))
    return f"it has {names[:200]}"
