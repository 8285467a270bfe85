"""Documents, faults of documents, and what is known while a part of a source is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

Format = Literal["json", "parquet", "csv", "text", "saved", "named"]


class Document(NamedTuple):
    """A document and its place.

    Args:
        text: The text as in the file, without a byte order mark.
        file: The file, saved data set or name of a data set that it stands in.
        row: Its line in JSON Lines and CSV, its number in an array, a table or a data set, or the first line of a text
            between separators; all from 1. None for a whole file.
    """

    text: str
    file: str
    row: int | None = None


class Fault(NamedTuple):
    """A document that cannot be read, or the rest of a file that cannot.

    Args:
        place: File and line, row or byte.
        reason: What is wrong there, as a predicate: "is not UTF-8".
        key: The setting of the source that it concerns.
        is_of_file: Whether the file as a whole is not what the configuration says, so that it cannot be skipped.
    """

    place: str
    reason: str
    key: Literal["path", "text_column"] = "path"
    is_of_file: bool = False

    def __str__(self) -> str:
        return f"{self.place} {self.reason}"


class DamagedError(Exception):
    """The rest of a compressed file cannot be read."""


class Part(NamedTuple):
    """A part of a source that is read in one go: a file, a saved data set, or a data set by name."""

    path: Path
    format: Format
    compression: str | None = None  # suffix, as in ".gz"
    is_guess: bool = False  # the format was recognized by the content alone
    errors: Literal["strict", "replace"] = "strict"  # text that is not UTF-8


@dataclass
class Reading:
    """One pass over one part.

    Args:
        part: The part.
        column: Column of the text; "a.b" is the field b of the column a.
        separator: The line that separates the documents of a text file.
        limit: Bytes to read, after decompression; None for all.
        named: Arguments of `datasets.load_dataset` for a data set by name.
        num_bytes: Bytes read so far.
        is_cut: Whether the limit ended the pass.
    """

    part: Part
    column: str = "text"
    separator: str | None = None
    limit: int | None = None
    named: dict[str, Any] = field(default_factory=dict)
    num_bytes: int = 0
    is_cut: bool = False

    @property
    def file(self) -> str:
        """The name of the part in documents and messages, printable even if it is not UTF-8."""
        return os.fsencode(self.part.path).decode("utf-8", "backslashreplace")

    def is_over(self, num_bytes: int) -> bool:
        """Count bytes that were read; return whether the limit is reached."""
        self.num_bytes += num_bytes
        self.is_cut = self.limit is not None and self.num_bytes >= self.limit
        return self.is_cut


Found = Iterator[Document | Fault]  # what a reader of a format yields
