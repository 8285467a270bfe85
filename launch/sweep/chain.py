"""Chains in a sweep file: entries of `runs` that come after others and use their output.

An entry with `after: NAME` starts once the entry NAME is finished; {after} in its values stands for NAME's output.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from train.config.yaml_text import shortened

Entry = Mapping[str, Any]  # an entry of `runs`, as in the file

ABOUT_ENTRY = ("name", "config", "after", "make")  # keys of an entry that are not settings
OUTPUT = "{after}"
MAKE = ("pseudo_labels",)  # what an entry can make instead of a run
_MOST_SUGGESTIONS = 20  # unknown names for which the nearest name is searched: milliseconds each


def settings_of(entry: Entry) -> dict[str, Any]:
    """Return the settings of an entry."""
    return {key: value for key, value in entry.items() if key not in ABOUT_ENTRY}


def is_run(entry: Entry) -> bool:
    """Return whether an entry is a run, rather than a command on a run."""
    return entry.get("make") is None


def filled(value: object, output: object) -> object:
    """Return a value with {after} replaced, in lists and mappings too."""
    if isinstance(value, str):
        return value.replace(OUTPUT, str(output)) if OUTPUT in value else value  # keeps the type of a `Text`
    if isinstance(value, list):
        return [filled(item, output) for item in cast("list[object]", value)]
    if isinstance(value, dict):
        return {key: filled(item, output) for key, item in cast("dict[str, object]", value).items()}
    return value


def filled_all(settings: Mapping[str, Any], output: object) -> dict[str, Any]:
    """Return settings with {after} replaced in all values."""
    return {key: filled(value, output) for key, value in settings.items()}


def mentions_output(value: object) -> bool:
    """Return whether a value contains {after}."""
    return filled(value, "") != value


def predecessors(entries: Sequence[Entry]) -> list[int | None]:
    """Return for each entry the position of the one it comes after; None if there is none of that name."""
    positions = {_name(entry): number for number, entry in enumerate(entries) if _name(entry) is not None}
    return [positions.get(_after(entry)) for entry in entries]


def in_order(before: Sequence[int | None]) -> list[int]:
    """Return positions so that each one follows its predecessor; those on a cycle, and after one, are left out."""
    followers: defaultdict[int | None, list[int]] = defaultdict(list)
    for number, predecessor in enumerate(before):
        followers[predecessor].append(number)
    ordered = list(followers[None])
    for number in ordered:  # grows during the loop
        ordered.extend(followers[number])
    return ordered


def faults(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield what is wrong with the chains of a sweep."""
    names = [name for entry in entries if (name := _name(entry)) is not None]
    if any(_after(entry) is not None for entry in entries):
        for name, count in Counter(names).items():
            if count > 1:
                yield f"runs: {count} entries are named {name}; chains need a different name for each"
    before = predecessors(entries)
    known = set(names)
    unknown = [after for entry in entries if (after := _after(entry)) is not None and after not in known]
    hints = {name: _hint(name, names) for name in list(dict.fromkeys(unknown))[:_MOST_SUGGESTIONS]}
    for number, entry in enumerate(entries):
        if before[number] is None and (after := _after(entry)) is not None:
            yield f"runs.{number}.after: no entry is named {after}{hints.get(after, '')}"
        for key, fault in (*_output_faults(entry), *_make_faults(entry, before[number], entries)):
            yield f"runs.{number}.{key}: {fault}"
    yield from _cycle_faults(entries, before)
    yield from _shared_folder_faults(entries, before)


def _name(entry: Entry) -> str | None:
    return None if entry.get("name") is None else str(entry["name"])


def _after(entry: Entry) -> str | None:
    return None if entry.get("after") is None else str(entry["after"])


def _hint(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else "; name one, with name: NAME in that entry"


def _output_faults(entry: Entry) -> Iterator[tuple[str, str]]:
    """Yield where an entry uses an output without `after`, or not at all, each with its key."""
    after = _after(entry)
    users = [key for key, value in settings_of(entry).items() if mentions_output(value)]
    if after is None:
        for key in users:
            yield key, f"{OUTPUT} is the output of another entry, but no entry is named; add after: NAME"
    elif not users and is_run(entry):
        example = f'task.data.labels: "{OUTPUT}" or checkpoint.start_from: "{OUTPUT}@100"'
        yield "after", f"no value uses the output of {after}; write {OUTPUT} in one, e.g. {example}, or remove after"


def _make_faults(entry: Entry, before: int | None, entries: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    """Yield faults of an entry that makes something of a run, each with its key."""
    if is_run(entry):
        return
    make, name = str(entry["make"]), _name(entry)
    if make not in MAKE:
        yield "make", f"{make!r} is not known; write {' or '.join(MAKE)}, or remove make for a run"
    if _after(entry) is None:
        yield "make", f"{make} needs a finished run; add after: NAME"
    elif before is not None and not is_run(entries[before]):
        yield "after", f"{_after(entry)} is not a run; {make} needs a run"
    if entry.get("config") is not None:
        yield "config", f"has no effect with make: {make}, which reads the configuration of the run; remove it"
    if name is not None and (name == "sweep" or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name)):
        # It names the log file in the run's logs/, where sweep.log is the run's own.
        yield "name", f"{name!r} cannot name a log file; use letters, digits, '.', '_' and '-', and not sweep"


def _cycle_faults(entries: Sequence[Entry], before: Sequence[int | None]) -> Iterator[str]:
    """Yield every cycle once."""
    left = set(range(len(entries))) - set(in_order(before))
    while left:
        path: list[int] = []
        number: int | None = min(left)
        while number in left:
            path.append(number)
            left.remove(number)
            number = before[number]
        if number not in path:  # it leads to a cycle that is already reported
            continue
        cycle = path[path.index(number) :]
        if len(cycle) == 1:
            yield f"runs.{number}.after: {_after(entries[number])} is the entry itself; name another one, or remove it"
        else:
            loop = " -> ".join(str(_name(entries[position])) for position in [*cycle, number])
            yield f"runs.{number}.after: the entries wait for each other ({shortened(loop, 200)}); remove one after"


def _shared_folder_faults(entries: Sequence[Entry], before: Sequence[int | None]) -> Iterator[str]:
    """Yield entries that would write their labels to the same folder."""
    first: dict[int, int] = {}
    for number, (entry, predecessor) in enumerate(zip(entries, before, strict=True)):
        if is_run(entry) or predecessor is None:
            continue
        if predecessor in first:
            yield (
                f"runs.{number}.make: runs.{first[predecessor]} makes the labels of {_after(entry)} too, in the same "
                f"folder; keep one of them, or train {_after(entry)} again under another name"
            )
        first.setdefault(predecessor, number)
