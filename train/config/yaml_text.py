"""Configuration text: YAML and `a.b=c` overrides, parsed into one tree of plain values, and written back.

Numbers follow YAML 1.2, not PyYAML's 1.1: `3e-4` is a number, `30_000_000` too, and `no`, `1:30` or `2026-01-01` are
text. Faults are collected rather than raised, so that they can be reported together with those of the schema.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import yaml

from train.config.yaml_loader import parse, resolvers

MOST_BYTES = 1_000_000  # of a file


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
    document = overridden({} if tree is None else tree, overrides)
    return Document(None if tree is None else document.tree, [*faults, *document.faults])


def overridden(tree: dict[str, Any], overrides: Sequence[str]) -> Document:
    """Apply `a.b=c` overrides to a tree in order, as `read` does."""
    return Document(tree, [fault for override in overrides if (fault := _override(tree, override))])


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Return a tree as YAML that `read` parses to the same values, with short lists on one line."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def show(value: object) -> str:
    """Return a value as YAML, on one line and shortened: to 80 characters, or text alone to 200."""
    if isinstance(value, str):
        return shortened(repr(value), 200)
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > 80:
            break
    return shortened(text, 80)


def shortened(text: str, length: int) -> str:
    """Return text cut to a length, with dots where something is missing."""
    return text if len(text) <= length else text[: length - 3] + "..."


def _pieces(value: object) -> Iterator[str]:
    """Yield a value as YAML in pieces, as a large one is shortened anyway."""
    if isinstance(value, Mapping):
        mapping = cast("Mapping[str, object]", value)
        for number, (key, item) in enumerate(mapping.items()):
            yield "{" if number == 0 else ", "
            yield from _pieces(key)
            yield ": "
            yield from _pieces(item)
        yield "}" if mapping else "{}"
    elif isinstance(value, list | tuple):
        items = cast("Sequence[object]", value)
        for number, item in enumerate(items):
            yield "[" if number == 0 else ", "
            yield from _pieces(item)
        yield "]" if items else "[]"
    else:
        scalar = shortened(value, 100) if isinstance(value, str) else value
        text = yaml.dump(scalar, Dumper=_Dumper, default_flow_style=True, width=10_000).strip()
        yield text.removesuffix("...").strip()


def _read_file(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    if os.path.isdir(path):  # unlike Path.is_dir, False for a path that is too long
        files = ", ".join(sorted(str(file) for file in path.glob("*.y*ml"))) or "it contains no YAML file"
        return None, [f"{path}: is a folder; pass one configuration file: {files}"]
    try:
        text = _read_text(path)
    except FileNotFoundError:
        return None, [f"{path}: no such file{_nearest_file(path)}"]
    except OSError as error:
        return None, [f"{shortened(str(path), 200)}: cannot be read ({error.strerror})"]
    except ValueError as error:
        return None, [f"{path}: {error}"]
    tree, faults = parse(text)
    faults = [f"{path}:{fault}" for fault in faults]
    if isinstance(tree, dict):
        return cast("dict[str, Any]", tree), faults
    if not faults:
        problem = "is empty" if tree is None else f"contains {show(tree)} instead of `key: value` lines"
        faults = [f"{path}: {problem}; see configs/language_model/quickstart.yaml for an example"]
    return None, faults


def _read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a text file of at most MOST_BYTES; the message follows the path.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe may never end
        raise ValueError("is not a regular file; pass a YAML file")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"is larger than {MOST_BYTES:,} bytes, which no configuration needs; pass a YAML file")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text; pass a YAML file") from None


def _nearest_file(path: Path) -> str:
    files = {file.name: file for file in path.parent.glob("*.y*ml")}
    near = difflib.get_close_matches(path.name, files, n=1, cutoff=0.5)
    return f"; did you mean {files[near[0]]}?" if near else ""


def _override(tree: dict[str, Any], override: str) -> str | None:
    """Apply one `a.b=c` to the tree, or return what is wrong with it."""
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", path):
        return _not_an_override(override)
    value, faults = parse(text)
    if faults:
        fault = faults[0].partition(": ")[2]
        advice = f"; quote the override in the shell: '{path}=...'" if fault.startswith("not valid YAML") else ""
        return f"{shortened(repr(override), 80)}: {fault}{advice}"
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
    remedy = (
        f"write {shortened(match[1], 80)}={shortened(match[2], 80)}"
        if match
        else "write key=value, as in optim.lr=3e-4"
    )
    return f"{shortened(repr(override), 80)}: not an override; {remedy}"


def _descend(node: dict[str, Any] | list[Any], key: str) -> Any:
    """Return the child under a key; a missing section is created."""
    if isinstance(node, list):
        index = _index(key, node)
        return None if index is None else node[index]
    if node.get(key) is None:
        node[key] = {}
    return node[key]


def _put(node: dict[str, Any] | list[Any], key: str, value: object, path: str) -> str | None:
    if isinstance(node, dict):
        node[key] = _merged(node.get(key), value)
    elif (index := _index(key, node)) is not None:
        node[index] = _merged(node[index], value)
    else:
        return (
            f"{path}: the list has {len(node)} entries; use an index from 0 to {len(node) - 1}, or write the whole list"
        )
    return None


def _index(key: str, items: list[Any]) -> int | None:
    return int(key) if re.fullmatch("[0-9]{1,9}", key) and int(key) < len(items) else None


def _merged(old: object, new: object) -> object:
    if isinstance(old, dict) and isinstance(new, dict):
        below, above = cast("dict[str, object]", old), cast("dict[str, object]", new)
        return below | {key: _merged(below.get(key), value) for key, value in above.items()}
    return new


def _represent_list(dumper: yaml.SafeDumper, items: Sequence[Any]) -> yaml.Node:
    plain = not any(isinstance(item, dict | list | tuple) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=plain or None)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text that YAML 1.1 or 1.2 would parse as another type."""

    yaml_implicit_resolvers = resolvers(yaml.SafeDumper.yaml_implicit_resolvers)
    yaml_representers: ClassVar[dict[Any, Any]] = {
        **yaml.SafeDumper.yaml_representers,
        list: _represent_list,
        tuple: _represent_list,
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True
