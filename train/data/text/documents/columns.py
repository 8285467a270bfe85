"""The text of a row: a column by name, or a field within columns by its path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_MOST_NAMES = 20
_ABSENT = object()


class NoTextError(Exception):
    """A row without text.

    Args:
        reason: What is wrong, as a predicate.
        lacks_column: Whether the row has no such column.
    """

    def __init__(self, reason: str, *, lacks_column: bool = False):
        super().__init__(reason)
        self.lacks_column = lacks_column


def text_of(row: object, column: str) -> str:
    """Return the text of a row.

    Args:
        row: A JSON object or a row of a table.
        column: A column; or a path, "a.b" is the field b of the object a.

    Raises:
        NoTextError: It has none.
    """
    if not isinstance(row, Mapping):
        raise NoTextError(f"is {_kind(row)}, not an object with columns")
    value = _value(row, column)
    if value is _ABSENT:
        raise NoTextError(absent(column, _names(row)), lacks_column=True)
    return checked(value, column)


def checked(value: object, column: str) -> str:
    """Return a value that is text.

    Raises:
        NoTextError: It is not.
    """
    if not isinstance(value, str):
        raise NoTextError(f"has {_kind(value)} in column {column!r}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        reason = f"has half a character (a lone surrogate) in column {column!r}, which UTF-8 cannot express"
        raise NoTextError(reason) from None
    return value


def absent(column: str, names: Sequence[str]) -> str:
    """Say that a column is missing, and which there are."""
    more = ", ..." if len(names) > _MOST_NAMES else ""
    return f"has no column {column!r}; it has {', '.join(names[:_MOST_NAMES]) or 'none'}{more}"


def path_in(schema: pa.Schema, column: str) -> list[str] | None:
    """Return the names that lead to a column of a table; None if it has no such column."""
    if column in schema.names:
        return [column]
    kind: Any = schema
    for name in (steps := column.split(".")):
        if name not in (kind.names if isinstance(kind, pa.Schema) else _fields(kind)):
            return None
        kind = kind.field(name).type
    return steps


def names_in(schema: pa.Schema) -> list[str]:
    """Return the columns of a table and, with their paths, the fields below."""
    return [name for field in schema for name in _below(field, "")]


def type_at(schema: pa.Schema, steps: Sequence[str]) -> pa.DataType:
    """Return the type of a column."""
    kind = schema.field(steps[0]).type
    for name in steps[1:]:
        kind = kind.field(name).type
    return kind


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type may hold text."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(test(kind) for test in tests)


def values(batch: pa.RecordBatch | pa.Table, steps: Sequence[str]) -> Iterator[Any]:
    """Yield the values of a column; bytes where one is not UTF-8."""
    column: Any = batch.column(steps[0])
    if steps[1:]:
        column = pc.struct_field(column, list(steps[1:]))  # type: ignore[attr-defined]
    try:
        yield from column.to_pylist()
    except UnicodeDecodeError:  # raised before the first is yielded
        yield from (_decoded(value) for value in column)


def _decoded(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes()


def _value(row: Mapping[str, Any], column: str) -> object:
    if column in row:
        return row[column]
    value: object = row
    for name in column.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def _names(row: Mapping[str, Any], prefix: str = "") -> list[str]:
    return [
        name
        for key, value in row.items()
        for name in (_names(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"])
    ]


def _fields(kind: pa.DataType) -> list[str]:
    return [kind.field(i).name for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []


def _below(field: Any, prefix: str) -> Iterator[str]:
    name = f"{prefix}{field.name}"
    if not _fields(field.type):
        yield name
    for i in range(len(_fields(field.type))):
        yield from _below(field.type.field(i), f"{name}.")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return f"a number ({str(value)[:20]})"
    if isinstance(value, bytes):
        return "bytes that are not UTF-8"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, Mapping) else "text" if isinstance(value, str) else type(value).__name__
