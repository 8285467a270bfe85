"""Members of a sweep: a run, or the labels of a run, per point of its grid and entry of its list."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch.sweep import chain, starting_point
from launch.sweep.names import Point, names_of
from launch.sweep.sweep_file import Sweep, Text, split_keys
from train.config import yaml_text
from train.config.batch import check_world_size
from train.config.commands.pseudo_labels import PseudoLabelConfig
from train.config.errors import ConfigError
from train.config.facts.manifest import step_name
from train.config.facts.run_layout import CONFIG, LABELS, LABELS_RECORD, is_finished, read_json
from train.config.load import load, load_settings
from train.config.resume import refuse_another_run, settings_by_path
from train.config.run import RunConfig
from train.config.tasks.box_segmentation import BoxClassificationConfig


@dataclass(frozen=True)
class RunMember:
    """A run of a sweep."""

    config: RunConfig
    arguments: tuple[str, ...]  # arguments for `python -m train` and `python -m launch local`
    after: Member | None = None  # starts once this one is finished

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.config.name

    @property
    def folder(self) -> Path:
        """Run folder."""
        return self.config.folder

    @property
    def output(self) -> Path:
        """What {after} stands for in members after this one: the run folder."""
        return self.folder

    @property
    def log(self) -> Path:
        """Output of the member's command."""
        return self.folder / "logs" / "sweep.log"

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


@dataclass(frozen=True)
class LabelsMember:
    """The pseudo labels of a run of a sweep, made with `python -m train.pseudo_labels`."""

    name: str
    after: RunMember  # the run whose model makes them
    settings: Mapping[str, Any]

    @property
    def arguments(self) -> tuple[str, ...]:
        """Arguments for `python -m train.pseudo_labels`."""
        return (str(self.folder), *_words(self.settings))

    @property
    def folder(self) -> Path:
        """Run folder that they are written to."""
        return self.after.folder

    @property
    def output(self) -> Path:
        """What {after} stands for in members after this one: the folder of the labels."""
        return self.folder / LABELS / step_name(self.after.config.steps)

    @property
    def log(self) -> Path:
        """Output of the member's command."""
        return self.folder / "logs" / f"{self.name}.log"

    @property
    def is_finished(self) -> bool:
        """Whether all labels are written."""
        return (self.output / LABELS_RECORD).is_file()

    @property
    def is_begun(self) -> bool:
        """Whether there are labels to add to."""
        return self.output.is_dir()


Member = RunMember | LabelsMember


def members(sweep: Sweep) -> list[Member]:
    """Load every member of a sweep and check it, runs as `python -m launch local` does.

    Raises:
        ConfigError: A member is invalid; each fault is reported once, with the members that have it.
    """
    points = _points(sweep)
    names, folder = names_of(points), _folder(sweep)
    loaded: dict[int, Member] = {}  # by position
    by_fault: dict[str, list[str]] = {}
    for number in chain.in_order([point.after for point in points]):
        point, name = points[number], names[number]
        before = None if point.after is None else loaded.get(point.after)
        # A predecessor with faults has no output; a path in its place lets the faults of this member be found too.
        output = before.output if before is not None else Path(folder, "missing")
        try:
            if chain.is_run(point.entry):
                loaded[number] = _run(sweep, point, {"name": name, "output_dir": folder}, before, output)
            elif isinstance(before, RunMember):
                loaded[number] = _labels(name, before, chain.filled_all(chain.settings_of(point.entry), output))
        except ConfigError as error:
            for fault in error.faults:
                by_fault.setdefault(fault, []).append(name)
    faults = _repeated(points, loaded)
    num_runs = sum(chain.is_run(point.entry) for point in points)
    faults += [_fault_text(fault, names, num_runs) for fault, names in by_fault.items()]
    if faults:
        raise ConfigError(faults)
    return [loaded[number] for number in range(len(points))]


def runs_of(members: Iterable[Member]) -> list[RunMember]:
    """Return the members that are runs."""
    return [member for member in members if isinstance(member, RunMember)]


def representatives(members: Sequence[RunMember]) -> list[RunMember]:
    """Return the first member of each kind for `python -m train --check`: data, tokenizer and starting weights."""
    firsts: dict[str, RunMember] = {}
    for member in members:
        task = member.config.task
        data = replace(task.data, seed=0)
        names = ("vocab_size", "backbone_weights")
        other = [getattr(task, "attention", None), *(getattr(task.model, name, None) for name in names)]
        firsts.setdefault(repr([task.kind, data, *other, member.config.checkpoint.start_from]), member)
    return list(firsts.values())


def _points(sweep: Sweep) -> list[Point]:
    grid = [[(keys, value) for value in values] for keys, values in sweep.grid.items()]
    chosen = list(itertools.product(*grid))
    entries = sweep.runs or ({},)
    points: list[Point] = []
    for entry, before in zip(entries, chain.predecessors(entries), strict=True):
        listed = chain.settings_of(entry)
        own = {"config": Path(str(entry["config"])).stem} if entry.get("config") is not None else {}
        for number, pairs in enumerate(chosen):
            settings = listed | {key: value for keys, value in pairs for key in split_keys(keys)}
            in_name = {} if entry.get("name") is not None else own | listed
            in_name |= {split_keys(keys)[0]: value for keys, value in pairs}
            points.append(Point(entry, settings, in_name, None if before is None else before * len(chosen) + number))
    return points


def _repeated(points: Sequence[Point], loaded: Mapping[int, Member]) -> list[str]:
    """Return the members that are the same run, however their values are written."""
    first: dict[str, int] = {}
    faults: list[str] = []
    for number, member in sorted(loaded.items()):
        if not isinstance(member, RunMember):
            continue
        run = repr(replace(member.config, name=""))
        if run in first:
            words = " ".join(_words(points[number].settings)) or "nothing is varied"
            faults.append(f"members {first[run] + 1} and {number + 1} are the same run ({words}); keep only one")
        first.setdefault(run, number)
    return faults


def _folder(sweep: Sweep) -> str:
    """Return the folder of the members: one named after the sweep, below the configurations' output_dir."""
    files = [_config_file(sweep, entry) for entry in sweep.runs or ({},) if chain.is_run(entry)]
    places: dict[str, str] = {}  # a configuration of each output_dir
    faults: list[str] = []
    for file in dict.fromkeys(files):
        text = yaml_text.read(file, _words(sweep.set))
        output_dir = "" if text.tree is None else text.tree.get("output_dir", "runs")
        if text.tree is None:
            faults += text.faults
        elif isinstance(output_dir, str):
            places.setdefault(output_dir, file)
        else:
            faults.append(f"output_dir: {yaml_text.show(output_dir)} is not text")
    if len(places) > 1:
        given = ", ".join(f"{place} in {file}" for place, file in places.items())
        faults.append(
            f"output_dir: {given}; members of a sweep share one: give it in set, e.g. set: {{output_dir: runs}}"
        )
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))
    return str(Path(*places, sweep.name))


def _config_file(sweep: Sweep, entry: chain.Entry) -> str:
    return str(sweep.config if entry.get("config") is None else entry["config"])


def _run(sweep: Sweep, point: Point, place: dict[str, str], before: Member | None, output: Path) -> RunMember:
    settings = sweep.set | chain.filled_all(point.settings, output)
    file, overrides = _config_file(sweep, point.entry), tuple(_words(settings | place))
    member = RunMember(load(file, overrides), (file, *overrides), before)
    check_world_size(member.config, sweep.ranks)
    if isinstance(before, RunMember) and (faults := list(starting_point.faults(member.config, before.config))):
        raise ConfigError(faults)
    if member.is_begun:
        _refuse_another(member)
    return member


def _labels(name: str, run: RunMember, settings: Mapping[str, Any]) -> LabelsMember:
    """Return a member that makes labels; refuse wrong settings and labels made with others up front."""
    if not isinstance(run.config.task, BoxClassificationConfig):
        raise ConfigError(
            [f"make: {run.name} is a run of {run.config.task.kind}; labels need one of box_classification"]
        )
    member, asked = LabelsMember(name, run, settings), load_settings(PseudoLabelConfig, _words(settings))
    record = read_json(member.output / LABELS_RECORD) or {}
    made, wanted = settings_by_path(record.get("settings")), settings_by_path(asked.as_facts())
    changed = [
        f"{key}: {yaml_text.show(made[key])} -> {yaml_text.show(value)}"
        for key, value in wanted.items()
        if key in made and made[key] != value
    ]
    if changed:
        other = f"{member.output} holds labels made with other settings ({', '.join(changed)})"
        raise ConfigError([f"{other}; write those, delete the folder, or give the sweep another name"])
    return member


def _refuse_another(member: RunMember) -> None:
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
