"""Comparison of a configuration with that of the run already in its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from train.config import yaml_text
from train.config.errors import ConfigError
from train.config.facts import run_layout
from train.config.run import RunConfig
from train.config.schema import check
from train.config.setting import AtResume, nearest, settings_in

_IN_EVERY_RUN = {"name", "steps", "task", "optim"}  # a file that lacks one is cut off


def differences(old: RunConfig | Mapping[str, Any], new: RunConfig) -> list[str]:
    """Return `path: old -> new` for every key that differs and must not change on resume.

    Where data lie is no such key: the fingerprint of the data decides, once they are read (`moved_data`).

    Args:
        old: The run as started, or the contents of its config.yaml; missing keys take their defaults.
        new: The run to be resumed.
    """
    return [change.text for change in _changes(old, new) if change.may not in ("free", "by_fingerprint")]


def moved_data(folder: Path, config: RunConfig) -> list[str]:
    """Return `path: old -> new` for every place of data that differs from that of the run in a folder."""
    path = folder / run_layout.CONFIG
    tree = yaml_text.read(path).tree if path.exists() else None
    return [change.text for change in _changes(tree, config) if change.may == "by_fingerprint"] if tree else []


def refuse_another_run(folder: Path, config: RunConfig) -> None:
    """Refuse to use the folder of a different run.

    Raises:
        ConfigError: With every setting that differs and must not, or if its configuration cannot be read.
    """
    path = folder / run_layout.CONFIG
    if not path.exists():
        return
    existing = yaml_text.read(path)
    if existing.tree is None or existing.faults or not existing.tree.keys() >= _IN_EVERY_RUN:
        advice = f"{path} is damaged: restore it, or delete it to resume with the settings that are given now"
        raise ConfigError([advice, *existing.faults])
    faults = differences(existing.tree, config)
    if faults:
        advice = (
            f"{folder} belongs to a different run: use its settings to resume it, or choose another name (name=...)"
        )
        raise ConfigError([advice, *faults])


class _Change(NamedTuple):
    """A setting that differs: in words, and whether it may change on resume."""

    text: str
    may: AtResume | None


def _changes(old: RunConfig | Mapping[str, Any], new: RunConfig) -> Iterator[_Change]:
    tree = asdict(old) if isinstance(old, RunConfig) else old
    before = settings_by_path(tree) | settings_by_path(check(RunConfig, tree).leaves)
    after = settings_by_path(asdict(new))
    at_resume: dict[str, AtResume | None] = {path: setting.resume for path, setting in settings_in(new)}
    for path in dict.fromkeys([*after, *before]):
        if before.get(path) == after.get(path):
            continue
        may: AtResume | None = nearest(path, at_resume)
        if may == "by_fingerprint" and not (path in before and path in after):
            may = "fixed"  # another number of sources is another set of data
        yield _Change(f"{path}: {_format(before, path)} -> {_format(after, path)}", may)


def settings_by_path(tree: Any, path: str = "") -> dict[str, Any]:
    """Flatten sections and lists of sections to values by path."""
    if is_dataclass(tree) and not isinstance(tree, type):
        tree = asdict(tree)
    if isinstance(tree, Mapping):
        below = cast("Mapping[str, Any]", tree).items()
    elif isinstance(tree, list | tuple):
        items = cast("Sequence[Any]", tree)
        if items and all(isinstance(item, str | int | float) for item in items):
            return {path: list(items)}
        below = enumerate(items)
    else:
        return {path: tree}
    leaves: dict[str, Any] = {}
    for key, value in below:
        leaves |= settings_by_path(value, f"{path}.{key}" if path else str(key))
    return leaves


def _format(leaves: Mapping[str, Any], path: str) -> str:
    return yaml_text.show(leaves[path]) if path in leaves else "(not set)"
