"""Tables that describe the runs of a report: facts, differing settings, data, and files.

Few runs have a column each. Many have a row for each group of runs that differ only in seed, so no table is wider than
a page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.figures.training import outcome, skipped_steps, spikes
from analysis.groups import differing_keys, group_records, leaves, with_arms
from analysis.metrics import final, own_metrics
from analysis.page.contents import FileLink, Spread, Table, number_text
from analysis.runs import Record, column, rows_where, setting
from analysis.setting_facts import merged
from analysis.style import NAMES

FEW_RUNS = 6  # that have a column each
MOST_COLUMNS = 8  # beside the names of the rows
_MOST_VALUES = 4  # of a fact or setting, listed with their counts
_MOST_NAMES = 3  # of runs, listed in a cell
_UNITS = ("files", "documents", "bytes", "tokens", "windows", "pairs", "images", "samples")
_DATA = ("run", "part", *_UNITS)
# What a table of groups shows first; the seed of a run is in the list of runs.
_IMPORTANT = ("state", "validation loss", "best validation loss", "training loss", "parameters", "steps",
              "gradient spikes", "loss spikes", "skipped steps", "tokens/s", "samples/s")  # fmt: skip
_CAPTION = (
    "Losses are those of the last logged step and the last validation; speed is the median over logged steps; memory "
    "is the peak over all ranks."
)


def facts(records: Sequence[Record]) -> Table:
    """Return the facts of the runs: a column per run, or a row per group of many; equal facts are stated once."""
    of_runs = [_facts_of(record, records) for record in records]
    names = [name for name in of_runs[0] if any(facts[name] is not None for facts in of_runs)]
    if len(records) == 1:
        rows = [[name, of_runs[0][name]] for name in names]
        return Table(title="Facts", header=["fact", records[0].label], rows=rows, caption=_CAPTION, is_upright=True)
    same = {name: _text(of_runs[0][name]) for name in names if len({_text(facts[name]) for facts in of_runs}) == 1}
    differing = [name for name in names if name not in same]
    if len(records) <= FEW_RUNS:
        return Table(
            title="Facts",
            header=["fact", *(record.label for record in records)],
            rows=[[name, *(facts[name] for facts in of_runs)] for name in differing],
            caption=f"{_CAPTION} The same for all runs:" if same else _CAPTION,
            is_upright=True,
            same=same,
        )
    return _facts_of_groups(records, of_runs, differing, same)


def _facts_of_groups(
    records: Sequence[Record], of_runs: Sequence[Mapping[str, Any]], differing: Sequence[str], same: Mapping[str, str]
) -> Table:
    facts_by_label = {record.label: facts for record, facts in zip(records, of_runs, strict=True)}
    groups = with_arms(records)
    arms = list(dict.fromkeys(group.arm for group in groups))
    groups.sort(key=lambda group: arms.index(group.arm))
    own = [name for name in differing if name.startswith("validation ") and name not in _IMPORTANT]
    if all(facts["best validation loss"] == facts["validation loss"] for facts in of_runs):
        differing = [name for name in differing if name != "best validation loss"]
    ranked = [name for name in (*_IMPORTANT[:3], *own, *_IMPORTANT[3:]) if name in differing]
    shown = ranked[:MOST_COLUMNS]
    rest = [name for name in differing if name not in (*shown, "seed", "placement", "lr")]
    known = {name: _counted([facts[name] for facts in of_runs]) for name in rest}
    rows = [
        [group.label, *(_over([facts_by_label[record.label][name] for record in group.records]) for name in shown)]
        for group in groups
    ]
    caption = f"{_CAPTION} Means over the runs of a row, with their range in parentheses."
    if same or known:
        caption += " The same for all runs, or with the number of runs in parentheses:"
    return Table(
        title="Facts",
        header=["runs", *shown],
        rows=rows if shown else [],
        caption=caption,
        same={**same, **known},
    )


def differences(records: Sequence[Record]) -> list[Table]:
    """Return the settings in which the runs differ: a column per run, or a row per group of many."""
    configured = [record for record in records if record.config]
    keys = [key for key in differing_keys(configured) if key != "name"]
    if len(configured) < 2 or not keys:
        return []
    if len(configured) > FEW_RUNS:
        return _differences_of_groups(configured, keys)
    flat = [leaves(record.config) for record in configured]
    return [
        Table(
            title="Differences",
            header=["setting", *(record.label for record in configured)],
            rows=[[key, *(_value(config, key) for config in flat)] for key in keys],
            caption="All settings in config.yaml whose values differ between the runs.",
        )
    ]


def _differences_of_groups(records: Sequence[Record], keys: Sequence[str]) -> list[Table]:
    """Return tables with a row per group; a setting that does not tell groups apart is summarized above."""
    groups, facts = group_records(records), merged(record.setting_facts for record in records)
    told = [key for key in keys if facts.role(key) == "distinguishes"]
    flat = [leaves(record.config) for record in records]
    rest = {key: _counted([_value(config, key) for config in flat]) for key in keys if key not in told}
    caption = "Settings in config.yaml whose values differ between the runs, by group."
    if rest:
        caption += " Those that tell no groups apart, with the number of runs:"
    firsts = [leaves(group.records[0].config) for group in groups]
    parts = [told[i : i + MOST_COLUMNS - 2] for i in range(0, len(told), MOST_COLUMNS - 2)] or [[]]
    return [
        Table(
            title="Differences" if len(parts) == 1 else f"Differences, part {i + 1} of {len(parts)}",
            header=["runs", *part],
            rows=[
                [group.label, *(_value(config, key) for key in part)]
                for group, config in zip(groups, firsts, strict=True)
            ]
            if part
            else [],
            caption=caption if i == 0 else "",
            same=rest if i == 0 else {},
        )
        for i, part in enumerate(parts)
    ]


def data(records: Sequence[Record]) -> Table | None:
    """Return a row per split or source with its amounts, once for all runs that share them; None without any."""
    runs_by_data: dict[str, list[Record]] = {}
    for record in records:
        runs_by_data.setdefault(repr(_data_rows(record)), []).append(record)
    rows = [
        [_names(sharing, of=len(records)), *row] for sharing in runs_by_data.values() for row in _data_rows(sharing[0])
    ]
    filled = [i for i in range(len(_DATA)) if any(row[i] is not None for row in rows)]
    if not rows:
        return None
    return Table(
        title="Data",
        header=[_DATA[i] for i in filled],
        rows=[[row[i] for i in filled] for row in rows],
        caption="What environment.json records of each run's data. Documents that validation sources contain too are "
        "not trained on.",
    )


def files(records: Sequence[Record]) -> Table:
    """Return a row per run with links to its files, and of many runs what the table of groups averages."""
    is_long = len(records) > FEW_RUNS
    rows = [
        [
            record.label,
            *(_summary(record) if is_long else []),
            *(_link(record, name) for name in ("config.yaml", "events.jsonl")),
        ]
        for record in records
    ]
    columns = ["seed", "state", "steps", "validation loss"] if is_long else []
    return Table(title="Files", header=["run", *columns, "settings", "events"], rows=rows, is_folded=is_long)


def collected_notes(records: Sequence[Record]) -> list[str]:
    """Return the notes on runs, each preceded by the runs that it is true of."""
    runs_by_note: dict[str, list[Record]] = {}
    for record in records:
        for note in record.notes:
            runs_by_note.setdefault(note, []).append(record)
    return [f"{_names(sharing, of=len(records))}: {note}" for note, sharing in runs_by_note.items()]


def parameter_count(record: Record) -> int | None:
    """Return the parameter count from environment.json, else the sum over gradients.jsonl, else None."""
    stated = record.environment.get("parameters")
    if isinstance(stated, int):
        return stated
    steps = column(record.gradients, "step")
    if not len(steps):
        return None
    total = float(column(rows_where(record.gradients, step=steps[0]), "numel").sum())
    return int(total) if np.isfinite(total) else None


def _facts_of(record: Record, records: Sequence[Record]) -> dict[str, Any]:
    """Return all facts of a run by name, None for what is unknown."""
    own = [metric for metric in own_metrics(records) if metric.name != "loss"]
    values = {f"validation {metric.words}": final(record, metric.column) for metric in own}
    return {
        **_learned(record),
        **{name: value if np.isfinite(value) else None for name, value in values.items()},
        **_measured(record),
    }


def _learned(record: Record) -> dict[str, Any]:
    validation = column(record.validation, "validation_loss")
    finite = validation[np.isfinite(validation)]
    asked = f" of {record.steps_asked:,}" if record.steps_asked is not None else ""
    parameters, tokens, samples = parameter_count(record), _maximum(record, "tokens"), _maximum(record, "samples")
    return {
        "placement": NAMES[record.placement] if record.placement != "unknown" else None,
        "parameters": parameters,
        "steps": f"{record.steps_done:,}{asked}",
        "state": outcome(record),
        "tokens": None if tokens is None else int(tokens),
        "samples": None if samples is None else int(samples),
        "epochs": _maximum(record, "epoch"),
        "tokens per parameter": None if tokens is None or not parameters else tokens / parameters,
        "training loss": _last(column(record.training, "loss")),
        "validation loss": _last(validation),
        "best validation loss": float(finite.min()) if len(finite) else None,
    }


def _measured(record: Record) -> dict[str, Any]:
    events = spikes(record)
    of_loss = sum(event.get("quantity") == "loss" for event in events)
    commit = record.environment.get("git_sha")
    dirty = " (modified)" if record.environment.get("git_dirty") else ""
    return {
        "gradient spikes": len(events) - of_loss,
        "loss spikes": of_loss,
        "skipped steps": len(skipped_steps(record)),
        "tokens/s": _median(column(record.training, "tokens_per_second")),
        "samples/s": _median(column(record.training, "samples_per_second")),
        "peak memory (GiB)": _maximum(record, "peak_memory_gib"),
        "lr": setting(record.config, "optim.lr"),
        "seed": None if (seed := record.config.get("seed")) is None else str(seed),
        "device": record.environment.get("device"),
        "ranks": record.environment.get("world_size"),
        "precision": record.environment.get("precision"),
        "commit": f"{str(commit)[:9]}{dirty}" if commit else None,
    }


def _summary(record: Record) -> list[Any]:
    validation = column(record.validation, "validation_loss")
    return [str(record.config.get("seed", "-")), outcome(record), f"{record.steps_done:,}", _last(validation)]


def _link(record: Record, name: str) -> FileLink | None:
    path = record.folder / name
    return FileLink(name, path) if path.is_file() else None


def _names(sharing: Sequence[Record], *, of: int) -> str:
    """Return whose a note or a row is: the runs' names if there are few, else their number."""
    if len(sharing) == of > 1:
        return f"all {of} runs"
    names = [record.label for record in sharing[:_MOST_NAMES]]
    more = len(sharing) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _data_rows(record: Record) -> list[list[Any]]:
    facts = record.environment.get("data")
    if not isinstance(facts, dict):
        return []
    amounts = {split: [facts.get(f"{split}_{unit}") for unit in _UNITS] for split in ("training", "validation")}
    rows = [[split, *of_split] for split, of_split in amounts.items() if any(of_split)]
    for path, source in facts.get("sources", {}).items():
        tokens = facts.get("tokens_by_source", {}).get(path)
        of_source = {**source, "tokens": source.get("tokens", tokens)}
        rows.append([f"{path} {source.get('path', '')}", *(of_source.get(unit) for unit in _UNITS)])
    for of_set in facts.get("validation_sets", ()):
        name = f"validation set {of_set.get('label') or 'without a label'}"
        rows.append([name, *(of_set.get(unit) for unit in _UNITS)])
    return rows


def _over(values: Sequence[Any]) -> Any:
    """Return a fact over the runs of a group: numbers as mean and range, texts as counts."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    if len({_text(value) for value in present}) == 1:
        return present[0]
    if all(_is_number(value) for value in present):
        return Spread(float(np.mean(present)), min(present), max(present))
    return _counted(present)


def _counted(values: Sequence[Any]) -> str:
    """Return the values of many runs in one text: a range of numbers, or distinct values with their counts."""
    present = [value for value in values if value is not None]
    if len(set(map(_text, present))) > _MOST_VALUES and all(_is_number(value) for value in present):
        return f"{_text(min(present))} to {_text(max(present))}"
    counts = Counter(map(_text, values)).most_common()
    words = [f"{value} ({count})" for value, count in counts[:_MOST_VALUES]]
    more = len(counts) - len(words)
    return ", ".join(words) + (f" and {more} other values" if more else "")


def _last(values: np.ndarray) -> float | str | None:
    if not len(values):
        return None
    return float(values[-1]) if np.isfinite(values[-1]) else "not finite"


def _median(values: np.ndarray) -> float | None:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else None


def _maximum(record: Record, name: str) -> float | None:
    values = column(record.metrics, name)
    return float(np.nanmax(values)) if np.isfinite(values).any() else None


def _value(config: Mapping[str, Any], key: str) -> str:
    if key not in config:
        return "(not set)"
    return "null" if config[key] is None else str(config[key])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    """Return a fact as the page shows it."""
    return number_text(value)
