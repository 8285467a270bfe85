"""Groups of runs that differ only in seed, each drawn as one line and labeled by what sets it apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from analysis.metrics import final, main_metric
from analysis.runs import Record, column
from analysis.setting_facts import SettingFacts, merged
from analysis.style import NAMES, Look, look

MAX_POINTS = 2000  # of a curve; a column is some 1,000 dots wide at 300 dpi
MOST_LINES = 6  # in one panel
MOST_PANELS = 20  # of one figure

_COUNT = re.compile(r" \(\d+ (seeds|runs)\)$")
Curve = Callable[[Record], tuple[np.ndarray, np.ndarray]]


class Band(NamedTuple):
    """A curve over the seeds of a group: mean, least and greatest, (N,) each."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ only in seed, drawn as one line.

    Attributes:
        name: Display name.
        label: The name, with the number of runs if there are several.
        records: The runs.
        look: Color, marker and line.
        arm: Name shared with the groups that differ from this one only in the peak learning rate.
    """

    name: str
    label: str
    records: tuple[Record, ...]
    look: Look
    arm: str = ""

    @property
    def placement(self) -> str:
        """The placement that all runs share."""
        return self.records[0].placement


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Flatten a configuration to values by path; a list is a value, unless it holds sections."""
    if isinstance(tree, Mapping):
        below = tree.items()
    elif isinstance(tree, list) and any(isinstance(item, Mapping | list) for item in tree):
        below = enumerate(tree)
    else:
        return {path: tree}
    flat: dict[str, Any] = {}
    for key, value in below:
        flat |= leaves(value, f"{path}.{key}" if path else str(key))
    return flat


def differing_keys(records: Sequence[Record]) -> list[str]:
    """Return the paths of all settings in which runs differ, in the order of the configuration."""
    flat = [leaves(record.config) for record in records if record.config]
    keys = dict.fromkeys(key for config in flat for key in config)
    return [key for key in keys if any(config.get(key) != flat[0].get(key) for config in flat)]


def by_numbers(records: Sequence[Record]) -> list[Record]:
    """Return runs sorted by the numeric settings in which they differ, otherwise in their original order."""
    flat = [leaves(record.config) for record in records]
    keys = [key for key in differing_keys(records) if all(type(config.get(key)) in (int, float) for config in flat)]
    order = sorted(range(len(records)), key=lambda index: [flat[index][key] for key in keys])
    return [records[index] for index in order]


def group_records(records: Sequence[Record], *, also_ignored: Sequence[str] = ()) -> list[Group]:
    """Join runs that differ only in seed, or in settings that change nothing they learn (settings.json knows which).

    An inspected model is a group of its own.

    Args:
        records: In the order in which they are to be shown.
        also_ignored: Further settings that may differ within a group.
    """
    facts = merged(record.setting_facts for record in records)

    def distinguishes(key: str) -> bool:
        return facts.role(key) == "distinguishes" and not key.startswith(tuple(also_ignored))

    together: dict[Any, list[Record]] = {}
    for record in records:
        known = leaves(record.config).items()  # null is what a setting was before it existed
        settings = {key: value for key, value in known if value is not None and distinguishes(key)}
        settings = {key: _of_any_seed(value, record) for key, value in settings.items()}
        key = repr(sorted(settings.items(), key=lambda item: item[0])) if record.config else record.label
        together.setdefault(key, []).append(record)
    firsts = [members[0] for members in together.values()]
    keys = [key for key in differing_keys(firsts) if distinguishes(key)]
    labels = [_label(members, keys, lonely=len(firsts) == 1) for members in together.values()]
    groups = []
    for members, label in zip(together.values(), labels, strict=True):
        same = [record for record in firsts if record.placement == members[0].placement]
        variant = next(i for i, record in enumerate(same) if record is members[0])
        distinct = f"{label}, {members[0].label}" if labels.count(label) > 1 else label
        groups.append(
            Group(
                name=distinct,
                label=distinct + _seeds_text(members, facts),
                records=tuple(members),
                look=look(members[0].placement, variant=variant, variants=len(same)),
            )
        )
    return groups


def _of_any_seed(value: Any, record: Record) -> Any:
    """Return a name or path without the run's own seed in it, as sweeps write it: "labels_seed-0" becomes "labels".

    A run that continues another of its seed differs from its like by that alone.
    """
    own = re.escape(str(record.config.get("seed")))
    return re.sub(rf"_(?:\w+\.)*seed-{own}(?![0-9])", "", value) if isinstance(value, str) else value


def with_arms(records: Sequence[Record]) -> list[Group]:
    """Return the groups of runs with their arms: a placement at several peak learning rates is one arm.

    A run without a placement is in an arm of its own group.
    """
    placed = [record for record in records if record.placement != "unknown"]
    arms = group_records(placed, also_ignored=("optim.lr",))
    arm_of = {record.label: _COUNT.sub("", arm.label) for arm in arms for record in arm.records}
    return [replace(group, arm=arm_of.get(group.records[0].label, group.label)) for group in group_records(records)]


def for_depth(records: Sequence[Record], *, most: int = MOST_PANELS) -> tuple[list[Group], list[str]]:
    """Return the groups that a plot over depth shows, and notes on those it leaves out.

    More than six lines are indistinguishable in one panel. In that case, each arm is shown at the learning rate with
    the best final value of the task's main metric; of more arms than fit, those with the best.

    Args:
        records: The runs.
        most: The most groups that fit, in one panel or in one each.
    """
    groups = with_arms(records)
    if len(groups) <= MOST_LINES:
        return groups, []
    ranked, best_words = sorted(groups, key=final_rank), best_final(records)
    best: dict[str, Group] = {}
    for group in ranked:
        best.setdefault(group.arm, group)
    fitting = list(best.values())[:most]
    chosen = [group for group in groups if group in fitting]
    notes = []
    if len(best) < len(groups):
        names = ", ".join(group.label for group in chosen)
        notes.append(
            f"Of {len(groups)} lines, those with the {best_words} of each arm are shown, at its best "
            f"learning rate: {names}."
        )
    if len(chosen) < len(best):
        what = "arms" if notes else "lines"
        notes.append(f"Of {len(best)} {what}, only the {most} with the {best_words} are shown.")
    return [replace(group, look=_look_among(chosen, group)) for group in chosen], notes


def _look_among(groups: Sequence[Group], group: Group) -> Look:
    same = [other for other in groups if other.placement == group.placement]
    variant = next(i for i, other in enumerate(same) if other is group)
    return look(group.placement, variant=variant, variants=len(same))


def final_rank(group: Group) -> float:
    """Return the mean of the runs' last values of the main metric, negated where higher is better.

    It is infinite where there is none, or one is not finite: the lowest rank is the best.
    """
    metric = main_metric(group.records)
    ends = [final(record, metric.column) for record in group.records if len(record.validation)]
    return metric.sign * float(np.mean(ends)) if ends and np.isfinite(ends).all() else np.inf


def best_final(records: Sequence[Record]) -> str:
    """Return what ranks runs, in words: "lowest final validation loss"."""
    metric = main_metric(records)
    return f"{metric.best_word} final {metric.phrase}"


def axis_of(records: Sequence[Record]) -> str:
    """Return what all the runs count their progress in: "tokens", "samples", or else "step"."""
    started = [record for record in records if not record.metrics.empty]
    for name in ("tokens", "samples"):
        if started and all(np.isfinite(column(record.metrics, name)).any() for record in started):
            return name
    return "step"


def progress(record: Record, steps: np.ndarray, axis: str) -> np.ndarray:
    """Return a run's progress at these steps, (N,): in tokens, samples or steps, as `axis` says.

    Progress is interpolated between logged steps and extrapolated beyond the last.
    """
    steps = np.asarray(steps, dtype=float)
    if axis == "step" or not len(steps):
        return steps
    known = np.isfinite(column(record.metrics, axis)) & (column(record.metrics, "step") > 0)
    if not known.any():
        return np.full(len(steps), np.nan)
    logged, order = np.unique(column(record.metrics, "step")[known], return_index=True)
    amounts = column(record.metrics, axis)[known][order]
    per_step = amounts[-1] / logged[-1]
    inside = np.interp(steps, [0.0, *logged], [0.0, *amounts])
    return np.where(steps > logged[-1], steps * per_step, inside)


def band(group: Group, curve: Curve) -> Band:
    """Return a quantity's mean and range over a group's runs.

    A point needs all runs that got that far: there is a gap where one of them has no finite value, and a run that
    ended earlier is left out from there on.

    Args:
        group: The runs.
        curve: Function that returns the positions, ascending, and the values of one run.
    """
    curves = [(x, y) for x, y in (curve(record) for record in group.records) if len(x)]
    if not curves:
        empty = np.empty(0)
        return Band(empty, empty, empty, empty)
    positions = np.unique(np.concatenate([x for x, _ in curves]))
    values = np.full((len(curves), len(positions)), np.nan)
    expected, logged = np.zeros(len(positions)), np.zeros(len(positions))
    for row, (x, y) in zip(values, curves, strict=True):
        at = np.searchsorted(positions, x)
        row[at] = y
        logged[at] += 1
        expected += positions <= x[-1]
    common = logged == expected
    if not common.any():
        common[:] = True
    positions, values, logged = positions[common], values[:, common], logged[common]
    gap = np.isfinite(values).sum(axis=0) < np.minimum(logged, len(curves))
    filled = np.where(np.isfinite(values), values, np.nan)
    mean, low, high = (_over_runs(function, filled, gap) for function in (np.nanmean, np.nanmin, np.nanmax))
    return Band(positions, mean, low, high)


def thin_out(full: Band, most: int = MAX_POINTS) -> Band:
    """Reduce a band to at most `most` points: the lowest, the highest and one gap of each stretch."""
    count = len(full.x)
    if count <= most:
        return full
    points = {0, count - 1}
    for stretch in np.array_split(np.arange(count), (most - 2) // 3):
        low, high = full.low[stretch], full.high[stretch]
        finite = np.isfinite(low) & np.isfinite(high)
        if finite.any():
            points.add(int(stretch[np.argmin(np.where(finite, low, np.inf))]))
            points.add(int(stretch[np.argmax(np.where(finite, high, -np.inf))]))
        if not finite.all():
            points.add(int(stretch[np.argmin(finite)]))
    at = np.array(sorted(points))
    return Band(*(values[at] for values in full))


def _over_runs(function, values: np.ndarray, gap: np.ndarray) -> np.ndarray:
    out = np.full(values.shape[1], np.nan)
    if (~gap).any():
        out[~gap] = function(values[:, ~gap], axis=0)
    return out


def _label(members: Sequence[Record], keys: Sequence[str], *, lonely: bool) -> str:
    record = members[0]
    if not record.config:
        return record.label
    has_placement = record.placement != "unknown"
    own_name = record.label if len(members) == 1 else _of_any_seed(record.label, record)
    name = NAMES[record.placement] if has_placement else own_name
    others = [
        key for key in keys if key != "task.model.norm_placement" and not key.startswith("task.model.norm_placement.")
    ]
    if lonely or not others or (not has_placement and len(members) == 1):
        return name
    if len(others) > 2:
        return f"{name}, {record.label}" if has_placement else name
    flat = leaves(record.config)
    words = [f"{key.rpartition('.')[2]} {_value_text(flat.get(key))}" for key in others]
    return ", ".join([name, *words] if has_placement else words)


def _value_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _seeds_text(members: Sequence[Record], facts: SettingFacts) -> str:
    if len(members) == 1:
        return ""
    flat = [leaves(record.config) for record in members]
    seeds = {repr([(key, value) for key, value in config.items() if facts.role(key) == "seed"]) for config in flat}
    return f" ({len(members)} seeds)" if len(seeds) == len(members) else f" ({len(members)} runs)"
