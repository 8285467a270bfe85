r"""A checkpoint judged again, on other data if asked: `python -m train.evaluate RUN [key=value ...] [--step N]`.

    python -m train.evaluate runs/middlebury-fdkn-x8 \
        task.data.validation_sources='[{path: data/nyu, split: test, units_per_value: 100}]'

One process, no engine; the figures are those that a validation of the run itself would log.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

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
        overrides: Settings of the task's data and figures, as on the command line.
        step: Which checkpoint; None: the newest.

    Returns:
        The checkpoint's step, and the `validation_*` figures.

    Raises:
        ConfigError: RUN is no run, has no such checkpoint, or an override is wrong, changes the model, or would not be
            read; or there is no such data.
        CheckpointError: The checkpoint is damaged.
    """
    return _evaluate(evaluation_config(run, overrides), run, step)


def evaluation_config(run: Path, overrides: Sequence[str]) -> RunConfig:
    """Return a run's configuration with other settings of its evaluation; needs no torch.

    Raises:
        ConfigError: RUN is no run, or an override is wrong, changes the model, or would not be read.
    """
    as_trained = read_run(run)
    faults = list(_out_of_place(overrides, overridable(as_trained)))
    if faults:
        raise ConfigError(faults)
    return load(run / "config.yaml", [*_as_trained(run, as_trained.task, overrides), *overrides])


def overridable(config: RunConfig) -> list[str]:
    """Return the settings that an evaluation may override: where and how the model is judged. Lists count as one."""
    evaluation = {path: setting.evaluation for path, setting in settings_in(config)}
    return [path for path, may in evaluation.items() if may and not nearest(path.rpartition(".")[0], evaluation)]


def _as_trained(run: Path, trained: TaskConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Yield the settings by which a language model can read other text.

    Its tokens are those that it has learned: a tokenizer made of the text would be another with other text. And other
    sources take the place of a part of the text that was trained on.
    """
    if isinstance(trained, LanguageModelConfig) and any(override.startswith("task.data.") for override in overrides):
        yield f"task.data.tokenizer={run / 'assets'}"
        if any(override.startswith("task.data.validation_sources") for override in overrides):
            yield "task.data.validation_fraction=null"


def _out_of_place(overrides: Sequence[str], allowed: Sequence[str]) -> Iterator[str]:
    for override in overrides:
        key = override.partition("=")[0]
        if not any(f"{key}.".startswith(f"{path}.") for path in allowed):
            yield (
                f"{key}: can not be another than the run's; what may be is where it is judged, as "
                f"task.data.validation_sources (all: {', '.join(allowed)})"
            )


def _evaluate(config: RunConfig, run: Path, step: int | None) -> tuple[int, dict[str, float]]:
    import numpy as np
    import torch
    from torch import nn

    from train.checkpoint.checkpoint import CheckpointReader
    from train.evaluate.validation import validation_means
    from train.export.model_folder import chosen_checkpoint, load_model
    from train.ranks.distributed import World
    from train.tasks import build_task

    source, task = chosen_checkpoint(run, step), build_task(config)
    task.open_validation()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(task, source).eval()
    nn.Module.to(model, device)
    samples, size = task.num_validation_samples, config.micro_batch_size
    chunks = [np.arange(samples)[first : first + size] for first in range(0, samples, size)]
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=device)
    means = validation_means(task, model, chunks, world=world)
    assert means is not None, "nobody asks it to stop"
    return CheckpointReader(source).progress.step, task.validation_report(means)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = _parse(arguments)
    try:
        return _print_metrics(given)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description="Judge a checkpoint again.")
    parser.add_argument("run", type=Path, help="a run folder, like runs/NAME")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="task.data.validation_sources=...: other data"
    )
    parser.add_argument("--step", type=int, help="which checkpoint; default: the newest")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    return parser.parse_intermixed_args(arguments)


def _print_metrics(given: argparse.Namespace) -> int:
    config = evaluation_config(given.run, given.overrides)
    from train.checkpoint.checkpoint import CheckpointError
    from train.observe.jsonl import strict

    try:
        step, metrics = _evaluate(config, given.run, given.step)
    except (CheckpointError, OSError) as error:
        print(f"evaluation failed: {error}", file=sys.stderr)
        return 1
    if given.json:
        print(json.dumps(strict({"step": step, **metrics})))
        return 0
    print(f"step {step} of {given.run}")
    for name, value in metrics.items():
        print(f"  {name.removeprefix('validation_').replace('_', ' '):28}{value:12.6g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
