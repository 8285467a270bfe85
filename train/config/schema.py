"""A tree of plain values, checked against dataclasses: every fault at once, each with its path and its remedy.

Not pydantic: the rules that span several fields (`train.config.rules`) must also run on a configuration that is wrong
elsewhere, which needs the valid part of it; and its words are for programmers.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

from train.config.setting import is_union, sections_of, setting_of
from train.config.yaml_text import show

T = TypeVar("T")

_INVALID: Any = object()
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}

# What other stacks call ours.
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
    """The outcome of a check."""

    value: T | None  # None where there are faults
    leaves: dict[str, Any]  # every valid value by its path, defaults included
    faults: list[str]


def check(kind: type[T], tree: Mapping[str, Any]) -> Checked[T]:
    """Build a dataclass from a tree, or say everything that is wrong with the tree.

    Known are bool, int, float, str, Literal, tuple, dict, unions of these, dataclasses, and unions of dataclasses
    told apart by their field `kind`, which is required. An int is a number for a float; an integral float is whole
    for an int; a bool is neither. A dataclass with a class variable `shorthand` may be given by that field alone.
    """
    report = _Report(kind)
    value = report.section(kind, tree, "")
    return Checked(None if report.faults else value, report.leaves, report.faults)


def key_paths(kind: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every key that a dataclass may be given, sections included."""
    for section in sections_of(kind):
        hints = get_type_hints(section)
        for field in dataclasses.fields(section):
            below = f"{path}{field.name}"
            yield below
            hint = hints[field.name]
            yield from key_paths(hint, f"{below}.")
            if get_origin(hint) is tuple:
                yield from key_paths(get_args(hint)[0], f"{below}.0.")


class _Report:
    """What a walk over the tree has found so far."""

    def __init__(self, root: Any) -> None:
        self.faults: list[str] = []
        self.leaves: dict[str, Any] = {}
        self._paths = list(dict.fromkeys(key_paths(root)))

    def fault(self, path: str, text: str) -> Any:
        self.faults.append(f"{path}: {text}")
        return _INVALID

    def section(self, kind: Any, value: object, path: str) -> Any:
        """Check a mapping against a dataclass, or against one of several by its `kind`."""
        given = self._mapping(kind, value, path)
        section = self._chosen(kind, given, path) if given is not None else None
        if given is None or section is None:
            return _INVALID
        prefix, hints = f"{path}." if path else "", get_type_hints(section)
        fields = [field for field in dataclasses.fields(section) if field.init]
        names = [field.name for field in fields]
        for key in given:
            if key not in names:
                self._unknown(prefix, str(key), names)
        values = {field.name: self._field(field, hints[field.name], given, prefix) for field in fields}
        return _INVALID if _INVALID in values.values() else section(**values)

    def _mapping(self, kind: Any, value: object, path: str) -> Mapping[str, Any] | None:
        shorthand = getattr(kind, "shorthand", None)
        if shorthand and isinstance(value, str):
            return {shorthand: value}
        if value is None:  # a heading with nothing below it
            return {}
        if isinstance(value, Mapping):
            return cast("Mapping[str, Any]", value)
        keys = ", ".join(field.name for section in sections_of(kind)[:1] for field in dataclasses.fields(section))
        return self.fault(path, f"{show(value)} is not a section; it takes the keys {keys}") and None

    def _chosen(self, kind: Any, given: Mapping[str, Any], path: str) -> Any:
        kinds = _kinds(kind)
        if not kinds:
            return kind
        allowed, name = ", ".join(kinds), given.get("kind")
        if "kind" not in given:
            self.fault(f"{path}.kind", f"missing; write {'one of ' * (len(kinds) > 1)}{allowed}")
            return next(iter(kinds.values())) if len(kinds) == 1 else None
        if name not in kinds:
            self.fault(f"{path}.kind", f"{show(name)} is none of {allowed}")
            return None
        readable = set(key_paths(kinds[name], f"{path}."))  # no advice to write what another kind would read
        self._paths = [known for known in self._paths if not known.startswith(f"{path}.") or known in readable]
        return kinds[name]

    def _field(self, field: dataclasses.Field[Any], kind: Any, given: Mapping[str, Any], prefix: str) -> Any:
        path = f"{prefix}{field.name}"
        if field.name in given:
            value = self.convert(kind, given[field.name], path)
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = self.convert(kind, {}, path) if sections_of(kind) else field.default_factory()
        elif sections_of(kind):  # so that all that is missing below it is told as well
            value = self.convert(kind, {}, path)
        else:
            value = self.fault(path, f"missing; it has no default: write {describe(kind)}")
        if value is not _INVALID and (violation := setting_of(field).violation(value)):
            value = self.fault(path, violation)
        if value is not _INVALID:
            self.leaves[path] = value
        return value

    def convert(self, kind: Any, value: object, path: str) -> Any:
        """Return a value as the type wants it, or _INVALID after noting why not."""
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
        near = difflib.get_close_matches(str(show(value)).strip("'"), [str(choice) for choice in allowed], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return self.fault(path, f"{show(value)} is none of {', '.join(map(str, allowed))}{hint}")

    def _union(self, kinds: tuple[Any, ...], value: object, path: str) -> Any:
        """Take the alternative that the value's own shape points to."""
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
            return self.fault(path, f"{show(items)} has {len(items)} entries; it takes {len(kinds)}")
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

    def _unknown(self, prefix: str, key: str, siblings: list[str]) -> None:
        names = self._nearest(prefix, key, siblings)
        remedy = f"did you mean {' or '.join(names)}?" if names else f"allowed are {', '.join(siblings)}"
        self.fault(f"{prefix}{key}", f"unknown key; {remedy}")

    def _nearest(self, prefix: str, key: str, siblings: list[str]) -> list[str]:
        """Return the full paths that a key may have been meant to be: misplaced, misspelt, or by another name."""
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


def _kinds(kind: Any) -> dict[str, Any]:
    sections = sections_of(kind)
    hints = [(get_type_hints(section).get("kind"), section) for section in sections]
    return {name: section for hint, section in hints if hint is not None for name in get_args(hint)}


def describe(kind: Any) -> str:
    """Return the values of a type as one would say them: "a whole number", "one of a, b"."""
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
