"""Parquet files, saved data sets and data sets by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from train.data.text.documents import columns
from train.data.text.documents.document import Document, Fault, Found, Reading

_ROWS = 256  # at a time: a document may be large


class MissingDataError(Exception):
    """A data set that cannot be loaded; the message is the reason."""


def parquet_documents(reading: Reading) -> Found:
    """Yield the documents of a Parquet file, a few rows at a time."""
    row = 0
    try:
        with pq.ParquetFile(reading.part.path) as file:
            steps, fault = _column(file.schema_arrow, reading)
            if fault is not None:
                yield fault
                return
            for batch in file.iter_batches(_ROWS, columns=[".".join(steps)]):
                yield from _of_values(columns.values(batch, steps), row, reading)
                row += len(batch)
                if reading.is_cut:
                    return
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        yield Fault(reading.file, f"is damaged or cut off after row {row:,} ({_first_line(error)})")


def saved_documents(reading: Reading) -> Found:
    """Yield the documents of a data set that `datasets` saved.

    Raises:
        MissingDataError: It lacks the split, or cannot be read.
    """
    try:
        loaded = datasets.load_from_disk(str(reading.part.path))
    except Exception as error:  # `datasets` passes on any error of its readers
        raise MissingDataError(f"cannot be loaded ({_first_line(error)})") from error
    split = reading.named.get("split")
    if isinstance(loaded, datasets.DatasetDict):
        if (split or "train") not in loaded:
            raise MissingDataError(
                f"has no split {split or 'train'!r}; write split: one of {', '.join(map(str, loaded))}"
            )
        loaded = loaded[split or "train"]
    return _of_data_set(loaded, reading)


def named_documents(reading: Reading) -> Found:
    """Yield the documents of a data set by name, loaded from the hub or, with `streaming`, read from there.

    Raises:
        MissingDataError: It cannot be loaded.
    """
    loaded = _loaded(reading)
    return _of_data_set(loaded, reading) if isinstance(loaded, datasets.Dataset) else _streamed(loaded, reading)


def _loaded(reading: Reading) -> Any:
    """Load a data set; a sample of it is streamed or, without a network, taken from the machine's cache."""
    is_sample = reading.limit is not None
    arguments: dict[str, Any] = reading.named | ({"streaming": True} if is_sample else {})
    try:
        try:
            return datasets.load_dataset(reading.file, **arguments)
        except ConnectionError:
            if not is_sample:
                raise
            offline = datasets.DownloadConfig(local_files_only=True)
            return datasets.load_dataset(reading.file, **reading.named, download_config=offline)
    except Exception as error:  # `datasets` passes on any error of its readers and the network
        reason = f"is neither a local file or folder nor a loadable data set ({_first_line(error)})"
        raise MissingDataError(reason) from error


def _of_data_set(data_set: datasets.Dataset, reading: Reading) -> Found:
    steps, fault = _column(data_set.features.arrow_schema, reading)
    if fault is not None:
        yield fault
        return
    row = 0
    selected: Any = data_set.select_columns(steps[:1]).with_format("arrow")
    try:
        for table in selected.iter(_ROWS):
            yield from _of_values(columns.values(table, steps), row, reading)
            row += len(table)
            if reading.is_cut:
                return
    except Exception as error:  # of its readers, where a file is damaged
        raise MissingDataError(f"cannot be read after row {row:,} ({_first_line(error)})") from error


def _streamed(rows: Iterable[Mapping[str, Any]], reading: Reading) -> Found:
    row = 0
    try:
        for row, values in enumerate(rows, 1):
            found = _found(columns.text_of, values, row, reading)
            yield found
            if _is_enough(found, reading):
                return
    except Exception as error:  # of its readers and the network
        raise MissingDataError(f"cannot be read after row {row:,} ({_first_line(error)})") from error


def _of_values(values: Iterator[object], first: int, reading: Reading) -> Found:
    """Yield rows as documents; `first` rows stand before them."""
    for row, value in enumerate(values, first + 1):
        found = _found(columns.checked, value, row, reading)
        yield found
        if _is_enough(found, reading):
            return


def _found(read: Callable[[Any, str], str], value: object, row: int, reading: Reading) -> Document | Fault:
    try:
        return Document(read(value, reading.column), reading.file, row)
    except columns.NoTextError as error:
        key = "text_column" if error.lacks_column else "path"
        return Fault(f"{reading.file}, row {row:,}", str(error), key)


def _is_enough(found: Document | Fault, reading: Reading) -> bool:
    return reading.is_over(len(found.text) if isinstance(found, Document) else 0)


def _column(schema: pa.Schema, reading: Reading) -> tuple[list[str], Fault | None]:
    """Return the way to the column, or the fault that there is none with text."""
    steps = columns.path_in(schema, reading.column)
    if steps is None:
        return [], Fault(reading.file, columns.absent(reading.column, columns.names_in(schema)), "text_column", True)
    kind = columns.type_at(schema, steps)
    if not columns.is_text(kind):
        names = ", ".join(columns.names_in(schema))
        reason = f"has {kind} in column {reading.column!r}, not text; its columns are {names}"
        return [], Fault(reading.file, reason, "text_column", True)
    return steps, None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
