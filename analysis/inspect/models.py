"""Models to inspect, resolved from the command line, and the saved steps of a run.

MODEL is a Hugging Face folder or hub name (NAME, NAME@REVISION), or a run folder: RUN (newest saved step), RUN@STEP,
RUN@100,500, RUN@all.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.checkpoints import damage
from analysis.runs import InputError, read_config, step_of

_REPOSITORY = Path(__file__).parents[2]  # where `python -m train.export` runs


@dataclass(frozen=True)
class Subject:
    """A model to inspect, at one or several steps.

    Attributes:
        label: Name for people, distinct within an inspection.
        name: Folder or hub name.
        steps: Kept steps of a run, ascending; empty for a model that is no run.
        notes: Remarks for the reader, such as a newer step that is damaged.
    """

    label: str
    name: str
    steps: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def named(given: Sequence[str]) -> list[Subject]:
    """Return what the user named, each with a label of its own.

    Raises:
        InputError: Some arguments are not models, or some steps were not saved; all are reported.
    """
    subjects: list[Subject] = []
    faults: list[str] = []
    for name in given:
        try:
            subjects.append(_subject(name))
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("\n".join(faults))
    return _distinct(subjects)


def _subject(given: str) -> Subject:
    path, _, asked = given.rpartition("@")
    if not path or not (Path(path) / "config.yaml").is_file():
        path, asked = given, ""
    folder = Path(path)
    if (folder / "config.yaml").is_file():
        name = read_config(folder).get("name") or folder.resolve().name
        steps, notes = _chosen_steps(folder, asked)
        return Subject(f"{name}@{steps[0]}" if len(steps) == 1 else str(name), path, steps, notes)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(
            f"{given}: has neither config.json (a Hugging Face model) nor config.yaml (a run); give a folder with one"
        )
    if folder.is_file():
        raise InputError(f"{given}: is a file; give the folder of a Hugging Face model or of a run")
    named = given.partition("@")[0]  # of NAME@REVISION
    if not folder.exists() and (named.count("/") != 1 or given.startswith((".", "/", "~", "runs/"))):
        if re.fullmatch(r"[\w.-]+", named):
            return Subject(given, given)  # a hub name of the old kind, like gpt2
        raise InputError(
            f"{given}: does not exist; give a model folder, a run folder (e.g. runs/NAME), or a hub name "
            "(OWNER/NAME, OWNER/NAME@REVISION)"
        )
    return Subject(folder.resolve().name if folder.is_dir() else given, given)


def _distinct(subjects: Sequence[Subject]) -> list[Subject]:
    labels: list[str] = []
    for subject in subjects:
        label, number = subject.label, 2
        while label in labels:
            label, number = f"{subject.label}-{number}", number + 1
        labels.append(label)
    return [replace(subject, label=label) for subject, label in zip(subjects, labels, strict=True)]


def kept_steps(run: Path) -> dict[int, Path]:
    """Return the steps whose weights a run kept: checkpoints, and the bf16 folders of checkpoint.weights_every."""
    folders: dict[int, Path] = {}
    for kind in ("weights", "checkpoints"):  # a checkpoint has all digits, so it counts where both are
        for folder in (run / kind).glob("step_*"):
            step = step_of(folder.name)
            if step is not None and (kind == "checkpoints" or (folder / "config.json").is_file()):
                folders[step] = folder
    return dict(sorted(folders.items()))


def _chosen_steps(run: Path, asked: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the steps that were asked for, or the newest that is intact with a note on each newer one."""
    saved_steps = tuple(kept_steps(run))
    if not saved_steps:
        raise InputError(f"{run}: this run has saved no weights yet (see checkpoint.every, checkpoint.weights_every)")
    if asked == "all":
        return saved_steps, ()
    if not asked:
        return _newest_intact(run)
    listed = ", ".join(map(str, saved_steps))
    if not re.fullmatch(r"\d+(,\d+)*", asked):
        raise InputError(f"{run}@{asked}: write @STEP, @STEP,STEP or @all; this run has saved steps {listed}")
    steps = tuple(sorted({int(step) for step in asked.split(",")}))
    if missing := [str(step) for step in steps if step not in saved_steps]:
        raise InputError(f"{run}@{asked}: step {', '.join(missing)} was not saved; this run has saved steps {listed}")
    return steps, ()


def _newest_intact(run: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    damaged: list[str] = []
    for step, folder in reversed(kept_steps(run).items()):
        fault = damage(folder) if folder.parent.name == "checkpoints" else None
        if fault is None:
            return (step,), tuple(f"{note}; step {step} is shown instead." for note in damaged)
        damaged.append(f"{folder} is damaged: {fault}")
    raise InputError(f"{run}: has no intact step: {'; '.join(damaged)}")


@contextmanager
def folder_of(subject: Subject, step: int | None) -> Iterator[str]:
    """Give a Hugging Face folder or hub name; a checkpoint of a run is exported to a temporary one.

    Raises:
        InputError: The export reports that the run cannot be read.
        RuntimeError: The export failed.
    """
    if step is None:
        yield subject.name
        return
    source = kept_steps(Path(subject.name))[step]
    if source.parent.name == "weights":
        yield str(source)
        return
    with tempfile.TemporaryDirectory(prefix="inspect-") as temporary:
        out = Path(temporary) / f"step_{step:06d}"
        run = Path(subject.name).resolve()
        command = [sys.executable, "-m", "train.export", str(run), str(out), "--step", str(step)]
        command += ["--format", "periln", "--no-figure"]
        done = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode == 2:
            raise InputError(f"{subject.name}@{step}: {done.stderr.strip()}")
        if done.returncode:
            raise RuntimeError(f"exporting step {step} of {run} failed:\n{done.stderr.strip()}")
        yield str(out)
