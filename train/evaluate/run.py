"""Evaluation of a run's checkpoint on its own validation split, or on other data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from train.config.errors import ConfigError
from train.config.load import load, read_run
from train.config.run import RunConfig
from train.config.setting import nearest, settings_in
from train.config.tasks.kinds import TaskConfig
from train.config.tasks.language_model import LanguageModelConfig


def evaluate(run: Path, overrides: Sequence[str] = (), *, step: int | None = None) -> tuple[int, dict[str, float]]:
    """Evaluate a run's checkpoint on its validation split.

    Args:
        run: A run folder.
        overrides: Evaluation settings of the task, as on the command line.
        step: Step of the checkpoint; None for the newest that is intact.

    Returns:
        The checkpoint's step and the `validation_*` metrics.

    Raises:
        ConfigError: RUN is not a run folder, has no such checkpoint or no intact one; an override is invalid, changes
            the model, or would be ignored; or the data does not exist.
    """
    evaluation = evaluate_checkpoint(evaluation_config(run, overrides), run, step)
    assert evaluation.step is not None
    return evaluation.step, evaluation.metrics


def evaluation_config(run: Path, overrides: Sequence[str]) -> RunConfig:
    """Return a run's configuration with evaluation settings overridden; does not import torch.

    Raises:
        ConfigError: RUN is not a run folder, or an override is invalid, changes the model, or would be ignored.
    """
    as_trained = read_run(run)
    faults = list(forbidden(overrides, overridable(as_trained)))
    if faults:
        raise ConfigError(faults)
    return load(run / "config.yaml", [*_as_trained(run, as_trained.task, overrides), *overrides])


def overridable(config: RunConfig, *, of_folder: bool = False) -> list[str]:
    """Return the settings that an evaluation may override: its data and metrics. A list counts as one setting.

    Args:
        config: A configuration with the task that is evaluated.
        of_folder: Whether an exported folder is evaluated, not a run.
    """
    evaluation = {path: setting.evaluation for path, setting in settings_in(config)}
    return [
        path
        for path, may in evaluation.items()
        if (may is True or (may and not of_folder)) and not nearest(path.rpartition(".")[0], evaluation)
    ]


def _as_trained(run: Path, trained: TaskConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Yield the overrides that let a language model read other text, or its validation sources alone.

    The run's own tokenizer is used, as one trained on other text would differ. Other validation sources replace the
    held-out fraction of the training text, and are read whole.
    """
    if not isinstance(trained, LanguageModelConfig):
        return
    if trained.data.validation_sources or any(override.startswith("task.data.") for override in overrides):
        yield f"task.data.tokenizer={run / 'assets'}"
    if any(override.startswith("task.data.validation_sources") for override in overrides):
        yield from ("task.data.validation_fraction=null", "task.data.validation_windows=null")


def forbidden(overrides: Sequence[str], allowed: Sequence[str]) -> Iterator[str]:
    """Yield a fault for each override of a setting that is not among the allowed ones."""
    for override in overrides:
        key = override.partition("=")[0]
        if not any(f"{key}.".startswith(f"{path}.") for path in allowed):
            yield (
                f"{key}: cannot be overridden; only evaluation settings can, e.g. task.data.validation_sources "
                f"(all: {', '.join(allowed)})"
            )


class Evaluation(NamedTuple):
    """The metrics of a model.

    Args:
        step: Step of the checkpoint; None for a folder.
        model: What was evaluated.
        metrics: `validation_*`.
        data: What was read, a line each.
    """

    step: int | None
    model: str
    metrics: dict[str, float]
    data: list[str]


def evaluate_checkpoint(config: RunConfig, run: Path, step: int | None) -> Evaluation:
    """Evaluate a run's checkpoint with a configuration from `evaluation_config`.

    Raises:
        ConfigError: There is no such checkpoint or no intact one, or the data does not exist.
    """
    from train.checkpoint.checkpoint import CheckpointReader
    from train.evaluate.validation import validated
    from train.export.model_folder import chosen_checkpoint, load_model
    from train.tasks import build_task

    source, task = chosen_checkpoint(run, step), build_task(config)
    task.open_validation()
    metrics = validated(task, load_model(task, source), size=config.micro_batch_size)
    saved_step = CheckpointReader(source).progress.step
    return Evaluation(saved_step, f"step {saved_step} of {run}", metrics, task.describe_validation())
