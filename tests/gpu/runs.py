"""Words of training runs, and what they leave in their folders."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.gpu.bench import ROOT, Bench, Child
from tests.gpu.kit import data
from tests.gpu.stage import last_line
from train.config.load import load
from train.config.run import RunConfig

NEVER = 10_000_000  # an interval in steps that no run here reaches
_UNMEASURED = ["probes.activations_every=null", "probes.gradients_every=null"]
_UNSAVED = [f"evaluate_every={NEVER}", f"checkpoint.every={NEVER}", "checkpoint.weights_every=null"]
_TINY = [
    "task.model.intermediate_size=128",
    "task.model.num_hidden_layers=2",
    "engine.compile=false",  # inductor takes longer than a tiny run
]
_TINY_HEADS = ["task.model.num_attention_heads=2", "task.model.num_key_value_heads=1", "task.model.hidden_size=64"]


def small(bench: Bench, name: str, *settings: str, config: str = "language_model/quickstart") -> list[str]:
    """Return the words of a run of the quickstart's decoder on the packed data."""
    packed = data.read_packed(Path(bench.options.data))
    length = packed.lengths[0]
    words = [
        *_of(bench, config, name),
        *data.overrides(length),
        f"task.model.vocab_size={packed.tokenizer_size}",
        f"task.model.max_position_embeddings={length}",
        "task.data.validation_windows=16",
        "log_every=1",
        *_UNMEASURED,
    ]
    tiny = [*_TINY[:2], "task.model.hidden_size=32", "global_batch_size=4", "micro_batch_size=2"]
    return [*words, *(tiny if bench.options.tiny else []), *settings]


def large(
    bench: Bench, config: str, name: str, *settings: str, micro: int, batch: int, length: int = 1, probed: bool = False
) -> list[str]:
    """Return the words of a run with a real model's configuration that is to be killed: it saves nothing.

    Args:
        bench: The stage.
        config: Of configs/language_model/: 400m, 1.5b or 3.2b.
        name: Of the run.
        settings: Further settings.
        micro: Micro-batch size.
        batch: Global batch size.
        length: Index of the sequence length among the packed ones.
        probed: Whether `settings` say when to measure; else never.
    """
    packed = data.read_packed(Path(bench.options.data))
    words = [
        *_of(bench, f"language_model/{config}", name),
        *data.overrides(packed.lengths[length]),
        "task.data.validation_windows=8",
        "log_every=1",
        *_UNSAVED,
        *([] if probed else _UNMEASURED),
    ]
    if bench.options.tiny:
        micro, batch = min(micro, 2), min(batch, 4)
        vocabulary = f"task.model.vocab_size={packed.tokenizer_size}"
        words += [*_TINY, *_TINY_HEADS, vocabulary]
    return [*words, f"micro_batch_size={micro}", f"global_batch_size={batch}", *settings]


def _of(bench: Bench, config: str, name: str) -> list[str]:
    return [str(ROOT / f"configs/{config}.yaml"), f"name={name}", f"output_dir={bench.work / 'runs'}"]


def loaded(words: Sequence[str]) -> RunConfig:
    """Return the configuration that words describe."""
    return load(words[0], words[1:])


def folder(bench: Bench, name: str) -> Path:
    """Return a run's folder."""
    return bench.work / "runs" / name


def rows(run: Path, file: str = "metrics") -> list[dict[str, Any]]:
    """Return the whole lines of a file of a run that may be growing."""
    path = run / f"{file}.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def training_rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl of training steps."""
    return [row for row in rows(run) if "validation_loss" not in row]


def train_until(
    child: Child, run: Path, *, until: Callable[[list[dict[str, Any]]], bool], seconds: float
) -> tuple[list[dict[str, Any]], float]:
    """Let a run train until its rows are enough or the seconds are over, then kill it.

    Returns:
        The rows, and the seconds until the first.

    Raises:
        RuntimeError: The run ended by itself.
    """
    began, first = time.monotonic(), 0.0
    try:
        while time.monotonic() < began + seconds:
            found = training_rows(run)
            first = first or (time.monotonic() - began) * bool(found)
            if until(found):
                break
            if child.poll() is not None:
                raise RuntimeError(f"{child.name} ended with {child.code}: {last_line(child.log)}")
            time.sleep(0.05)
    finally:
        child.kill()
    return training_rows(run), first
