"""Sweep file and its members: one ordinary run per point of a grid or entry of a list.

name: placements                          the members' run folders are in output_dir/placements/
config: configs/language_model/quickstart.yaml
set: {steps: 200}                         for all members
grid:                                     every combination
  task.model.norm_placement: [pre, post, peri]
  seed, task.data.seed: [0, 1, 2]         keys that share one value
runs:                                     each entry is combined with the grid; `name` names the folder
  - {name: wide, task.model.hidden_size: 256}
parallel: 4                               concurrent members; null: one per GPU, or per two cores
ranks: 1                                  ranks per member
report: true                              write a report on all members at the end
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

# Same readers as for a run's configuration, so that 3e-4 is a number in a sweep file too.
from train.config import yaml_text
from train.config.batch import check_world_size
from train.config.errors import ConfigError
from train.config.facts.run_layout import CONFIG, is_finished
from train.config.load import load
from train.config.resume import differences
from train.config.run import RunConfig
from train.config.schema import check

_SHORT = {"norm_placement": "placement"}
_LONGEST_VALUE, _LONGEST_NAME = 32, 100
_OURS = ("name", "output_dir")  # a sweep names its members itself, and output_dir may only be set for all of them


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Contents of a sweep file."""

    name: str
    config: str  # configuration file that all members start from
    set: dict[str, Any] = field(default_factory=dict[str, Any])
    grid: dict[str, Any] = field(default_factory=dict[str, Any])
    runs: tuple[dict[str, Any], ...] = ()
    parallel: int | None = None
    ranks: int = 1
    report: bool = True


class Point(NamedTuple):
    """The settings of one member, by key."""

    label: str | None  # name of its entry in `runs`
    settings: dict[str, Any]
    in_name: dict[str, Any]  # the settings that appear in the folder's name


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    config: RunConfig
    arguments: tuple[str, ...]  # arguments for `python -m train` and `python -m launch local`

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.config.name

    @property
    def folder(self) -> Path:
        """Run folder."""
        return self.config.folder

    @property
    def is_finished(self) -> bool:
        """Whether the last step is saved and evaluated."""
        return is_finished(self.folder, self.config.steps)

    @property
    def is_begun(self) -> bool:
        """Whether there is a run to resume."""
        return (self.folder / CONFIG).is_file()


def read_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file.

    Args:
        path: The YAML file.
        overrides: `key=value` words for all members; they take precedence over `set`.

    Raises:
        ConfigError: The file is invalid; all faults are reported at once.
    """
    text = yaml_text.read(path)
    if text.tree is None:
        raise ConfigError(text.faults)
    sweep, _, faults = check(Sweep, text.tree)
    if sweep is not None:
        sweep = replace(sweep, set=sweep.set | dict(_key_and_text(word) for word in overrides))
        faults = list(_faults(sweep))
    if sweep is None or faults or text.faults:
        raise ConfigError([*text.faults, *(f"{path}: {fault}" for fault in faults)])
    return sweep


class _Text(str):
    """A value as it was typed, already YAML."""


def _key_and_text(word: str) -> tuple[str, _Text]:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ConfigError([f"{word!r}: not an override; write key=value, e.g. steps=100"])
    return key, _Text(text)


def _faults(sweep: Sweep) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", sweep.name):
        yield f"name: {sweep.name!r} is not a valid folder name; use letters, digits, '.', '_' and '-' only"
    if not sweep.grid and not sweep.runs:
        yield "grid: missing, and there are no runs either; write e.g. grid: {optim.lr: [1e-3, 3e-3]}"
    for key, count in (("parallel", sweep.parallel), ("ranks", sweep.ranks)):
        if count is not None and count < 1:
            yield f"{key}: {count} is too small; write 1 or more"
    for keys, values in sweep.grid.items():
        if not isinstance(values, list) or not values:
            value = yaml_text.show(cast("object", values))
            yield f"grid.{keys}: {value} is not a list of values; write [{value}, ...]"
    varied = [key for keys in sweep.grid for key in _split(keys)]
    varied += {key: None for run in sweep.runs for key in run if key != "name"}
    for key in dict.fromkeys(varied):
        if varied.count(key) > 1:
            yield f"{key}: is varied twice; give it once, in grid or in runs"
        if key in sweep.set:
            yield f"{key}: is both in set and varied; keep only one of them"
        if key in _OURS:
            yield f"{key}: the sweep chooses its members' folders; leave it out" + " (or put it in set)" * (
                key != "name"
            )
    if "name" in sweep.set:
        yield "set.name: the sweep names its members itself; leave it out"


def members(sweep: Sweep) -> list[Member]:
    """Load every member of a sweep and check it as a run.

    Raises:
        ConfigError: A member is invalid; each fault is reported once, with the members that have it.
    """
    points = list(_points(sweep))
    faults = _same_settings(points)
    names, folder = _names(points), _folder(sweep)
    loaded: list[Member] = []
    by_fault: dict[str, list[str]] = {}
    for name, point in zip(names, points, strict=True):
        try:
            loaded.append(_member(sweep, folder, name, point))
        except ConfigError as error:
            for fault in error.faults:
                by_fault.setdefault(fault, []).append(name)
    faults += [_fault_text(fault, names, len(points)) for fault, names in by_fault.items()]
    if faults:
        raise ConfigError(faults)
    return loaded


def _points(sweep: Sweep) -> Iterator[Point]:
    grid = [[(keys, value) for value in values] for keys, values in sweep.grid.items()]
    for run in sweep.runs or ({},):
        listed = {key: value for key, value in run.items() if key != "name"}
        label = run.get("name")
        for chosen in itertools.product(*grid):
            settings = listed | {key: value for keys, value in chosen for key in _split(keys)}
            in_name = ({} if label else listed) | {_split(keys)[0]: value for keys, value in chosen}
            yield Point(None if label is None else str(label), settings, in_name)


def _split(keys: str) -> list[str]:
    return [key.strip() for key in keys.split(",")]


def _same_settings(points: Sequence[Point]) -> list[str]:
    first: dict[str, int] = {}
    faults: list[str] = []
    for number, point in enumerate(points, 1):
        text = json.dumps(point.settings, sort_keys=True, default=str)
        if text in first:
            words = " ".join(_words(point.settings)) or "nothing is varied"
            faults.append(f"members {first[text]} and {number} are the same run ({words}); keep only one")
        first.setdefault(text, number)
    return faults


def _folder(sweep: Sweep) -> str:
    """Return the folder of the members: one named after the sweep, below the configuration's output_dir."""
    text = yaml_text.read(sweep.config, _words(sweep.set))
    if text.tree is None:
        raise ConfigError(text.faults)
    return str(Path(str(text.tree.get("output_dir", "runs"))) / sweep.name)


def _member(sweep: Sweep, folder: str, name: str, point: Point) -> Member:
    settings = sweep.set | point.settings
    overrides = tuple(_words(settings | {"name": name, "output_dir": folder}))
    member = Member(load(sweep.config, overrides), (sweep.config, *overrides))
    check_world_size(member.config, sweep.ranks)
    if member.is_begun:
        _refuse_another(member)
    return member


def _refuse_another(member: Member) -> None:
    """Refuse a folder that holds another run up front, as train would later."""
    existing = yaml_text.read(member.folder / CONFIG).tree
    changed = differences(existing or {}, member.config)
    if changed:
        raise ConfigError([f"{member.folder} holds another run ({'; '.join(changed)}); give the sweep another name"])


def _fault_text(fault: str, names: Sequence[str], num_members: int) -> str:
    if len(names) == num_members:
        return fault
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{fault} (in {names[0]}{more})"


def _words(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_yaml(value)}" for key, value in settings.items()]


def _yaml(value: object) -> str:
    """Return a value as typed on a command line; JSON is valid YAML."""
    if isinstance(value, _Text):
        return value
    words = ("null", "true", "false")
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z./][\w./-]*", value) and value.lower() not in words:
        return value
    return json.dumps(value, ensure_ascii=False)


# ------------------------------------------------------------------------------------------------------------- names


def _names(points: Sequence[Point]) -> list[str]:
    """Return a folder name for each point, built from short keys and values of the settings that differ."""
    keys = _short_keys(list(dict.fromkeys(key for point in points for key in point.in_name)))
    names = ["_".join(_name_parts(point, keys)) or "only" for point in points]
    names = [_fitted(name, point) for name, point in zip(names, points, strict=True)]
    repeated = {name for name in names if names.count(name) > 1}
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
    return f"{name[: _LONGEST_NAME - 7]}-{_hash(point.settings)}"


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:6]
