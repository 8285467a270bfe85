"""Folder names of a sweep's members, built from the settings that differ."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_SHORT = {"norm_placement": "placement"}
_LONGEST_VALUE, _LONGEST_NAME = 32, 100


class Point(NamedTuple):
    """One member: an entry of `runs`, if there are any, with values of the grid."""

    entry: Mapping[str, Any]
    settings: dict[str, Any]  # of the entry and the grid, by key
    in_name: dict[str, Any]  # what appears in the folder's name
    after: int | None = None  # position of the point that it comes after

    @property
    def label(self) -> str | None:
        """Name of the entry."""
        return None if self.entry.get("name") is None else str(self.entry["name"])


def names_of(points: Sequence[Point]) -> list[str]:
    """Return a folder name for each point, built from short keys and values of the settings that differ."""
    keys = _short_keys(list(dict.fromkeys(key for point in points for key in point.in_name)))
    names = ["_".join(_name_parts(point, keys)) or "only" for point in points]
    names = [_fitted(name, point) for name, point in zip(names, points, strict=True)]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    return [_with_hash(n, p) if n in repeated else n for n, p in zip(names, points, strict=True)]


def _name_parts(point: Point, keys: Mapping[str, str]) -> Iterator[str]:
    if point.label is not None:
        yield point.label
    for key, value in point.in_name.items():
        yield f"{keys[key]}-{_value(value)}"


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return each key's last component, preceded by as many others as it takes to be unique."""
    short = {key: _SHORT.get(key.rpartition(".")[2], key.rpartition(".")[2]) for key in keys}
    for key in keys:
        words, last = key.split("."), list(short.values())
        if last.count(short[key]) > 1:
            count = next(n for n in range(1, len(words) + 1) if not _shared(words[-n:], key, keys))
            short[key] = ".".join(words[-count:])
    return short


def _shared(tail: list[str], key: str, keys: Sequence[str]) -> bool:
    return len(tail) < len(key.split(".")) and any(k != key and k.split(".")[-len(tail) :] == tail for k in keys)


def _value(value: object) -> str:
    if isinstance(value, float):
        return _number(value)
    text = str(value) if isinstance(value, str | int) else json.dumps(value)
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 7]}-{_hash(value)}"


def _number(value: float) -> str:
    """Return a float as in 3e-3, 0.1, 1.5."""
    if value and not 0.1 <= abs(value) < 1e4:
        mantissa, _, exponent = f"{value:.6e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:g}"


def _fitted(name: str, point: Point) -> str:
    return name if len(name) <= _LONGEST_NAME else _with_hash(name[: _LONGEST_NAME - 7], point)


def _with_hash(name: str, point: Point) -> str:
    kept = {key: point.entry[key] for key in ("config", "after", "make") if key in point.entry}
    return f"{name[: _LONGEST_NAME - 7]}-{_hash(point.settings | kept)}"


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:6]
