r"""Evaluation of a saved checkpoint: `python -m train.evaluate RUN [key=value ...] [--step N]`.

    python -m train.evaluate runs/middlebury-fdkn-x8 \
        task.data.validation_sources='[{path: data/nyu, split: test, units_per_value: 100}]'

Overrides select other validation data. Runs in one process without the engine; the metrics equal those that the run
itself logs in a validation.
"""

from __future__ import annotations

import argparse
import json
import sys
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
    evaluation = _evaluate(evaluation_config(run, overrides), run, step)
    return evaluation.step, evaluation.metrics


def evaluation_config(run: Path, overrides: Sequence[str]) -> RunConfig:
    """Return a run's configuration with evaluation settings overridden; does not import torch.

    Raises:
        ConfigError: RUN is not a run folder, or an override is invalid, changes the model, or would be ignored.
    """
    as_trained = read_run(run)
    faults = list(_forbidden(overrides, overridable(as_trained)))
    if faults:
        raise ConfigError(faults)
    return load(run / "config.yaml", [*_as_trained(run, as_trained.task, overrides), *overrides])


def overridable(config: RunConfig) -> list[str]:
    """Return the settings that an evaluation may override: its data and metrics. A list counts as one setting."""
    evaluation = {path: setting.evaluation for path, setting in settings_in(config)}
    return [path for path, may in evaluation.items() if may and not nearest(path.rpartition(".")[0], evaluation)]


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


def _forbidden(overrides: Sequence[str], allowed: Sequence[str]) -> Iterator[str]:
    for override in overrides:
        key = override.partition("=")[0]
        if not any(f"{key}.".startswith(f"{path}.") for path in allowed):
            yield (
                f"{key}: cannot be overridden; only evaluation settings can, e.g. task.data.validation_sources "
                f"(all: {', '.join(allowed)})"
            )


class Evaluation(NamedTuple):
    """The metrics of a checkpoint.

    Args:
        step: Step of the checkpoint.
        metrics: `validation_*`.
        data: What was read, a line each.
    """

    step: int
    metrics: dict[str, float]
    data: list[str]


def _evaluate(config: RunConfig, run: Path, step: int | None) -> Evaluation:
    import torch
    from torch import nn

    from train.checkpoint.checkpoint import CheckpointReader
    from train.evaluate.validation import validation_chunks, validation_means
    from train.export.model_folder import chosen_checkpoint, load_model
    from train.ranks.distributed import World
    from train.tasks import build_task

    source, task = chosen_checkpoint(run, step), build_task(config)
    task.open_validation()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(task, source).eval()
    nn.Module.to(model, device)
    chunks = validation_chunks(task.validation_sets, size=config.micro_batch_size, ranks=1)
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=device)
    means = validation_means(task, model, chunks, world=world)
    assert means is not None, "no stop can be requested here"
    return Evaluation(CheckpointReader(source).progress.step, task.validation_report(means), task.describe_validation())


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    options = _parse(arguments)
    try:
        return _print_metrics(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description="Evaluate a saved checkpoint.")
    parser.add_argument("run", type=Path, help="run folder, for example runs/NAME")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="evaluation settings, for example task.data.validation_sources=...",
    )
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest intact one)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")
    return parser.parse_intermixed_args(arguments)


def _print_metrics(options: argparse.Namespace) -> int:
    config = evaluation_config(options.run, options.overrides)
    from train.checkpoint.checkpoint import CheckpointError
    from train.data.damage import DamagedDataError
    from train.observe.jsonl import strict

    try:
        step, metrics, data = _evaluate(config, options.run, options.step)
    except (CheckpointError, DamagedDataError, OSError) as error:
        print(f"evaluation failed: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(strict({"step": step, **metrics, "data": data})))
        return 0
    print(f"step {step} of {options.run}")
    for line in data:
        print(f"  {line}")
    for name, value in metrics.items():
        print(f"  {name.removeprefix('validation_').replace('_', ' '):28}{value:12.6g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
