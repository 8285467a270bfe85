"""Validation text by itself: the windows of a prepared corpus, set by set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import tiny_run, write_corpus
from train.config.errors import ConfigError
from train.config.tasks.language_model import LanguageModelConfig, SourceConfig, TextDataConfig
from train.data.text import cache
from train.data.text.tokenizer import load
from train.data.text.validation import ValidationText, labels, without_labels
from train.evaluate.validation import validation_chunks
from train.tasks import build_task


def data_config(folder: Path, *labels_of: str | None, **changes: int) -> TextDataConfig:
    """Return the tiny corpus with a validation source of three documents for each label."""
    sources = []
    for number, label in enumerate(labels_of):
        path = write_corpus(folder / f"set{number}", documents=3, seed=number + 1)
        sources.append(SourceConfig(path=str(path), label=label))
    task = tiny_run(folder).task
    assert isinstance(task, LanguageModelConfig)
    changed = replace(task.data, validation_fraction=None, validation_sources=tuple(sources))
    return replace(changed, **changes)


def read(config: TextDataConfig, folder: Path) -> tuple[cache.TextData, ValidationText]:
    prepared = cache.prepare(without_labels(config), vocab_size=300)
    prepared.save_tokenizer(folder / "tokenizer")
    return prepared, ValidationText(config, load(str(folder / "tokenizer"), vocab_size=300))


def test_without_labels_the_windows_are_those_of_the_prepared_corpus(tmp_path: Path) -> None:
    prepared, text = read(data_config(tmp_path, None, None), tmp_path)
    ids = np.arange(prepared.num_validation_samples)
    assert text.sizes == [len(ids)]
    assert np.array_equal(text.read(ids), prepared.read("validation", ids))
    assert np.array_equal(text.target_bytes(ids), prepared.target_bytes(ids))
    (facts,) = text.facts
    names = {"documents", "tokens", "windows", "tokens_dropped"}
    assert {name: facts[name] for name in names} == {name: prepared.facts[f"validation_{name}"] for name in names}
    assert facts["bytes"] == sum(file.stat().st_size for file in tmp_path.glob("set*/*"))


def test_windows_do_not_span_sets(tmp_path: Path) -> None:
    """The sources of a label are one set, wherever they stand in the list."""
    config = data_config(tmp_path, "a", None, "a")
    _, text = read(config, tmp_path)
    assert labels(config) == ["a", None]
    alone = [
        read(replace(config, validation_sources=chosen), tmp_path)[1]
        for chosen in (config.validation_sources[::2], config.validation_sources[1:2])
    ]
    assert text.sizes == [each.num_samples for each in alone]
    ids = np.arange(text.num_samples)
    assert np.array_equal(text.read(ids), np.concatenate([e.read(np.arange(e.num_samples)) for e in alone]))
    assert np.array_equal(text.sets(ids), np.repeat([0, 1], text.sizes))
    for number, chunk in enumerate(validation_chunks(text.sizes, size=4, ranks=1)):
        assert len(set(text.sets(chunk))) == 1, number
    assert text.fingerprint != alone[0].fingerprint


def test_a_limit_holds_for_each_set_and_ends_the_reading(tmp_path: Path) -> None:
    _, text = read(data_config(tmp_path, "a", "b", validation_windows=2), tmp_path)
    assert text.sizes == [2, 2]
    assert [(facts["documents"], facts["files"]) for facts in text.facts] == [(1, 1), (1, 1)]


def test_labels_do_not_change_the_prepared_corpus(tmp_path: Path) -> None:
    config = data_config(tmp_path, "a", "b")
    plain = without_labels(config)
    assert [source.label for source in plain.validation_sources] == [None, None]
    keys = {cache._key(without_labels(c), 300) for c in (config, plain)}
    assert len(keys) == 1


def test_a_set_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    config = data_config(tmp_path, "a")
    (tmp_path / "short.txt").write_text("short")
    short = SourceConfig(path=str(tmp_path / "short.txt"), label="b")
    with pytest.raises(ConfigError, match=r"validation_sources\[1\]: not enough text of the label b for a single"):
        read(replace(config, validation_sources=(*config.validation_sources, short)), tmp_path)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("task.data.sources=[{path: a.txt, label: a}]", "task.data.sources.0.label: has no effect on training data"),
        ("task.data.validation_sources=[{path: a.txt, label: a b}]", "'a b' cannot be part of a metric's name"),
    ],
)
def test_labels_that_name_no_metric_are_refused(tmp_path: Path, override: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        tiny_run(tmp_path, override)


def test_every_batch_reports_every_label(tmp_path: Path) -> None:
    """So that all ranks reduce the same metrics; a set without samples in the batch has weight 0."""
    sets = [write_corpus(tmp_path / name, documents=1, seed=9) for name in ("x", "y")]
    listed = ", ".join(f"{{path: {path}, label: {path.name}}}" for path in sets)
    config = tiny_run(tmp_path, "task.data.validation_fraction=null", f"task.data.validation_sources=[{listed}]")
    task = build_task(config)
    task.open_data()
    assert len(task.validation_sets) == 2
    model = task.build_model()
    with torch.no_grad():
        sums = task.evaluate(model, task.batch(np.array([0, 1]), split="validation", step=1))
    assert {name: float(weight) for name, (_, weight) in sums.items() if name.endswith(".loss")} == {
        "x.loss": 32.0,
        "y.loss": 0.0,
    }
    assert sums["x.loss"][0] == sums["loss"][0]
