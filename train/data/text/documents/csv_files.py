"""CSV and TSV files with a header."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator

from train.data.text.documents import columns, encoding, streams
from train.data.text.documents.document import DamagedError, Document, Fault, Found, Reading


def csv_documents(reading: Reading) -> Found:
    """Yield the documents of a table of text, whose first line names its columns."""
    csv.field_size_limit(sys.maxsize)  # the module's own limit is 128 KiB a field
    lines = _Lines()
    try:
        with streams.opened(reading) as stream:
            yield from _rows(lines.of(stream, reading), reading)
    except UnicodeDecodeError as error:
        yield Fault(reading.file, encoding.fault(error.object, error, reading.part, start=lines.start))
    except (DamagedError, csv.Error) as error:
        yield Fault(reading.file, f"cannot be read after line {lines.number:,} ({error})")


def _rows(lines: Iterator[str], reading: Reading) -> Found:
    rows = csv.DictReader(lines, delimiter="\t" if ".tsv" in reading.part.path.name.lower() else ",")
    names = list(rows.fieldnames or [])
    if names and reading.column not in names:
        yield Fault(reading.file, columns.absent(reading.column, names), "text_column", is_of_file=True)
        return
    last = 1
    for row in rows:
        first, last = last + 1, rows.line_num
        try:
            yield Document(columns.checked(row[reading.column], reading.column), reading.file, first)
        except columns.NoTextError as error:
            yield Fault(f"{reading.file}, line {first:,}", str(error))


class _Lines:
    """Lines of a stream as text, and the place of the last."""

    def __init__(self) -> None:
        self.number = 0
        self.start = 0  # in bytes

    def of(self, stream: io.BufferedReader, reading: Reading) -> Iterator[str]:
        position = 0
        for self.number, line in enumerate(stream, 1):
            if reading.is_cut and not line.endswith(b"\n"):
                return
            text = line.removeprefix(encoding.BOM) if self.number == 1 else line
            position += len(line)
            self.start = position - len(text)
            yield text.decode("utf-8")
