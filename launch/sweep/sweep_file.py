"""Sweep file: what its members have in common, and what varies.

name: placements                          the members' run folders are in output_dir/placements/
config: configs/language_model/quickstart.yaml
set: {steps: 200}                         for all runs
grid:                                     every combination
  task.model.norm_placement: [pre, post, peri]
  seed, task.data.seed: [0, 1, 2]         keys that share one value
runs:                                     each entry is combined with the grid; `name` names the folder
  - {name: wide, task.model.hidden_size: 256}
parallel: 4                               concurrent members; null: one per GPU, or per two cores
ranks: 1                                  ranks per run
report: true                              write a report on all runs at the end

Entries of `runs` can have configurations of their own and form chains:

runs:
  - {name: first, config: a.yaml}         `config` replaces the sweep's, which may be missing if every entry has one
  - {name: second, after: first, checkpoint.start_from: "{after}@100"}
                                          starts once `first` is finished (of a grid: its member with the same values);
                                          {after} in a value is the output of `first`: its run folder
  - {name: labels, after: first, make: pseudo_labels, attention_threshold: 0.99}
                                          not a run: `python -m train.pseudo_labels RUN attention_threshold=0.99`
  - {name: third, after: labels, task.data.labels: "{after}"}
                                          {after} is the folder of the labels, RUN/labels/step_NNNNNN

After a member that fails or is stopped, none is started; the same command starts it once that member is finished.
`set` and `grid` are settings of runs only; there are labels for each combination of the grid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from launch.sweep import chain

# Same readers as for a run's configuration, so that 3e-4 is a number in a sweep file too.
from train.config import yaml_text
from train.config.errors import ConfigError
from train.config.schema import check

MOST_MEMBERS = 10_000
_OURS = ("name", "output_dir")  # a sweep names its members itself, and output_dir may only be set for all of them


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Contents of a sweep file."""

    name: str
    config: str | None = None  # configuration file of the runs that name none of their own
    set: dict[str, Any] = field(default_factory=dict[str, Any])
    grid: dict[str, Any] = field(default_factory=dict[str, Any])
    runs: tuple[dict[str, Any], ...] = ()
    parallel: int | None = None
    ranks: int = 1
    report: bool = True


def read_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file.

    Args:
        path: The YAML file.
        overrides: `key=value` words for all runs; they take precedence over `set`.

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


class Text(str):
    """A value as it was typed, already YAML."""


def _key_and_text(word: str) -> tuple[str, Text]:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ConfigError([f"{word!r}: not an override; write key=value, e.g. steps=100"])
    return key, Text(text)


def _faults(sweep: Sweep) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", sweep.name):
        yield f"name: {sweep.name!r} is not a valid folder name; use letters, digits, '.', '_' and '-' only"
    if not sweep.grid and not sweep.runs:
        yield "grid: missing, and there are no runs either; write e.g. grid: {optim.lr: [1e-3, 3e-3]}"
    for key, count in (("parallel", sweep.parallel), ("ranks", sweep.ranks)):
        if count is not None and not 1 <= count <= MOST_MEMBERS:
            yield f"{key}: {count} is too {'small' if count < 1 else 'large'}; write 1 to {MOST_MEMBERS:_}"
    yield from _size_faults(sweep)
    yield from _config_faults(sweep)
    yield from chain.faults(sweep.runs)
    for keys, values in sweep.grid.items():
        if not isinstance(values, list) or not values:
            value = yaml_text.show(cast("object", values))
            yield f"grid.{keys}: {value} is not a list of values; write [{value}, ...]"
    yield from _key_and_value_faults(sweep)
    varied = [key for keys in sweep.grid for key in split_keys(keys)]
    varied += {key: None for run in sweep.runs if chain.is_run(run) for key in chain.settings_of(run)}
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


def _size_faults(sweep: Sweep) -> Iterator[str]:
    """Count the members before any is built."""
    lengths = [len(cast("list[object]", values)) for values in sweep.grid.values() if isinstance(values, list)]
    count = math.prod(lengths) * max(1, len(sweep.runs))
    if count > MOST_MEMBERS:
        yield f"grid: {count:_} members are more than a sweep may have ({MOST_MEMBERS:_}); list fewer values"


def _config_faults(sweep: Sweep) -> Iterator[str]:
    runs = [run for run in sweep.runs or ({},) if chain.is_run(run)]
    without = [run for run in runs if run.get("config") is None]
    if sweep.config is None and without:
        yield "config: missing; write e.g. config: configs/language_model/quickstart.yaml" + (
            ", or give every entry of runs its own" * bool(sweep.runs)
        )
    if sweep.config is not None and not without:
        yield "config: has no effect, as every entry of runs has its own; remove it"


def _key_and_value_faults(sweep: Sweep) -> Iterator[str]:
    groups = [("set", sweep.set), ("grid", sweep.grid)]
    groups += [(f"runs.{number}", run) for number, run in enumerate(sweep.runs)]
    for group, settings in groups:
        for keys, value in settings.items():
            if not all(re.fullmatch(r"\w+(\.\w+)*", key) for key in split_keys(keys)):
                yield f"{group}.{yaml_text.shortened(keys, 80)}: not the path of a setting; write one like optim.lr"
            if group in ("set", "grid") and chain.mentions_output(value):
                yield f"{group}.{keys}: {chain.OUTPUT} is known only to an entry of runs with after; move it there"
            if not _is_finite(value):
                yield f"{group}.{keys}: {yaml_text.show(value)} contains a number that is not finite; remove it"


def _is_finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, cast("dict[str, object]", value).values()))
    if isinstance(value, list):
        return all(map(_is_finite, cast("list[object]", value)))
    return not isinstance(value, float) or math.isfinite(value)


def split_keys(keys: str) -> list[str]:
    """Return the keys that share one value, as in `seed, task.data.seed`."""
    return [key.strip() for key in keys.split(",")]
