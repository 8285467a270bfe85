"""Bytes as UTF-8 text, and what to do about text in another encoding."""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path

from train.data.text.documents.document import Part
from train.data.text.documents.streams import PROGRAMS

BOM = codecs.BOM_UTF8
_BOMS = (  # the longer first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_CONTROL = bytes(set(range(32)) - set(b"\b\t\n\v\f\r\x1b"))
_HEAD = 4096


def looks_binary(start: bytes) -> bool:
    """Return whether the first bytes of a file are those of no text in any encoding."""
    if _by_mark(start):
        return False
    controls = len(start) - len(start.translate(None, _CONTROL))
    return b"\0" in start or controls > len(start) // 50


def fault(data: bytes, error: UnicodeDecodeError | None, part: Part, *, start: int = 0) -> str:
    """Say why bytes are not UTF-8 text, and how to convert the file.

    Args:
        data: The bytes.
        error: What decoding them as UTF-8 raised.
        part: Their file.
        start: Where they begin in the file, in bytes.
    """
    head = data[:_HEAD]
    place = f"byte {start + (error.start if error else 0):,}" + (" after decompression" if part.compression else "")
    name = _by_mark(head) or _by_zeros(head)
    if name is None and error is not None and looks_binary(data[max(0, error.start - _HEAD // 2) :][:_HEAD]):
        return f"is not text: {place} is not UTF-8, and its surroundings are binary data; leave the file out"
    name = name or ("WINDOWS-1252" if any(0x80 <= byte < 0xA0 for byte in data) else "ISO-8859-1")
    return f"is not UTF-8 text: {place} ({_shown(data, error)}); if it is {name}, convert it: {_command(part, name)}"


def is_wide(data: bytes) -> bool:
    """Return whether text is UTF-16 although it decodes as UTF-8: ASCII with a zero beside every character."""
    return _by_zeros(data[:_HEAD]) is not None


def _by_mark(start: bytes) -> str | None:
    return next((name for mark, name in _BOMS if start.startswith(mark)), None)


def _by_zeros(head: bytes) -> str | None:
    for first, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        zeros, others = head[first::2], head[1 - first :: 2]
        if len(head) >= 4 and zeros.count(0) > 0.8 * len(zeros) and others.count(0) < 0.2 * len(others):
            return name
    return None


def _shown(data: bytes, error: UnicodeDecodeError | None) -> str:
    first = error.start if error else 0
    return "0x" + data[first : first + (1 if error else 2)].hex()


def _command(part: Part, encoding: str) -> str:
    suffixes = [suffix for suffix in part.path.suffixes if suffix.lower() != part.compression]
    stem = part.path.name.removesuffix("".join(part.path.suffixes))
    target = shlex.quote(str(Path(part.path).with_name(f"{stem}.utf8{''.join(suffixes[-1:])}")))
    file = shlex.quote(str(part.path))
    convert = f"iconv -f {encoding} -t UTF-8"
    if part.compression is None:
        return f"{convert} {file} > {target}"
    return f"{PROGRAMS[part.compression]} -dc {file} | {convert} > {target}"
