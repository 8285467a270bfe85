"""The first log lines of a run: its model, data and budget, and a warning if a text is repeated often."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests.ranks import Ranks
from tests.tiny import tiny_file
from train.config.load import load
from train.rank import train_rank


def messages(path: str, overrides: list[str]) -> list[tuple[str, str]]:
    """Train on a rank; return what is logged when the run is assembled, with its level."""
    logged: list[tuple[str, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append((record.levelname, record.getMessage()))
    logger = logging.getLogger("train.observe.announcement")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        assert train_rank(load(path, overrides)) == 0
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return logged


def test_a_start_tells_model_data_and_budget(ranks: Ranks, tmp_path: Path) -> None:
    main, other = ranks(2, messages, str(tiny_file(tmp_path)), ["steps=2"])
    environment = json.loads((tmp_path / "runs/tiny/environment.json").read_text())
    facts, budget, parameters = environment["data"], environment["budget"], environment["parameters"]
    lines = [line for level, line in main if level == "INFO"]
    assert lines[0] == (
        f"tiny: language model with {parameters:,} parameters, trained by 2 ranks on cpu in fp32 at ZeRO stage 1"
    )
    windows, size = facts["training_windows"], sum(f.stat().st_size for f in (tmp_path / "corpus").iterdir())
    assert lines[1] == (
        f"training data: {facts['training_documents']} documents, {facts['training_bytes'] / 1000:.1f} kB, "
        f"{facts['training_tokens']:,} tokens, {windows:,} windows"
    )
    assert lines[3].startswith(f"  task.data.sources[0] {tmp_path}/corpus/*.txt: 60 files, 60 documents, ")
    assert f"{size / 1000:.1f} kB" in lines[3]
    assert lines[4:6] == [
        "each step: 8 windows (2 ranks x 1 micro-batch x 4 samples), 128 tokens",
        f"the whole run: 2 steps, 16 windows, 256 tokens ({256 / parameters:.3g} per parameter); "
        f"{16 / windows:.3g} epochs over the training data",
    ]
    assert (budget["tokens"], budget["epochs"]) == (256, pytest.approx(16 / windows))
    assert "WARNING" not in {level for level, _ in [*main, *other]}


def test_many_epochs_of_a_small_text_are_warned_of_once(ranks: Ranks, tmp_path: Path) -> None:
    overrides = ["steps=20", "global_batch_size=64", "micro_batch_size=32", "task.data.sequence_length=32"]
    overrides += [f"task.data.sources=[{tmp_path}/corpus/00*.txt]", "task.data.validation_fraction=null"]
    overrides += [f"task.data.validation_sources=[{tmp_path}/corpus/01*.txt]"]
    of_ranks = ranks(2, messages, str(tiny_file(tmp_path)), overrides)
    windows = json.loads((tmp_path / "runs/tiny/environment.json").read_text())["data"]["training_windows"]
    ((_, warning),) = [line for logged in of_ranks for line in logged if line[0] == "WARNING"]
    assert warning.startswith(
        f"{windows} windows, 20 steps x 64 samples: {20 * 64 / windows:.3g} epochs over the training data"
    )
