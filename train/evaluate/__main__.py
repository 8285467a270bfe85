r"""Evaluation of saved models: `python -m train.evaluate RUN|FOLDER [key=value ...] [--step N]`.

    python -m train.evaluate runs/middlebury-fdkn-x8 \
        task.data.validation_sources='[{path: data/nyu, split: test, units_per_value: 100}]'
    python -m train.evaluate exported/mine task.data.validation_sources='[other/*.txt]'

Overrides select other validation data. Runs in one process without the engine; the metrics of a run equal those that
it logs in a validation itself. A folder is an exported language model, of this project or of transformers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from train.config.errors import ConfigError
from train.config.facts.run_layout import CONFIG
from train.evaluate.folder import CONFIG_JSON, evaluate_folder, folder_config
from train.evaluate.run import Evaluation, evaluate_checkpoint, evaluation_config


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    options = _parse(arguments)
    try:
        return _print_metrics(_evaluation(options), is_json=options.json)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description="Evaluate a saved model.")
    parser.add_argument(
        "model",
        type=Path,
        metavar="RUN|FOLDER",
        help="run folder, for example runs/NAME, or the folder of an exported language model",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="evaluation settings, for example task.data.validation_sources=...; a folder needs these sources",
    )
    parser.add_argument("--step", type=int, help="step of a run's checkpoint (default: the newest intact one)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")
    return parser.parse_intermixed_args(arguments)


def _evaluation(options: argparse.Namespace) -> Callable[[], Evaluation]:
    """Return the evaluation to run, after checking all that needs no torch.

    Raises:
        ConfigError: It is neither a run nor a model, or an override is wrong.
    """
    model, overrides, step = options.model, options.overrides, options.step
    if (model / CONFIG).is_file():
        of_run = evaluation_config(model, overrides)
        return lambda: evaluate_checkpoint(of_run, model, step)
    if not (model / CONFIG_JSON).is_file():
        raise ConfigError(
            [
                f"{model}: not a run folder (it has no {CONFIG}) and not an exported model (it has no {CONFIG_JSON}); "
                "pass one like runs/NAME, or the folder of a model; one on the hub first: hf download OWNER/NAME "
                "[--revision BRANCH] --local-dir FOLDER"
            ]
        )
    if step is not None:
        raise ConfigError([f"--step: {model} is an exported model, which has one state; remove it, or name the run"])
    of_folder = folder_config(model, overrides)
    return lambda: evaluate_folder(of_folder, model)


def _print_metrics(evaluation: Callable[[], Evaluation], *, is_json: bool) -> int:
    from train.checkpoint.checkpoint import CheckpointError
    from train.data.damage import DamagedDataError
    from train.observe.jsonl import strict

    try:
        step, model, metrics, data = evaluation()
    except (CheckpointError, DamagedDataError, OSError) as error:
        print(f"evaluation failed: {error}", file=sys.stderr)
        return 1
    if is_json:
        of_run = {} if step is None else {"step": step}
        print(json.dumps(strict({**of_run, "model": model, **metrics, "data": data})))
        return 0
    print(model)
    for line in data:
        print(f"  {line}")
    for name, value in metrics.items():
        print(f"  {name.removeprefix('validation_').replace('_', ' '):28}{value:12.6g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
