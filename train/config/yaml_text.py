"""Configuration text: YAML and `a.b=c` overrides, parsed into one tree of plain values, and written back.

Numbers follow YAML 1.2, not PyYAML's 1.1: `3e-4` is a number, `30_000_000` too, and `no`, `1:30` or `2026-01-01` are
text. Faults are collected rather than raised, so that they can be reported together with those of the schema.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import yaml

_INT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:[eE]\+?[0-9]+)?|0x[0-9a-fA-F]+)$")  # 1e9 is whole: it has no point
_FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE]-[0-9]+|\.inf|\.nan)$"
)
_RESOLVERS = (  # tag, pattern, and possible first characters
    ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", _INT, list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789.")),
    ("tag:yaml.org,2002:merge", re.compile(r"<<$"), ["<"]),
)


class Document(NamedTuple):
    """The parsed text; no tree if there is nothing to check."""

    tree: dict[str, Any] | None
    faults: list[str]


def read(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """Read a YAML file, then apply `a.b=c` overrides in order.

    The value of an override is YAML. A mapping is merged into an existing mapping; any other value replaces. A number
    in the path is a list index, from 0.
    """
    tree, faults = _read_file(Path(path))
    for override in overrides:
        if fault := _override({} if tree is None else tree, override):
            faults.append(fault)
    return Document(tree, faults)


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Return a tree as YAML that `read` parses to the same values, with short lists on one line."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def show(value: object) -> str:
    """Return a value as YAML, on one line and shortened to 80 characters."""
    if isinstance(value, str):
        return repr(value)
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=10_000).strip()
    text = text.removesuffix("...").strip()
    return text if len(text) <= 80 else text[:77] + "..."


def _read_file(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    if path.is_dir():
        files = ", ".join(sorted(str(file) for file in path.glob("*.y*ml"))) or "it contains no YAML file"
        return None, [f"{path}: is a folder; pass one configuration file: {files}"]
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None, [f"{path}: no such file{_nearest_file(path)}"]
    except UnicodeDecodeError:
        return None, [f"{path}: is not UTF-8 text; pass a YAML file"]
    except OSError as error:
        return None, [f"{path}: cannot be read ({error.strerror})"]
    tree, faults = _parse(text)
    faults = [f"{path}:{fault}" for fault in faults]
    if isinstance(tree, dict):
        return cast("dict[str, Any]", tree), faults
    if not faults:
        problem = "is empty" if tree is None else f"contains {show(tree)} instead of `key: value` lines"
        faults = [f"{path}: {problem}; see configs/language_model/quickstart.yaml for an example"]
    return None, faults


def _nearest_file(path: Path) -> str:
    files = {file.name: file for file in path.parent.glob("*.y*ml")}
    near = difflib.get_close_matches(path.name, files, n=1, cutoff=0.5)
    return f"; did you mean {files[near[0]]}?" if near else ""


def _parse(text: str) -> tuple[object, list[str]]:
    """Parse YAML; each fault starts with its line number, as in `12: ...`."""
    loader = _Loader(text)
    try:
        return loader.get_single_data(), loader.faults
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = " ".join(part for part in (error.context, error.problem) if part)
        return None, [f"{mark.line + 1 if mark else 1}: not valid YAML: {why}"]
    except yaml.YAMLError as error:
        return None, [f"1: not valid YAML: {' '.join(str(error).split())}"]


def _override(tree: dict[str, Any], override: str) -> str | None:
    """Apply one `a.b=c` to the tree, or return what is wrong with it."""
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", path):
        return _not_an_override(override)
    value, faults = _parse(text)
    if faults:
        return (
            f"{override!r}: the value is {faults[0].partition(': ')[2]}; quote the override in the shell: '{path}=...'"
        )
    *parents, last = path.split(".")
    node: dict[str, Any] | list[Any] = tree
    for depth, key in enumerate(parents):
        child = _descend(node, key)
        if not isinstance(child, dict | list):
            above = ".".join(parents[: depth + 1])
            instead = f"; write the whole entry, {above}={{..., {last}: {text}}}" if isinstance(node, list) else ""
            return f"{path}: {above} is {show(child)}, which has no keys{instead}"
        node = cast("dict[str, Any] | list[Any]", child)
    return _put(node, last, value, path)


def _not_an_override(override: str) -> str:
    match = re.fullmatch(r"-*([\w.]+)\s*[=:\s]\s*(.*)", override)
    remedy = f"write {match[1]}={match[2]}" if match else "write key=value, as in optim.lr=3e-4"
    return f"{override!r}: not an override; {remedy}"


def _descend(node: dict[str, Any] | list[Any], key: str) -> Any:
    """Return the child under a key; a missing section is created."""
    if isinstance(node, list):
        return node[int(key)] if key.isdecimal() and int(key) < len(node) else None
    if node.get(key) is None:
        node[key] = {}
    return node[key]


def _put(node: dict[str, Any] | list[Any], key: str, value: object, path: str) -> str | None:
    if isinstance(node, dict):
        node[key] = _merged(node.get(key), value)
    elif key.isdecimal() and int(key) < len(node):
        node[int(key)] = _merged(node[int(key)], value)
    else:
        return (
            f"{path}: the list has {len(node)} entries; use an index from 0 to {len(node) - 1}, or write the whole list"
        )
    return None


def _merged(old: object, new: object) -> object:
    if isinstance(old, dict) and isinstance(new, dict):
        below, above = cast("dict[str, object]", old), cast("dict[str, object]", new)
        return below | {key: _merged(below.get(key), value) for key, value in above.items()}
    return new


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    if "x" in text:
        return int(text, 16)
    digits, _, exponent = text.partition("e")
    if int(exponent or 0) > 30:  # 1e999999999 would exhaust memory
        raise yaml.MarkedYAMLError(problem=f"{text} is too large", problem_mark=node.start_mark)
    return int(digits) * 10 ** int(exponent or 0)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _represent_list(dumper: yaml.SafeDumper, items: Sequence[Any]) -> yaml.Node:
    plain = not any(isinstance(item, dict | list | tuple) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=plain or None)


def _resolvers(inherited: Mapping[str, Any]) -> dict[str, Any]:
    """Return PyYAML's table of implicit tags by first character, with ours after the inherited ones."""
    table = {first: list(entries) for first, entries in inherited.items()}
    for tag, pattern, firsts in _RESOLVERS:
        for first in firsts:
            table.setdefault(first, []).append((tag, pattern))
    return table


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 numbers that reports duplicate keys instead of keeping the last."""

    yaml_implicit_resolvers = _resolvers({})
    yaml_constructors = {  # noqa: RUF012 (PyYAML declares it as an instance attribute)
        **yaml.SafeLoader.yaml_constructors,
        "tag:yaml.org,2002:int": _construct_int,
        "tag:yaml.org,2002:float": _construct_float,
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.faults: list[str] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and name != "<<":
                self.faults.append(f"{line}: {name} appears twice, first on line {lines[name]}; keep one")
            lines.setdefault(name, line)
        return node


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text that YAML 1.1 or 1.2 would parse as another type."""

    yaml_implicit_resolvers = _resolvers(yaml.SafeDumper.yaml_implicit_resolvers)
    yaml_representers: ClassVar[dict[Any, Any]] = {
        **yaml.SafeDumper.yaml_representers,
        list: _represent_list,
        tuple: _represent_list,
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True
