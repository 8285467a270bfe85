"""A language model and a corpus small enough for a test."""

from __future__ import annotations

import random
from pathlib import Path

import yaml

from train.config.load import load
from train.config.run import RunConfig

WORDS = [
    "the",
    "a",
    "norm",
    "stands",
    "before",
    "after",
    "around",
    "every",
    "layer",
    "and",
    "stream",
    "grows",
    "with",
    "depth",
    "while",
    "training",
    "goes",
    "on",
]


def write_corpus(folder: Path, *, documents: int = 60, seed: int = 0) -> Path:
    """Write text files of random words, a few with characters of two to four bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    for number in range(documents):
        words = generator.choices([*WORDS, "naïve", "Größe", "層", "🙂"], k=200)
        (folder / f"{number:03d}.txt").write_text(" ".join(words) + "\n")
    return folder


def tiny_config(folder: Path) -> dict[str, object]:
    """Return the settings of a run that takes a second, in a folder of its own."""
    return {
        "name": "tiny",
        "output_dir": str(folder / "runs"),
        "steps": 8,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "log_every": 1,
        "evaluate_every": 4,
        "task": {
            "kind": "language_model",
            "model": {
                "vocab_size": 300,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 32,
            },
            "data": {
                "sources": [str(folder / "corpus" / "*.txt")],
                "tokenizer": "byte-bpe",
                "sequence_length": 16,
                "validation_fraction": 0.1,
                "cache_dir": str(folder / "cache"),
                "num_workers": 1,
            },
        },
        "optim": {"lr": 1e-2},
        "engine": {"precision": "fp32", "deterministic": True},
        "checkpoint": {"every": 3, "keep": None},
    }


def tiny_run(folder: Path, *overrides: str) -> RunConfig:
    """Write corpus and configuration where they are missing, and load the configuration."""
    return load(tiny_file(folder), overrides)


def tiny_file(folder: Path) -> Path:
    """Write corpus and configuration where they are missing; returns the configuration's path."""
    if not (folder / "corpus").exists():
        write_corpus(folder / "corpus")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config(folder)))
    return path
