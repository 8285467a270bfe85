"""YAML text read as plain values, with numbers as in YAML 1.2 and with bounded time and memory.

A document is composed into PyYAML's nodes, which share what an alias repeats. Its size with every alias expanded is
counted on them, and values are built only once it is known to be small. Tags beyond those of JSON are refused, so none
of PyYAML's constructors runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import yaml

MOST_NODES = 100_000  # values and keys of a document, counting those of an alias each time: some seconds to read
MOST_DEPTH = 40  # sections and lists inside one another
_MOST_DIGITS = 100  # of a whole number; Python itself converts at most 4300
_MOST_EXPONENT = 30  # of a whole number, as in 1e9: 1e999999999 would exhaust memory

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:[eE]\+?[0-9]+)?|0x[0-9a-fA-F]+)$")  # 1e9 is whole: it has no point
_FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE]-[0-9]+|\.inf|\.nan)$"
)
_NULL, _BOOL = re.compile(r"(?:~|null|Null|NULL|)$"), re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # neither a path nor a terminal takes them
_RESOLVERS = (  # tag, pattern, and possible first characters
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
    ("merge", re.compile(r"<<$"), ["<"]),
)


class Parsed(NamedTuple):
    """The value of a document, None if it cannot be built; each fault starts with its line, as in `12: ...`."""

    value: object
    faults: list[str]


def parse(text: str) -> Parsed:
    """Read a document."""
    try:
        root = _Composer(text).get_single_node()
        if root is None:
            return Parsed(None, [])
        checked = _Checked(root)
        return Parsed(None if checked.faults else _value(root), [*checked.faults, *checked.repeated])
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = " ".join(part for part in (error.context, error.problem) if part)
        return Parsed(None, [f"{mark.line + 1 if mark else 1}: not valid YAML: {why}"])
    except yaml.reader.ReaderError as error:
        line, character = text.count("\n", 0, error.position) + 1, ord(text[error.position])
        return Parsed(None, [f"{line}: not valid YAML: the character U+{character:04X} is not allowed"])
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter two: an escape or a version out of range
        return Parsed(None, [f"1: not valid YAML: {' '.join(str(error).split())}"])


def resolvers(inherited: Mapping[str, Any]) -> dict[str, Any]:
    """Return PyYAML's table of implicit tags by first character, with ours after the inherited ones."""
    table = {first: list(entries) for first, entries in inherited.items()}
    for name, pattern, firsts in _RESOLVERS:
        for first in firsts:
            table.setdefault(first, []).append((_TAG + name, pattern))
    return table


class _Composer(yaml.SafeLoader):
    """SafeLoader of which only the composing of nodes is used, with limits to their number and depth."""

    yaml_implicit_resolvers = resolvers({})

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        mark = cast("Any", self).peek_event().start_mark
        if self._nodes > MOST_NODES:
            raise _too_large(mark)
        if self._depth > MOST_DEPTH:
            problem = f"more than {MOST_DEPTH} sections and lists inside one another"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _too_large(mark: Any) -> yaml.MarkedYAMLError:
    problem = f"more than {MOST_NODES:,} values, counting those of an alias each time"
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


# ---------------------------------------------------------------------------------------------------------- the check


class _Checked:
    """Nodes that have been checked, each once, however often aliases repeat it.

    Args:
        root: The document.

    Raises:
        yaml.MarkedYAMLError: It is too large with its aliases expanded, or an alias contains itself.
    """

    def __init__(self, root: yaml.Node) -> None:
        self.faults: list[str] = []
        self.repeated: list[str] = []  # keys given twice
        self._sizes: dict[int, int | None] = {}  # by id, with aliases expanded; None while a node is being checked
        self._size(root)

    def _size(self, node: yaml.Node) -> int:
        if id(node) not in self._sizes:
            self._sizes[id(node)] = None
            self.faults += [f"{node.start_mark.line + 1}: {fault}" for fault in _value_faults(node)]
            if isinstance(node, yaml.MappingNode):
                self.faults += _key_faults(node)
                self.repeated += _repeated_keys(node)
            size = 1 + sum(self._size(child) for child in _children(node))
            if size > MOST_NODES:
                raise _too_large(node.start_mark)
            self._sizes[id(node)] = size
        known = self._sizes[id(node)]
        if known is None:
            raise yaml.MarkedYAMLError(problem="an alias contains itself", problem_mark=node.start_mark)
        return known


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _value_faults(node: yaml.Node) -> Iterator[str]:
    if isinstance(node, yaml.ScalarNode):
        try:
            _scalar(node)
        except ValueError as error:
            yield str(error)
    elif node.tag != _TAG + ("map" if isinstance(node, yaml.MappingNode) else "seq"):
        yield _unsupported(node.tag)


def _key_faults(mapping: yaml.MappingNode) -> Iterator[str]:
    for key, value in mapping.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            yield f"{line}: a list or a section is used as a key; keys must be text"
        elif key.tag == _TAG + "merge":
            if not all(isinstance(source, yaml.MappingNode) for source in _merged(value)):
                yield f"{line}: << merges sections only; write <<: *NAME, where &NAME marks a section"
        elif key.tag != _TAG + "str":
            yield f"{line}: keys must be text, and {_short(key.value) or 'null'} is not; put it in quotes"


def _repeated_keys(mapping: yaml.MappingNode) -> Iterator[str]:
    lines: dict[str, int] = {}
    for key, _ in mapping.value:
        if isinstance(key, yaml.ScalarNode) and key.tag == _TAG + "str":
            line = key.start_mark.line + 1
            if key.value in lines:
                yield f"{line}: {_short(key.value)} appears twice, first on line {lines[key.value]}; keep one"
            lines.setdefault(key.value, line)


def _unsupported(tag: str) -> str:
    return f"the tag {_short(tag.replace(_TAG, '!!'))} is not supported here; write a plain value"


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


# --------------------------------------------------------------------------------------------------------- the values


def _value(node: yaml.Node) -> Any:
    """Build the value of a checked node; an alias becomes a copy, so that an override changes only one of them."""
    if isinstance(node, yaml.MappingNode):
        return _mapping(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(child) for child in node.value]
    return _scalar(node)


def _mapping(node: yaml.MappingNode) -> dict[str, Any]:
    """Build a section; its own keys precede those that `<<` merges, and earlier sources precede later ones."""
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in node.value:
        if key.tag == _TAG + "merge":
            for source in _merged(value):
                merged = _mapping(source) | merged
        else:
            own[key.value] = _value(value)
    return merged | own


def _merged(node: yaml.Node) -> list[Any]:
    return node.value if isinstance(node, yaml.SequenceNode) else [node]


def _scalar(node: yaml.Node) -> Any:
    """Return a scalar's value.

    Raises:
        ValueError: Its text does not fit its tag, or there is no such tag here.
    """
    read = _READERS.get(node.tag.removeprefix(_TAG))
    if read is None:
        raise ValueError(_unsupported(node.tag))
    return read(node.value)


def _null(text: str) -> None:
    if not _NULL.match(text):
        raise ValueError(f"{_short(text)} is not null")


def _bool(text: str) -> bool:
    if not _BOOL.match(text):
        raise ValueError(f"{_short(text)} is not true or false")
    return text.lower() == "true"


def _int(text: str) -> int:
    if not _INT.match(text):
        raise ValueError(f"{_short(text)} is not a whole number")
    digits = text.replace("_", "").lower()
    if "x" in digits:
        mantissa, exponent, base = digits, "0", 16
    else:
        (mantissa, _, exponent), base = digits.partition("e"), 10
    if len(mantissa) > _MOST_DIGITS or len(exponent) > _MOST_DIGITS or int(exponent or 0) > _MOST_EXPONENT:
        raise ValueError(f"{_short(text)} is too large")
    return int(mantissa, base) * 10 ** int(exponent or 0)


def _float(text: str) -> float:
    if not (_FLOAT.match(text) or _INT.match(text)):
        raise ValueError(f"{_short(text)} is not a number")
    digits = text.replace("_", "").lower()
    if "x" in digits:
        return float(_int(text))
    number = float(digits.replace(".inf", "inf").replace(".nan", "nan"))
    if math.isinf(number) and "inf" not in digits:
        raise ValueError(f"{_short(text)} is too large")
    if number == 0 and re.search("[1-9]", digits.partition("e")[0]):
        raise ValueError(f"{_short(text)} is too small, as it would be read as 0; write 0 if that is meant")
    return number


def _text(text: str) -> str:
    if character := _NOT_TEXT.search(text):
        raise ValueError(f"text contains the character U+{ord(character[0]):04X}; remove it")
    return text


_READERS: dict[str, Callable[[str], Any]] = {
    "null": _null,
    "bool": _bool,
    "int": _int,
    "float": _float,
    "str": _text,
    "merge": _text,
}
