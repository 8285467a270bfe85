"""Small files of every format that holds text."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from train.config.tasks.language_model import SourceConfig
from train.data.text.documents.document import Document
from train.data.text.documents.reader import DocumentReader

TEXTS = ["one\ntwo\r\nthree \x00 four", "naïve 層 🙂 <|endoftext|>", '"quoted", {"text": 1}\t', " ", "last"]
SEPARATOR = "<|doc|>"
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    ".bz2": lambda data: bz2.compress(data, 1),  # blocks of 100 kB: a cut archive loses only the last
    ".xz": lzma.compress,
}
COLUMNS = {None: "text", "body": "body", "meta.body.text": "meta.body.text"}  # text_column -> where the text stands


def row(text: object, column: str | None = None, **others: object) -> dict[str, Any]:
    """Return a row with its text under a column, or a path of names."""
    names = (column or "text").split(".")
    value: Any = text
    for name in reversed(names[1:]):
        value = {name: value, "other": 1}
    return {"id": 7, names[0]: value, **others}


def json_lines(texts: Sequence[object], column: str | None = None) -> bytes:
    return "".join(json.dumps(row(text, column)) + "\n" for text in texts).encode()


def json_array(texts: Sequence[object], column: str | None = None) -> bytes:
    return json.dumps([row(text, column) for text in texts], indent=1, ensure_ascii=False).encode()


def table(texts: Sequence[str], column: str | None = None) -> bytes:
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerows([["id", column or "text"], *([7, text] for text in texts)])
    return lines.getvalue().encode()


def separated(texts: Sequence[str]) -> bytes:
    """Return texts between separator lines; each but the last ends with the line's end before the separator."""
    return f"\n{SEPARATOR}\n".join(texts).encode()


def parquet(path: Path, texts: Sequence[object], column: str | None = None, *, row_group_size: int = 2) -> None:
    pq.write_table(pa.Table.from_pylist([row(text, column) for text in texts]), path, row_group_size=row_group_size)


def saved(path: Path, texts: Sequence[object], column: str | None = None) -> None:
    datasets.Dataset.from_list([row(text, column) for text in texts]).save_to_disk(path)


def reader(path: Path | str, *, on_bad: Any = "refuse", sample: Any = None, **keys: Any) -> DocumentReader:
    source = SourceConfig(path=str(path), **keys)
    return DocumentReader(source, path="task.data.sources[0]", on_bad_document=on_bad, sample=sample)


def documents(path: Path | str, **keys: Any) -> list[Document]:
    return list(reader(path, **keys))


def texts_of(path: Path | str, **keys: Any) -> list[str]:
    return [document.text for document in documents(path, **keys)]
