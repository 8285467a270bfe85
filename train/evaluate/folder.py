"""Evaluation of an exported language model on text of the user's choice, with the folder's own tokenizer.

The text is checked and cut into windows as in a run, and the metrics are a run's. Folders of this project are read by
this checkout's own class, others by the class of transformers: no code of a folder is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.config.errors import ConfigError
from train.config.load import load_tree
from train.config.run import RunConfig
from train.config.tasks.language_model import EMBEDDED_CORPUS, LanguageModelConfig
from train.evaluate.run import Evaluation, forbidden, overridable

_LONGEST = 2048  # tokens of a window, unless the user writes task.data.sequence_length
_WINDOWS = 4  # of a pass: their logits are in memory


def folder_config(folder: Path, described: Mapping[str, Any], overrides: Sequence[str]) -> RunConfig:
    """Return what a run would have to be to evaluate a folder's model; does not import torch.

    Args:
        folder: The folder.
        described: Its config.json.
        overrides: Evaluation settings.

    Raises:
        ConfigError: There is no text, or an override is invalid or not allowed.
    """
    positions = _positions(described)
    tree = _tree(folder, min(positions or _LONGEST, _LONGEST))
    faults = list(forbidden(overrides, overridable(load_tree(tree), of_folder=True)))
    if not any(override.startswith("task.data.validation_sources") for override in overrides):
        faults.append(
            "task.data.validation_sources: missing; name the text to evaluate on, as in "
            "task.data.validation_sources='[my/*.txt]'"
        )
    if faults:
        raise ConfigError(faults)
    config = load_tree(tree, overrides)
    assert isinstance(config.task, LanguageModelConfig)
    data = config.task.data
    if not data.validation_sources:
        raise ConfigError(["task.data.validation_sources: is empty; list at least one source, as in [my/*.txt]"])
    if positions is not None and data.sequence_length > positions:
        raise ConfigError(
            [
                f"task.data.sequence_length: {data.sequence_length} exceeds the {positions} positions of {folder}; "
                f"write {positions} or less"
            ]
        )
    return config


def _positions(described: Mapping[str, Any]) -> int | None:
    """Return the longest sequence that a model is made for, None if its configuration does not state it."""
    named = (described.get(key) for key in ("max_position_embeddings", "n_positions"))
    return next((value for value in named if isinstance(value, int) and value > 0), None)


def _tree(folder: Path, length: int) -> dict[str, Any]:
    """Return the settings of a run that reads the folder's tokenizer; what an evaluation does not read is arbitrary."""
    data = {"sources": [EMBEDDED_CORPUS], "tokenizer": str(folder), "sequence_length": length}
    return {
        "name": "evaluation",
        "steps": 1,
        "global_batch_size": 10**7,
        "micro_batch_size": _WINDOWS,
        "task": {"kind": "language_model", "model": {"max_position_embeddings": 10**9}, "data": data},
        "optim": {"lr": 1.0},
    }


def evaluate_folder(config: RunConfig, folder: Path) -> Evaluation:
    """Evaluate a folder's model with a configuration from `folder_config`.

    Raises:
        ConfigError: Model or tokenizer cannot be loaded or do not fit each other, or the text cannot be read.
    """
    from train.data.text.validation import ValidationText
    from train.evaluate.folder_model import load_folder, load_its_tokenizer, native_sums
    from train.evaluate.validation import validated
    from train.tasks.language_model import LanguageModel

    assert isinstance(config.task, LanguageModelConfig)
    loaded = load_folder(folder)
    tokenizer = load_its_tokenizer(folder, vocab_size=loaded.vocab_size)
    task = LanguageModel(config.task, optim=config.optim, seed=config.seed)
    task.validation = ValidationText(config.task.data, tokenizer)
    evaluate = None if loaded.is_ours else native_sums(task)
    metrics = validated(task, loaded.model, size=config.micro_batch_size, evaluate=evaluate)
    return Evaluation(None, f"{folder}: {loaded.in_words}", metrics, task.describe_validation())
