"""Text files: a document per file, or documents between separator lines."""

from __future__ import annotations

import codecs
import io

from train.data.text.documents import encoding, streams
from train.data.text.documents.document import DamagedError, Document, Fault, Found, Reading


def text_documents(reading: Reading) -> Found:
    """Yield the documents of a text file.

    Text is that of the file, line ends included, without a byte order mark. Empty files and documents are left out.
    """
    with streams.opened(reading) as stream:
        yield from _whole(stream, reading) if reading.separator is None else _separated(stream, reading)


def _whole(stream: io.BufferedReader, reading: Reading) -> Found:
    try:
        data = stream.read()
    except DamagedError as error:
        yield Fault(reading.file, f"is damaged or cut off ({error})")
        return
    yield from _document(data, reading)


def _separated(stream: io.BufferedReader, reading: Reading) -> Found:
    separator = (reading.separator or "").encode()
    lines: list[bytes] = []
    first, start, position = 1, 0, 0
    try:
        for number, line in enumerate(stream, 1):
            position += len(line)
            if line.rstrip(b"\r\n").removeprefix(encoding.BOM if number == 1 else b"") != separator:
                lines.append(line)
                continue
            yield from _document(b"".join(lines), reading, row=first, start=start)
            lines, first, start = [], number + 1, position
    except DamagedError as error:
        yield Fault(reading.file, f"is damaged or cut off after byte {position:,} ({error})")
        return
    yield from _document(b"".join(lines), reading, row=first, start=start)


def _document(data: bytes, reading: Reading, *, row: int | None = None, start: int = 0) -> Found:
    """Yield the document that bytes are, or the fault; nothing if they are empty."""
    body = data if start else data.removeprefix(encoding.BOM)
    if not body:
        return
    if reading.part.errors == "replace":
        yield Document(data.decode("utf-8", "replace"), reading.file, row)
        return
    place = reading.file if row is None else f"{reading.file}, from line {row:,} on"
    if encoding.is_wide(body):
        yield Fault(place, encoding.fault(body, None, reading.part, start=start))
        return
    try:
        # the limit of a reading may cut the last character in two
        text, _ = codecs.utf_8_decode(body, "strict", not reading.is_cut)
    except UnicodeDecodeError as error:
        yield Fault(place, encoding.fault(body, error, reading.part, start=start + len(data) - len(body)))
        return
    yield Document(text, reading.file, row)
