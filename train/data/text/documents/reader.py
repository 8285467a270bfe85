"""The reader of a source: its documents in a fixed order, and what was read and skipped."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from train.config.errors import ConfigError
from train.config.tasks.language_model import EMBEDDED_CORPUS, SourceConfig
from train.data.text.documents import files, formats
from train.data.text.documents.csv_files import csv_documents
from train.data.text.documents.document import Document, Fault, Format, Found, Part, Reading
from train.data.text.documents.json_files import json_documents
from train.data.text.documents.plain_text import text_documents
from train.data.text.documents.tables import (
    MissingDataError,
    named_documents,
    parquet_documents,
    saved_documents,
)

READERS: dict[Format, Callable[[Reading], Found]] = {
    "json": json_documents,
    "csv": csv_documents,
    "parquet": parquet_documents,
    "text": text_documents,
    "saved": saved_documents,
    "named": named_documents,
}
# Settings of a source that only some formats read.
_READS: dict[str, tuple[Format, ...]] = {
    "name": ("named",),
    "split": ("named", "saved"),
    "streaming": ("named",),
    "text_column": ("json", "csv", "parquet", "saved", "named"),
    "document_separator": ("text",),
}
_PATTERN = "a pattern such as folder/*.jsonl leaves other files out"
_FIRST = 5  # faults and names that are listed


class Sample(NamedTuple):
    """How much a check reads of a source, in bytes after decompression.

    Args:
        whole: A source of up to this size is read whole.
        head: Of each larger file of a larger source, this much is read.
    """

    whole: int = 64_000_000
    head: int = 4_000_000


@dataclass
class Counts:
    """What was read of a source.

    Args:
        documents: Documents.
        bytes: Their size as UTF-8.
        blank: Documents among them that are empty or white space.
        skipped: Bad documents that were left out.
        first_skipped: The first of them, with place and reason.
        files_read: Files, saved data sets and names that were begun.
        files_cut: Those that were not read to their end, as a sample is enough.
        bytes_read: What was read of the files, after decompression; of tables, the text.
    """

    documents: int = 0
    bytes: int = 0
    blank: int = 0
    skipped: int = 0
    first_skipped: list[str] = field(default_factory=list)
    files_read: int = 0
    files_cut: int = 0
    bytes_read: int = 0


class DocumentReader:
    """Documents of one source, always in the same order; each iteration begins anew and may be stopped at any document.

    Memory is bounded by the largest document (of Parquet: the pages around a few rows), not by the source.

    Args:
        source: The source.
        path: Its path in the configuration, for messages: "task.data.sources[0]".
        on_bad_document: Whether a document that cannot be read is an error or left out and counted.
        sample: Read no more than this; None reads everything.

    Raises:
        ConfigError: It does not exist, or a file of it has no format that can be read; while iterating: a document
            cannot be read, or there is none.
    """

    def __init__(
        self,
        source: SourceConfig,
        *,
        path: str,
        on_bad_document: Literal["refuse", "skip"] = "refuse",
        sample: Sample | None = None,
    ):
        self.source = source
        self.counts = Counts()  # of the last iteration
        self.parts = _parts(source, path)
        self._path = path
        self._on_bad_document = on_bad_document
        self._sample = sample
        self.is_large = sample is not None and files.size_on_disk([source]) > sample.whole

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents, up to `max_documents`."""
        self.counts = Counts()
        for part in self.parts:
            for document in self.read(part):
                yield document
                if self.counts.documents == self.source.max_documents:
                    return
        self._require_text()

    def read(self, part: Part) -> Iterator[Document]:
        """Yield the documents of one part, and count them."""
        reading = self._reading(part)
        counts = self.counts
        counts.files_read += 1
        for found in self._found(reading):
            if isinstance(found, Fault):
                self._skip(found)
                continue
            counts.documents += 1
            counts.bytes += len(found.text) if found.text.isascii() else len(found.text.encode())
            counts.blank += not found.text or found.text.isspace()
            yield found
        counts.files_cut += reading.is_cut
        counts.bytes_read += reading.num_bytes

    def facts(self) -> dict[str, Any]:
        """Return what was read, for the record of a run."""
        counts = self.counts
        facts: dict[str, Any] = {
            "path": self.source.path,
            "files": counts.files_read,
            "formats": dict(Counter(part.format for part in self.parts)),
            "documents": counts.documents,
            "bytes": counts.bytes,
        }
        if counts.files_cut:
            facts |= {"files_cut": counts.files_cut, "bytes_read": counts.bytes_read}
        if counts.blank:
            facts["blank_documents"] = counts.blank
        if counts.skipped:
            facts |= {"skipped": counts.skipped, "first_skipped": counts.first_skipped}
        if guesses := self.guesses():
            facts["recognized_by_content"] = guesses
        return facts

    def guesses(self) -> str:
        """Say which files were recognized by their content, as their suffix is not a known one; empty if none."""
        kinds = Counter((part.path.suffix or "no suffix", part.format) for part in self.parts if part.is_guess)
        return ", ".join(f"{count} with {suffix} as {kind}" for (suffix, kind), count in kinds.most_common(_FIRST))

    def _reading(self, part: Part) -> Reading:
        source, limit = self.source, None
        if self._sample is not None:
            left = 0 if self.is_large else self._sample.whole - self.counts.bytes_read
            limit = max(self._sample.head, left)
        named: dict[str, Any] = {"split": source.split}
        if part.format == "named":
            is_limited = source.max_documents is not None or source.max_tokens is not None
            streaming = is_limited if source.streaming is None else source.streaming
            named = {"name": source.name, "split": source.split or "train", "streaming": streaming}
        column = source.text_column or "text"
        return Reading(part, column, source.document_separator, limit, named)

    def _found(self, reading: Reading) -> Iterator[Document | Fault]:
        try:
            yield from READERS[reading.part.format](reading)
        except MissingDataError as error:
            raise ConfigError([f"{self._path}.path: {reading.file} {error}"]) from error
        except OSError as error:
            raise ConfigError(
                [f"{self._path}.path: {reading.file} cannot be read ({error.strerror or error})"]
            ) from error

    def _skip(self, fault: Fault) -> None:
        """Count a fault.

        Raises:
            ConfigError: It is not to be skipped.
        """
        remedy = "set text_column to the one that holds the text" if fault.key == "text_column" else "mend it"
        remedy += f" ({_PATTERN})" if len(self.parts) > 1 else ""
        if fault.is_of_file:
            raise ConfigError([f"{self._path}.{fault.key}: {fault}; {remedy}"])
        if self._on_bad_document == "refuse":
            skip = "task.data.on_bad_document=skip to leave such documents out and count them"
            raise ConfigError([f"{self._path}.{fault.key}: {fault}; {remedy}, or write {skip}"])
        self.counts.skipped += 1
        if len(self.counts.first_skipped) < _FIRST:
            self.counts.first_skipped.append(str(fault))

    def _require_text(self) -> None:
        counts = self.counts
        if counts.documents > counts.blank or counts.files_cut:
            return
        why = "is empty" if counts.documents == 0 else "contains only white space"
        if counts.skipped:
            why = f"contains no document that can be read: {counts.skipped:,} skipped, as {counts.first_skipped[0]}"
        raise ConfigError([f"{self._path}.path: {self.source.path} {why}"])


# ----------------------------------------------------------------------------------------------------------- parts


def _parts(source: SourceConfig, path: str) -> list[Part]:
    """Return the parts of a source in their order, with all faults of its files at once."""
    if source.path == EMBEDDED_CORPUS:
        return [Part(file, "text", errors="replace") for file in files.standard_library()]
    places = files.places(source)
    if not places:
        return [_named(source, path)]
    parts: list[Part] = []
    faults: list[str] = []
    for place in places:
        try:
            parts.append(_part(place, names_column=source.text_column is not None))
        except formats.UnknownFormatError as error:
            faults.append(f"{path}.path: {place} {error}")
        except OSError as error:
            faults.append(f"{path}.path: {place} cannot be read ({error.strerror or error})")
    if faults:
        more = [f"{path}.path: ... and {len(faults) - _FIRST:,} more files"] if len(faults) > _FIRST else []
        known = f"{path}.path: what can be read is {formats.KNOWN}; {_PATTERN}"
        raise ConfigError([*faults[:_FIRST], *more, known])
    _refuse_ignored_keys(source, path, parts)
    return parts


def _part(place: Path, *, names_column: bool) -> Part:
    if files.is_saved(place):
        return Part(place, "saved")
    if place.is_dir():
        os.listdir(place)  # a folder is left as it is where it cannot be listed: this raises the reason
    if not place.exists():
        raise formats.UnknownFormatError(f"is a link to {place.readlink()}, which does not exist")
    if not place.is_file():
        raise formats.UnknownFormatError("is neither a file nor a folder")
    return formats.recognize(place, names_column=names_column)


def _named(source: SourceConfig, path: str) -> Part:
    """Return the data set of a name; a path at which there is nothing is no name."""
    folder = Path(source.path).expanduser()
    if folder.is_dir():
        raise ConfigError([f"{path}.path: {source.path} contains no files; hidden ones are not read"])
    if glob.has_magic(source.path):
        folders = [match for match in glob.glob(str(folder), recursive=True) if Path(match).is_dir()]
        more = f", only folders; write {source.path}/**" if folders else ""
        raise ConfigError([f"{path}.path: {source.path} matches no files{more}"])
    if source.path.startswith(("/", ".", "~")) or formats.has_known_suffix(source.path):
        raise ConfigError([f"{path}.path: {source.path} does not exist"])
    return Part(Path(source.path), "named")


def _refuse_ignored_keys(source: SourceConfig, path: str, parts: list[Part]) -> None:
    present = {part.format for part in parts}
    faults = [
        f"{path}.{key}: has no effect on {source.path} ({', '.join(sorted(present))}); remove it"
        for key, readers in _READS.items()
        if getattr(source, key) is not None and present.isdisjoint(readers)
    ]
    if faults:
        raise ConfigError(faults)
