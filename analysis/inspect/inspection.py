"""Inspection of finished models: `python -m analysis inspect MODEL [MODEL ...] [--text FILE] --out DIR`.

Measures any causal language model of transformers, or a run at its saved steps, on windows of text with the statistics
of the training probes, and recognizes its norm placement. DIR is written atomically:

    index.html, figures/              the page (analysis/inspect/page.py)
    LABEL/activations.jsonl           and gradients.jsonl, massive.jsonl: a line per measurement, `step` the kept step
    LABEL/angular.json                angular distances between depths, per step
    LABEL/summary.json                placement per layer with module names, loss, text, windows, dtype, versions
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from analysis.inspect import models, page
from analysis.inspect.architecture import Architecture, ArchitectureError, recognize
from analysis.inspect.inspected import Inspected, Snapshot, data_files
from analysis.inspect.loading import LoadedModel, check, load
from analysis.inspect.measurement import is_causal, measure_model
from analysis.inspect.models import Subject
from analysis.inspect.settings import DEFAULT_LENGTH, Settings
from analysis.inspect.windows import Text, Windows, cut
from analysis.page.writing import check_out, write_page
from analysis.runs import InputError

KIND = "inspection"


def inspect(names: Sequence[str], *, out: Path, text: Path | None = None, settings: Settings) -> Path:
    """Measure models and write the page; returns the path of index.html.

    Args:
        names: MODELs, as on the command line.
        out: Folder to create; an earlier inspection is replaced.
        text: Text to measure on; None: source code of the standard library.
        settings: Settings of the measurement.

    Raises:
        InputError: The input is invalid; nothing is written.
    """
    check_out(out, kind=KIND)
    if settings.windows < 1 or (settings.sequence_length is not None and settings.sequence_length < 2):
        raise InputError("--windows must be at least 1 and --sequence-length at least 2")
    passage = Text(text)
    subjects = models.named(names)
    for subject in subjects:
        for note in subject.notes:
            print(f"{subject.label}: {note}", file=sys.stderr)
        if not subject.steps:  # a run of ours is a causal language model
            check(subject.name, trust=settings.trust_remote_code)
    inspected = [_inspected(subject, passage, settings) for subject in subjects]
    notes = _notes(inspected)
    folders = _folder_names([item.subject.label for item in inspected])
    files: dict[str, str] = {}
    for item, folder in zip(inspected, folders, strict=True):
        files |= {f"{folder}/{name}": content for name, content in data_files(item, text=passage.described).items()}
    sections = page.sections(inspected, text=passage.described, folders=folders, notes=notes)
    labels = [item.subject.label for item in inspected]
    title = f"Inside {', '.join(labels) if len(labels) <= 3 else f'{len(labels)} models'}"
    return write_page(out, title, sections, kind=KIND, lead=f"Measured on {passage.described}.", files=files)


def _inspected(subject: Subject, text: Text, settings: Settings) -> Inspected:
    """Measure one model at all its steps, one loaded at a time."""
    snapshots = [_snapshot(subject, step, text=text, settings=settings) for step in subject.steps or (None,)]
    return Inspected(subject, tuple(snapshots))


def _snapshot(subject: Subject, step: int | None, *, text: Text, settings: Settings) -> Snapshot:
    label = subject.label if step is None else f"{subject.label} step {step}"
    try:
        with models.folder_of(subject, step) as folder:
            loaded = load(
                folder,
                device=settings.device,
                dtype=settings.dtype,
                tokenizer=settings.tokenizer,
                trust=settings.trust_remote_code,
                name=subject.name,
            )
            return _measured(loaded, label=label, step=step or 0, text=text, settings=settings)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{label}: out of memory on the device; try --no-gradients, --dtype bf16, a shorter --sequence-length, or "
            "--device cpu"
        ) from error
    finally:
        loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _measured(loaded: LoadedModel, *, label: str, step: int, text: Text, settings: Settings) -> Snapshot:
    windows = cut(text, loaded.tokenizer, length=_length(loaded, label, settings), count=settings.windows)
    rows = loaded.model.get_input_embeddings().num_embeddings
    if int(windows.tokens.max()) >= rows:
        raise InputError(
            f"{label}: the tokenizer produces token {int(windows.tokens.max())}, but the model has only {rows} "
            "embeddings; pass the model's own tokenizer with --tokenizer PATH"
        )
    if not is_causal(loaded.model):
        raise InputError(
            f"{label}: is not a causal language model: its predictions depend on later tokens; give a decoder"
        )
    architecture = _recognized(loaded, label)
    with_gradients = settings.gradients and not loaded.is_offloaded
    with tqdm(total=len(windows.tokens), desc=label, unit="window", leave=True) as progress:
        measured = measure_model(
            loaded.model, architecture, windows, with_gradients=with_gradients, tick=lambda: _advance(progress)
        )
    notes = [*windows.notes, *_unknown_notes(architecture)]
    if not math.isfinite(measured.loss):
        notes.append("its loss is not finite.")
    if settings.gradients and loaded.is_offloaded:
        notes.append(
            f"no gradients: some weights are offloaded ({loaded.device}), and a backward pass would need all of them "
            "at once."
        )
    return Snapshot(
        step=step,
        architecture=_without_modules(architecture),
        measurement=measured,
        tokens=_token_texts(loaded, windows, measured.largest),
        facts=_facts(loaded, windows),
        notes=tuple(notes),
    )


def _advance(progress: Any) -> None:
    progress.update()


def _length(loaded: LoadedModel, label: str, settings: Settings) -> int:
    limit, asked = loaded.max_length, settings.sequence_length
    if asked is None:
        return min(DEFAULT_LENGTH, limit or DEFAULT_LENGTH)
    if limit is not None and asked > limit:
        raise InputError(f"--sequence-length {asked}: the positions of {label} end at {limit}; write {limit} or less")
    return asked


def _recognized(loaded: LoadedModel, label: str) -> Architecture:
    try:
        return recognize(loaded.model)
    except ArchitectureError as error:
        raise InputError(f"{label}: {error}; inspect supports only decoders made of blocks") from error


def _without_modules(architecture: Architecture) -> Architecture:
    """Drop the references to modules, to free the model: only names are needed from here on."""
    layers = tuple(
        replace(
            layer,
            block=None,  # type: ignore[arg-type]
            attention=layer.attention and replace(layer.attention, first=None, last=None),  # type: ignore[arg-type]
            mlp=layer.mlp and replace(layer.mlp, first=None, last=None),  # type: ignore[arg-type]
        )
        for layer in architecture.layers
    )
    return replace(architecture, layers=layers, final_norm_module=None)


def _unknown_notes(architecture: Architecture) -> list[str]:
    unknown = [layer for layer in architecture.layers if layer.placement == "unknown"]
    reasons = dict.fromkeys(layer.reason for layer in unknown)
    return [
        f"placement not recognized in {sum(layer.reason == reason for layer in unknown)} of "
        f"{len(architecture.layers)} layers, so only their blocks' outputs were measured: {reason}."
        for reason in reasons
    ]


def _token_texts(loaded: LoadedModel, windows: Windows, largest: Sequence[Any]) -> dict[tuple[int, int], str]:
    """Return the text of the tokens at which the largest activations stand, by window and position."""
    return {
        (element.window, element.position): _token_text(loaded.tokenizer, windows.tokens, element)
        for element in largest
    }


def _token_text(tokenizer: Any, tokens: torch.Tensor, element: Any) -> str:
    token = int(tokens[element.window, element.position])
    text = tokenizer.decode([token])
    if not text or "\ufffd" in text:  # a part of a character, or a special token that decode leaves out
        text = str(tokenizer.convert_ids_to_tokens(token))
    return text


def _facts(loaded: LoadedModel, windows: Windows) -> dict[str, Any]:
    vocabulary = json.dumps(sorted(loaded.tokenizer.get_vocab().items())).encode()
    return {
        "class": type(loaded.model).__name__,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "dtype": loaded.dtype,
        "device": loaded.device,
        "windows": len(windows.tokens),
        "sequence_length": windows.tokens.shape[1],
        "first_token": None if windows.bos is None else loaded.tokenizer.convert_ids_to_tokens(windows.bos),
        "num_bytes": windows.num_bytes,
        "vocabulary": hashlib.sha256(vocabulary).hexdigest()[:16],
    }


def _notes(inspected: Sequence[Inspected]) -> list[str]:
    """Return remarks for the reader on the models together and on each of them."""
    notes: list[str] = []
    if len({item.snapshots[0].facts["vocabulary"] for item in inspected}) > 1:
        notes.append("The models have different tokenizers: compare bits per byte, not losses per token.")
    if len({item.snapshots[0].facts["sequence_length"] for item in inspected}) > 1:
        notes.append("The windows differ in length, since some models have fewer positions (see --sequence-length).")
    for item in inspected:
        of_steps = (note for snapshot in item.snapshots for note in snapshot.notes)
        remarks = dict.fromkeys([*item.subject.notes, *of_steps])
        notes += [f"{item.subject.label}: {note}" for note in remarks]
    if any(item.subject.steps for item in inspected):
        notes.append("Step N of a run (RUN@N) is the model with the weights after N updates.")
    return notes


def _folder_names(labels: Sequence[str]) -> list[str]:
    """Return a folder name for each label, distinct, and none that the page uses."""
    folder_names: list[str] = []
    for label in labels:
        name = re.sub(r"[^\w.@+-]+", "_", label).strip(".") or "model"
        while name in (*folder_names, "figures", "index.html"):
            name += "_"
        folder_names.append(name)
    return folder_names
