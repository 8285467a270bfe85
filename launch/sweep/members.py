"""Members of a sweep: one ordinary run per point of its grid or entry of its list."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch.sweep.names import Point, names_of
from launch.sweep.sweep_file import Sweep, Text, split_keys
from train.config import yaml_text
from train.config.batch import check_world_size
from train.config.errors import ConfigError
from train.config.facts.run_layout import CONFIG, is_finished
from train.config.load import load
from train.config.resume import refuse_another_run
from train.config.run import RunConfig


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
        return is_finished(
            self.folder, self.config.steps, keeps_weights=self.config.checkpoint.weights_every is not None
        )

    @property
    def is_begun(self) -> bool:
        """Whether there is a run to resume."""
        return (self.folder / CONFIG).is_file()


def members(sweep: Sweep) -> list[Member]:
    """Load every member of a sweep and check it as a run.

    Raises:
        ConfigError: A member is invalid; each fault is reported once, with the members that have it.
    """
    points = list(_points(sweep))
    names, folder = names_of(points), _folder(sweep)
    loaded: dict[int, Member] = {}  # by position
    by_fault: dict[str, list[str]] = {}
    for number, (name, point) in enumerate(zip(names, points, strict=True)):
        try:
            loaded[number] = _member(sweep, folder, name, point)
        except ConfigError as error:
            for fault in error.faults:
                by_fault.setdefault(fault, []).append(name)
    faults = _repeated(points, loaded)
    faults += [_fault_text(fault, names, len(points)) for fault, names in by_fault.items()]
    if faults:
        raise ConfigError(faults)
    return list(loaded.values())


def representatives(members: Sequence[Member]) -> list[Member]:
    """Return the first member of each kind for `python -m train --check`: data, tokenizer and starting weights."""
    firsts: dict[str, Member] = {}
    for member in members:
        task = member.config.task
        data = replace(task.data, seed=0)
        other = [getattr(task, "attention", None), getattr(task.model, "vocab_size", None)]
        firsts.setdefault(repr([task.kind, data, *other, member.config.checkpoint.start_from]), member)
    return list(firsts.values())


def _points(sweep: Sweep) -> Iterator[Point]:
    grid = [[(keys, value) for value in values] for keys, values in sweep.grid.items()]
    for run in sweep.runs or ({},):
        listed = {key: value for key, value in run.items() if key != "name"}
        label = run.get("name")
        for chosen in itertools.product(*grid):
            settings = listed | {key: value for keys, value in chosen for key in split_keys(keys)}
            in_name = ({} if label else listed) | {split_keys(keys)[0]: value for keys, value in chosen}
            yield Point(None if label is None else str(label), settings, in_name)


def _repeated(points: Sequence[Point], loaded: Mapping[int, Member]) -> list[str]:
    """Return the members that are the same run, however their values are written."""
    first: dict[str, int] = {}
    faults: list[str] = []
    for number, member in loaded.items():
        run = repr(replace(member.config, name=""))
        if run in first:
            words = " ".join(_words(points[number].settings)) or "nothing is varied"
            faults.append(f"members {first[run] + 1} and {number + 1} are the same run ({words}); keep only one")
        first.setdefault(run, number)
    return faults


def _folder(sweep: Sweep) -> str:
    """Return the folder of the members: one named after the sweep, below the configuration's output_dir."""
    text = yaml_text.read(sweep.config, _words(sweep.set))
    if text.tree is None:
        raise ConfigError(text.faults)
    output_dir = text.tree.get("output_dir", "runs")
    if not isinstance(output_dir, str):
        raise ConfigError([f"output_dir: {yaml_text.show(output_dir)} is not text"])
    return str(Path(output_dir) / sweep.name)


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
    try:
        refuse_another_run(member.folder, member.config)
    except ConfigError as error:
        raise ConfigError([f"{'; '.join(error.faults)}; or give the sweep another name"]) from None


def _fault_text(fault: str, names: Sequence[str], num_members: int) -> str:
    if len(names) == num_members:
        return fault
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{fault} (in {names[0]}{more})"


def _words(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_yaml(value)}" for key, value in settings.items()]


def _yaml(value: object) -> str:
    """Return a value as typed on a command line; JSON is valid YAML."""
    if isinstance(value, Text):
        return value
    words = ("null", "true", "false")
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z./][\w./-]*", value) and value.lower() not in words:
        return value
    return json.dumps(value, ensure_ascii=False)
