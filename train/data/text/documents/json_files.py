"""JSON Lines, and JSON files that are one array of objects."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator

from train.data.text.documents import columns, encoding, streams
from train.data.text.documents.document import DamagedError, Document, Fault, Found, Reading

_DECODER = json.JSONDecoder()
_SPACE = " \t\n\r"
_NEAR_THE_END = 16  # characters: longer than any token but a string, whose cut has a message of its own


def json_documents(reading: Reading) -> Found:
    """Yield the documents of a file that holds one object a line, or one array of objects."""
    with streams.opened(reading) as stream:
        try:
            start = stream.peek(1 << 16).removeprefix(encoding.BOM).lstrip()
        except DamagedError:
            start = b""  # met again below
        yield from _array(stream, reading) if start.startswith(b"[") else _lines(stream, reading)


def _lines(stream: io.BufferedReader, reading: Reading) -> Found:
    number, position = 0, 0
    try:
        for number, line in enumerate(stream, 1):
            position += len(line)
            if number == 1:
                line = line.removeprefix(encoding.BOM)
            if reading.is_cut and not line.endswith(b"\n"):
                return
            if line and not line.isspace():
                yield _of_line(line, number, position - len(line), reading)
    except DamagedError as error:
        yield Fault(reading.file, f"is damaged or cut off after line {number:,} ({error})")


def _of_line(line: bytes, number: int, start: int, reading: Reading) -> Document | Fault:
    place = f"{reading.file}, line {number:,}"
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Fault(place, encoding.fault(line, error, reading.part, start=start))
    except json.JSONDecodeError as error:
        return Fault(place, f"is not a JSON object on one line ({error.msg}, column {error.colno:,})")
    except (ValueError, RecursionError) as error:
        return Fault(place, f"cannot be read ({_beyond(error)})")
    return _of_row(row, number, place, reading)


def _of_row(row: object, number: int, place: str, reading: Reading) -> Document | Fault:
    try:
        return Document(columns.text_of(row, reading.column), reading.file, number)
    except columns.NoTextError as error:
        return Fault(place, str(error), "text_column" if error.lacks_column else "path")


def _beyond(error: Exception) -> str:
    """Say which limit of Python's a JSON value exceeds."""
    return "too many nested brackets" if isinstance(error, RecursionError) else "a number of too many digits"


# --------------------------------------------------------------------------------------------------------- arrays


def _array(stream: io.BufferedReader, reading: Reading) -> Found:
    text, number = _Text(stream), 0
    try:
        for number, row in enumerate(_elements(text), 1):
            yield _of_row(row, number, f"{reading.file}, entry {number:,}", reading)
    except UnicodeDecodeError as error:
        if not reading.is_cut:
            start = text.num_bytes - len(error.object)
            yield Fault(reading.file, encoding.fault(error.object, error, reading.part, start=start))
    except DamagedError as error:
        yield Fault(reading.file, f"is damaged or cut off after entry {number:,} ({error})")
    except (ValueError, RecursionError) as error:
        if not reading.is_cut:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            reason = _beyond(error) if isinstance(error, RecursionError) else reason
            yield Fault(reading.file, f"is not a JSON array of objects after entry {number:,} ({reason})")


def _elements(text: _Text) -> Iterator[object]:
    """Yield the elements of an array, holding little more than one at a time.

    Raises:
        DamagedError: The rest of the file cannot be read.
        ValueError: It is no array; also one that ends too early.
    """
    text.expect("[")
    if text.next_is("]"):
        return text.expect_end()
    while True:
        yield text.value()
        if text.next_is("]"):
            return text.expect_end()
        text.expect(",")


class _Text:
    """Text of a stream, of which what is parsed is forgotten."""

    def __init__(self, stream: io.BufferedReader):
        self.num_bytes = 0  # read so far
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._position = 0

    def value(self) -> object:
        """Parse a value; while it is incomplete read more, each time doubling the text, so that the work is linear."""
        self._skip_space()
        while True:
            try:
                value, self._position = _DECODER.raw_decode(self._text, self._position)
                return value
            except json.JSONDecodeError as error:
                ends_early = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _NEAR_THE_END
                if not ends_early or not self._more():
                    raise

    def next_is(self, character: str) -> bool:
        """Skip white space, and the character if it follows."""
        self._skip_space()
        found = self._text.startswith(character, self._position)
        self._position += found
        return found

    def expect(self, character: str) -> None:
        """Skip a character.

        Raises:
            ValueError: Another one follows.
        """
        if not self.next_is(character):
            following = self._text[self._position : self._position + 20]
            raise ValueError(f"{character!r} is missing before {following!r}" if following else "it ends too early")

    def expect_end(self) -> None:
        """Check that nothing follows."""
        self._skip_space()
        if self._position < len(self._text):
            raise ValueError(f"{self._text[self._position : self._position + 20]!r} follows the array")

    def _skip_space(self) -> None:
        while True:
            while self._position < len(self._text) and self._text[self._position] in _SPACE:
                self._position += 1
            if self._position < len(self._text) or not self._more():
                return

    def _more(self) -> bool:
        """Read on, doubling the text that is not parsed; return whether there was more."""
        rest = self._text[self._position :]
        data = self._stream.read(max(len(rest), 1 << 18))
        self.num_bytes += len(data)
        self._text, self._position = rest + self._decoder.decode(data, final=not data), 0
        return bool(data)
