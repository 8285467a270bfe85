"""Schema validation of plain values against dataclasses: every fault at once, each with its path and its remedy.

Why not pydantic: cross-field rules (`train.config.rules`) must run even if other fields are invalid, which requires the
valid part of the configuration; and its messages are written for programmers.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

from train.config.setting import is_union, sections_of, setting_of
from train.config.yaml_text import shortened, show

T = TypeVar("T")

_INVALID: Any = object()
_MOST_SUGGESTIONS = 20  # unknown keys of a section for which the nearest key is searched: milliseconds each
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}

# Names of our settings in other training stacks.
_OTHER_NAMES = {
    "batch_size": "global_batch_size",
    "block_size": "sequence_length",
    "grad_clip": "gradient_clipping",
    "learning_rate": "lr",
    "lr_scheduler_type": "schedule",
    "max_grad_norm": "gradient_clipping",
    "max_length": "sequence_length",
    "max_seq_len": "sequence_length",
    "max_steps": "steps",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "per_device_train_batch_size": "micro_batch_size",
    "rope_theta": "rope_parameters",
    "train_steps": "steps",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
}


class Checked(NamedTuple, Generic[T]):
    """The result of a check."""

    value: T | None  # None if there are faults
    leaves: dict[str, Any]  # every valid value by path, including defaults
    faults: list[str]


def check(kind: type[T], tree: Mapping[str, Any]) -> Checked[T]:
    """Build a dataclass from a tree, or report every fault in the tree.

    Supported types are bool, int, float, str, Literal, tuple, dict, unions of these, dataclasses, and unions of
    dataclasses discriminated by their required field `kind`. An int is accepted for a float and an integral float for
    an int; a bool is accepted for neither. A dataclass with a class variable `shorthand` accepts that field alone.
    """
    report = _Report(kind)
    value = report.section(kind, tree, "")
    return Checked(None if report.faults else value, report.leaves, report.faults)


def key_paths(kind: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every key that a dataclass accepts, including sections."""
    for section in sections_of(kind):
        hints = _hints(section)
        for field in dataclasses.fields(section):
            below = f"{path}{field.name}"
            yield below
            hint = hints[field.name]
            yield from key_paths(hint, f"{below}.")
            if get_origin(hint) is tuple:
                yield from key_paths(get_args(hint)[0], f"{below}.0.")


class _Report:
    """Faults and valid values collected during a walk over the tree."""

    def __init__(self, root: Any) -> None:
        self.faults: list[str] = []
        self.leaves: dict[str, Any] = {}
        self._paths = list(dict.fromkeys(key_paths(root)))

    def fault(self, path: str, text: str) -> Any:
        self.faults.append(f"{path}: {text}")
        return _INVALID

    def section(self, kind: Any, value: object, path: str) -> Any:
        """Check a mapping against a dataclass, or against the member of a union selected by `kind`."""
        mapping = self._mapping(kind, value, path)
        section = self._select(kind, mapping, path) if mapping is not None else None
        if mapping is None or section is None:
            return _INVALID
        prefix, hints = f"{path}." if path else "", _hints(section)
        fields = [field for field in dataclasses.fields(section) if field.init]
        names = [field.name for field in fields]
        self._unknown([key for key in mapping if key not in names], prefix, names)
        values = {field.name: self._field(field, hints[field.name], mapping, prefix) for field in fields}
        return _INVALID if _INVALID in values.values() else section(**values)

    def _mapping(self, kind: Any, value: object, path: str) -> Mapping[str, Any] | None:
        shorthand = getattr(kind, "shorthand", None)
        if shorthand and isinstance(value, str):
            return {shorthand: value}
        if value is None:  # a heading with nothing under it
            return {}
        if isinstance(value, Mapping):
            return cast("Mapping[str, Any]", value)
        keys = ", ".join(field.name for section in sections_of(kind)[:1] for field in dataclasses.fields(section))
        return self.fault(path, f"{show(value)} is not a section; it accepts the keys {keys}") and None

    def _select(self, kind: Any, mapping: Mapping[str, Any], path: str) -> Any:
        kinds = _kinds(kind)
        if not kinds:
            return kind
        allowed, name = ", ".join(kinds), mapping.get("kind")
        if "kind" not in mapping:
            self.fault(f"{path}.kind", f"missing; write {'one of ' * (len(kinds) > 1)}{allowed}")
            return next(iter(kinds.values())) if len(kinds) == 1 else None
        if not isinstance(name, str) or name not in kinds:
            self.fault(f"{path}.kind", f"{show(name)} is not one of {allowed}")
            return None
        readable = set(key_paths(kinds[name], f"{path}."))  # do not suggest keys of another kind
        self._paths = [each for each in self._paths if not each.startswith(f"{path}.") or each in readable]
        return kinds[name]

    def _field(self, field: dataclasses.Field[Any], kind: Any, mapping: Mapping[str, Any], prefix: str) -> Any:
        path = f"{prefix}{field.name}"
        if field.name in mapping:
            value = self.convert(kind, mapping[field.name], path)
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = self.convert(kind, {}, path) if sections_of(kind) else field.default_factory()
        elif sections_of(kind):  # reports every missing key below it too
            value = self.convert(kind, {}, path)
        else:
            value = self.fault(path, f"missing and has no default; write {describe(kind)}")
        if value is not _INVALID and (violation := setting_of(field).violation(value)):
            value = self.fault(path, violation)
        if value is not _INVALID:
            self.leaves[path] = value
        return value

    def convert(self, kind: Any, value: object, path: str) -> Any:
        """Convert a value to the type, or record a fault and return _INVALID."""
        origin = get_origin(kind)
        if sections_of(kind):
            return self.section(kind, value, path)
        if origin is Literal:
            return self._literal(get_args(kind), value, path)
        if is_union(kind):
            return self._union(get_args(kind), value, path)
        if origin is tuple:
            return self._tuple(get_args(kind), value, path)
        if origin is dict:
            return dict(cast("dict[str, Any]", value)) if isinstance(value, dict) else self._wrong(kind, value, path)
        return self._scalar(kind, value, path)

    def _scalar(self, kind: type, value: object, path: str) -> Any:
        if type(value) is kind and not (isinstance(value, float) and not math.isfinite(value)):
            return value
        if kind is float and type(value) is int:
            return float(value)
        if kind is int and isinstance(value, float) and value.is_integer():
            return int(value)
        return self._wrong(kind, value, path)

    def _literal(self, allowed: tuple[Any, ...], value: object, path: str) -> Any:
        for choice in allowed:
            if type(choice) is type(value) and choice == value:
                return choice
        near = difflib.get_close_matches(show(value).strip("'"), [str(choice) for choice in allowed], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return self.fault(path, f"{show(value)} is not one of {', '.join(map(str, allowed))}{hint}")

    def _union(self, kinds: tuple[Any, ...], value: object, path: str) -> Any:
        """Choose the alternative that matches the shape of the value."""
        if value is None and types.NoneType in kinds:
            return None
        kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
        if type(value) in kinds:
            return self._scalar(type(value), value, path)
        lists = [kind for kind in kinds if (get_origin(kind) is tuple) == isinstance(value, list | tuple)]
        return self.convert(lists[0], value, path) if len(lists) == 1 else self._wrong(kinds[0], value, path)

    def _tuple(self, kinds: tuple[Any, ...], value: object, path: str) -> Any:
        if not isinstance(value, list | tuple):
            more = "" if kinds[-1] is Ellipsis else ", ..."
            return self.fault(path, f"{show(value)} is not a list; write [{show(value)}{more}]")
        items = list(cast("list[object]", value))
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(items)
        if len(items) != len(kinds):
            return self.fault(path, f"{show(items)} has {len(items)} entries; expected {len(kinds)}")
        values = tuple(
            self.convert(kind, item, f"{path}.{n}") for n, (kind, item) in enumerate(zip(kinds, items, strict=True))
        )
        return _INVALID if _INVALID in values else values

    def _wrong(self, kind: Any, value: object, path: str) -> Any:
        text = f"{show(value)} is not {describe(kind)}"
        if isinstance(value, str) and kind in (int, float) and _is_number(value):
            text += "; write it without quotes"
        if kind is str and isinstance(value, bool | int | float):
            text += f"; put it in quotes: '\"{show(value)}\"' on the command line"
        return self.fault(path, text)

    def _unknown(self, keys: Sequence[str], prefix: str, siblings: list[str]) -> None:
        for key in keys[:_MOST_SUGGESTIONS]:
            key = shortened(key, 80)
            names = self._nearest(prefix, key, siblings)
            remedy = f"did you mean {' or '.join(names)}?" if names else f"allowed keys: {', '.join(siblings)}"
            self.fault(f"{prefix}{key}", f"unknown key; {remedy}")
        if len(keys) > _MOST_SUGGESTIONS:
            self.fault(prefix.rstrip(".") or "the file", f"{len(keys) - _MOST_SUGGESTIONS} more unknown keys")

    def _nearest(self, prefix: str, key: str, siblings: list[str]) -> list[str]:
        """Return the full paths that a key may stand for: misplaced, misspelled, or known by another name."""
        by_name: dict[str, list[str]] = {}
        for path in self._paths:
            by_name.setdefault(path.rpartition(".")[2], []).append(path)
        for name in (key, _OTHER_NAMES.get(key.lower(), key)):
            if name in by_name:
                return [f"{prefix}{name}"] if name in siblings else by_name[name]
        if near := difflib.get_close_matches(key, siblings, n=1):
            return [f"{prefix}{near[0]}"]
        near = difflib.get_close_matches(key, [*by_name, *_OTHER_NAMES], n=1, cutoff=0.75)
        return by_name[_OTHER_NAMES.get(near[0], near[0])] if near else []


@functools.cache
def _hints(section: type) -> dict[str, Any]:
    return get_type_hints(section)


def _kinds(kind: Any) -> dict[str, Any]:
    hints = [(_hints(section).get("kind"), section) for section in sections_of(kind)]
    return {name: section for hint, section in hints if hint is not None for name in get_args(hint)}


def describe(kind: Any) -> str:
    """Describe the values of a type in words: "a whole number", "one of a, b"."""
    members = get_args(kind)
    if kind in _WORDS:
        return _WORDS[kind]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, members))
    if get_origin(kind) is tuple:
        return "a list"
    return "key: value lines" if get_origin(kind) is dict else " or ".join(describe(k) for k in members) or "a section"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
