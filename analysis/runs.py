"""Reader for run folders: configuration, machine, and all measurements.

A run may still be in progress, may have been killed in the middle of a line, or may lack files: whatever exists is
read, and `Record.notes` lists the rest.
"""

from __future__ import annotations

import glob
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.setting_facts import SettingFacts, read_setting_facts
from modeling.decoder.facts_placements_periln import CHOICES

METRICS = ("step", "samples", "tokens", "epoch", "loss", "grad_norm", "lr", "samples_per_second", "tokens_per_second",
           "mfu", "step_seconds", "step_seconds_min", "step_seconds_max", "peak_memory_gib", "skipped", "spikes",
           "samples_hash", "validation_loss", "is_validation")  # fmt: skip
ACTIVATIONS = ("step", "layer", "site", "numel", "variance", "mean_abs", "max_abs", "rms", "fp16_overflow_share",
               "top1_over_median")  # fmt: skip
GRADIENTS = ("step", "layer", "parameter", "numel", "norm", "parameter_norm", "update_ratio", "scale_min",
             "scale_mean", "scale_max", "norm_role")  # fmt: skip
LAYERS = ("step", "layer", "loss", "loss_without", "angular_distance")
_WORDS = ("site", "parameter", "samples_hash", "norm_role", "is_validation")

_FILES = ("metrics", "activations", "gradients", "layers")


class InputError(ValueError):
    """Invalid user input; the message states the input, what is allowed, and what to write instead."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """Data of one run or one inspected model.

    Attributes:
        label: Display name, distinct within a report.
        folder: Folder that it was read from.
        config: Tree of config.yaml; empty for an inspected model.
        environment: Contents of environment.json, or empty.
        metrics: A row per log line. `is_validation` marks validations (a training loss may be NaN).
        activations: A row per (step, layer, site); `layer` is NaN outside blocks.
        gradients: A row per (step, layer, parameter). `norm_role` is the role of a norm's scale: "input_norm",
            "output_norm" or "stream_norm", prefixed with "attention." or "mlp."; None for other parameters.
        layers: A row per (step, layer): the validation loss in nats with all layers (`loss`) and with this layer left
            out (`loss_without`), and the angle between its input and output, from 0 to 1 in units of pi
            (`angular_distance`).
        events: Contents of events.jsonl, in order.
        placement: A name of CHOICES, "mixed" or "unknown".
        setting_facts: Contents of settings.json, or None.
        notes: Remarks for the reader, such as a half-written line, a missing file, or an unfinished run.
    """

    label: str
    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    metrics: pd.DataFrame = field(default_factory=lambda: table([], METRICS))
    activations: pd.DataFrame = field(default_factory=lambda: table([], ACTIVATIONS))
    gradients: pd.DataFrame = field(default_factory=lambda: table([], GRADIENTS))
    layers: pd.DataFrame = field(default_factory=lambda: table([], LAYERS))
    events: Sequence[Mapping[str, Any]] = ()
    placement: str = "unknown"
    setting_facts: SettingFacts | None = None
    notes: Sequence[str] = ()

    @property
    def training(self) -> pd.DataFrame:
        """The rows of training steps."""
        return rows_where(self.metrics, is_validation=False)

    @property
    def validation(self) -> pd.DataFrame:
        """The rows of validations."""
        return rows_where(self.metrics, is_validation=True)

    @property
    def kind(self) -> str:
        """The task's kind, or "unknown" if the configuration does not name it."""
        return str(setting(self.config, "task.kind") or "unknown")

    @property
    def steps_asked(self) -> int | None:
        """Steps of the whole run."""
        steps = self.config.get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def steps_done(self) -> int:
        """The last step recorded in any file."""
        return int(max([0, *column(self.metrics, "step"), *(event["step"] for event in self.events)]))


def setting(config: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path `a.b.c`, or None if there is none."""
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Return rows as a table in which all `columns` exist and numeric columns are numeric, with NaN for null."""
    rows = list(rows)
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    return pd.DataFrame({name: _cells([row.get(name) for row in rows], name) for name in names})


def _cells(values: Sequence[Any], name: str) -> np.ndarray:
    if name == "is_validation":
        return np.array(values, dtype=bool)
    if name in _WORDS:
        return np.array([None if value is None else str(value) for value in values], dtype=object)
    return np.array([_number(value) for value in values], dtype=float)


def _number(value: Any) -> float:
    """Return a number of any size as a float, NaN for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def column(frame: pd.DataFrame, name: str) -> np.ndarray:
    """Return one column as an array: float64 for numbers, objects for words."""
    return np.asarray(frame[name])


def rows_where(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Return the rows in which every named column has the wanted value, or one of a wanted list."""
    matches = np.ones(len(frame), dtype=bool)
    for name, value in wanted.items():
        matches &= np.isin(column(frame, name), value) if isinstance(value, list) else column(frame, name) == value
    return frame.iloc[np.flatnonzero(matches)]


def activation_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows of activations.jsonl as a table; if a step was measured twice, the later row counts."""
    return table(rows, ACTIVATIONS).drop_duplicates(["step", "layer", "site"], keep="last", ignore_index=True)


def gradient_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows of gradients.jsonl as a table; a missing `norm_role` is derived from our decoder's names."""
    rows = [{"norm_role": norm_role(str(row.get("parameter"))), **row} for row in rows]
    return table(rows, GRADIENTS).drop_duplicates(["step", "layer", "parameter"], keep="last", ignore_index=True)


def layer_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows of layers.jsonl as a table; if a layer was measured twice at a step, the later row counts."""
    return table(rows, LAYERS).drop_duplicates(["step", "layer"], keep="last", ignore_index=True)


def norm_role(parameter: str) -> str | None:
    """Return "attention.output_norm" for "model.layers.0.attention.output_norm.weight", None for others."""
    for branch, norm in itertools.pairwise(parameter.split(".")):
        if branch in ("attention", "mlp") and norm in ("input_norm", "output_norm", "stream_norm"):
            return f"{branch}.{norm}"
    return None


def step_of(folder_name: str) -> int | None:
    """Return the step of a folder in checkpoints/, weights/ or images/: 500 of "step_000500"; None of other names."""
    match = re.fullmatch(r"step_(\d{6,})", folder_name)
    return int(match[1]) if match else None


def placement_of(config: Mapping[str, Any]) -> str:
    """Return the placement in a configuration: "mixed" if layers differ, "unknown" if it has none."""
    value = setting(config, "task.model.norm_placement")
    names = {str(name) for name in (value if isinstance(value, list) else [value])}
    if len(names) > 1:
        return "mixed"
    name = next(iter(names), None)
    return name if name is not None and name in CHOICES else "unknown"


def read_run(folder: str | Path) -> Record:
    """Read a run folder, whether or not the run is finished.

    Raises:
        InputError: It is not a run folder, or its config.yaml cannot be read.
    """
    folder = Path(folder)
    config = read_config(folder)
    notes: list[str] = []
    setting_facts = read_setting_facts(folder)
    if setting_facts is None:
        notes.append(
            "settings.json is missing, as in runs of older versions: without it, any setting that differs, even a seed "
            "or a logging interval, puts runs in separate groups"
        )
    rows = {name: _read_lines(folder / f"{name}.jsonl", notes) for name in _FILES}
    for row in rows["metrics"]:
        row["is_validation"] = any(name.startswith("validation_") for name in row)
    record = Record(
        label=str(config.get("name") or folder.resolve().name),
        folder=folder,
        config=config,
        environment=_read_environment(folder / "environment.json", notes),
        metrics=table(rows["metrics"], METRICS).drop_duplicates(
            ["step", "is_validation"], keep="last", ignore_index=True
        ),
        activations=activation_table(rows["activations"]),
        gradients=gradient_table(rows["gradients"]),
        layers=layer_table(rows["layers"]),
        events=_read_lines(folder / "events.jsonl", notes),
        placement=placement_of(config),
        setting_facts=setting_facts,
    )
    return replace(record, notes=(*notes, *_state_notes(record)))


def read_runs(arguments: Sequence[str]) -> tuple[list[Record], list[str]]:
    """Read each run once and give each a distinct label.

    Args:
        arguments: Run folders; patterns that the shell did not expand are expanded here.

    Returns:
        The records, and notes about the arguments.

    Raises:
        InputError: Some arguments are not run folders; all are reported.
    """
    folders, notes, faults = _expand(arguments)
    records: list[Record] = []
    for folder in folders:
        try:
            records.append(read_run(folder))
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("\n".join(faults))
    return distinct_labels(records), notes


def distinct_labels(records: Sequence[Record]) -> list[Record]:
    """Return the records, with as much of the path prepended to equal labels as it takes to distinguish them."""
    labels = [record.label for record in records]
    for count in range(1, 64):
        repeated = {label for label in labels if labels.count(label) > 1}
        if not repeated:
            break
        parts = [record.folder.resolve().parts[-count - 1 :] for record in records]
        labels = ["/".join(p) if label in repeated else label for label, p in zip(labels, parts, strict=True)]
    return [replace(record, label=label) for record, label in zip(records, labels, strict=True)]


def absence(record: Record, name: str) -> str:
    """Return the reason why a run has no rows of `name` ("activations", "gradients", "layers")."""
    if not record.config:
        return f"{record.label}: {name} were not measured"
    probes = record.config.get("probes")
    every = f"probes.{name}_every"
    if isinstance(probes, Mapping) and f"{name}_every" in probes and probes[f"{name}_every"] is None:
        return f"{record.label}: no {name}.jsonl: {every} was null"
    if (record.folder / f"{name}.jsonl").exists():
        return f"{record.label}: {name}.jsonl has no rows yet"
    return f"{record.label}: no {name}.jsonl in {record.folder}"


def _expand(arguments: Sequence[str]) -> tuple[list[Path], list[str], list[str]]:
    folders: dict[Path, Path] = {}
    notes: list[str] = []
    faults: list[str] = []
    for text in arguments:
        is_pattern = glob.has_magic(text) and not Path(text).exists()
        matches = sorted(glob.glob(text)) if is_pattern else [text]
        if not matches:
            faults.append(f"{text}: the pattern matches nothing; give run folders, e.g. runs/quickstart/placement-*")
        for path in map(Path, matches):
            if path.resolve() in folders:
                notes.append(f"{path} was given twice; it is shown once.")
            folders.setdefault(path.resolve(), path)
    return list(folders.values()), notes, faults


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a run.

    Raises:
        InputError: The folder is not a run folder, or its config.yaml cannot be read.
    """
    path = folder / "config.yaml"
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        example = "runs/quickstart/placement-peri_lr-3e-3"
        raise InputError(f"{folder}: {what}; give a run folder (it contains config.yaml), e.g. {example}")
    if not path.is_file():
        below = sorted(p.parent for p in folder.glob("*/config.yaml"))
        hint = f"; did you mean {folder}/* ({len(below)} runs)?" if below else ""
        raise InputError(f"{folder}: not a run folder: it has no config.yaml, which python -m train writes{hint}")
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds {type(config).__name__} instead of a run's settings")
    missing = [name for name in ("steps", "task", "optim") if not config.get(name)]  # what every run has
    if missing:
        raise InputError(f"{path}: lacks {missing[0]}: it is cut off or was changed; restore it")
    return config


def _read_environment(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        environment = json.loads(path.read_text())
    except FileNotFoundError:
        notes.append("no environment.json: code version and machine are unknown.")
        return {}
    except (OSError, ValueError, RecursionError):
        environment = None
    if not isinstance(environment, dict) or not _are_facts(environment.get("data")):
        notes.append("environment.json cannot be read: code version and machine are unknown.")
        return {}
    return environment


def _are_facts(data: Any) -> bool:
    """Return whether facts about data have the form that training writes, as far as it is relied on."""
    if data is None:
        return True
    if not isinstance(data, dict) or not isinstance(data.get("tokens_by_source", {}), dict):
        return False
    sources = data.get("sources", {})
    return isinstance(sources, dict) and all(isinstance(source, dict) for source in sources.values())


def _read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file; invalid lines are skipped and noted."""
    if not path.exists():
        if path.stem == "metrics":
            notes.append("no metrics.jsonl: nothing has been logged yet.")
        return []
    lines = path.read_bytes().split(b"\n")
    rows, broken = [], []
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif line.strip():
            broken.append(number)
    if broken and broken[-1] == len(lines):  # a whole file ends with a line break
        notes.append(f"the last line of {path.name} is half-written (line {broken.pop()}); skipped.")
    if broken:
        notes.append(f"{path.name}: skipped {len(broken)} invalid lines, the first of them line {broken[0]}.")
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53 else None


def _state_notes(record: Record) -> list[str]:
    asked, done = record.steps_asked, record.steps_done
    if asked is not None and done < asked:
        return [f"step {done:,} of {asked:,}: the run is in progress or was stopped."]
    return []
