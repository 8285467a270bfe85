r"""Evaluation of saved models: `python -m train.evaluate RUN|FOLDER [CONFIG] [key=value ...] [--step N]`.

    python -m train.evaluate runs/middlebury-fdkn-x8 \
        task.data.validation_sources='[{path: data/nyu, split: test, units_per_value: 100}]'
    python -m train.evaluate exported/mine task.data.validation_sources='[other/*.txt]'
    python -m train.evaluate exported/fdkn-x8 configs/depth_upsampling/middlebury.yaml

Overrides select other validation data. Runs in one process without the engine; the metrics of a run equal those that
it logs in a validation itself. A folder is an exported model of this project, or a language model of transformers; an
image model may be judged as the task of a CONFIG, whose `task.model` is not read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train.config.errors import ConfigError
from train.config.facts.run_layout import CONFIG, read_json
from train.evaluate.folder import evaluate_folder, folder_config
from train.evaluate.image_folder import IMAGE_MODELS, evaluate_image_folder, image_folder_config
from train.evaluate.run import Evaluation, evaluate_checkpoint, evaluation_config

_CONFIG_JSON = "config.json"


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
        help="run folder, for example runs/NAME, or the folder of an exported model",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="[CONFIG] key=value",
        help="evaluation settings, for example task.data.validation_sources=...; a folder needs these sources, or, if "
        "it is an image model, the configuration of a run that reads them",
    )
    parser.add_argument("--step", type=int, help="step of a run's checkpoint (default: the newest intact one)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")
    return parser.parse_intermixed_args(arguments)


def _evaluation(options: argparse.Namespace) -> Callable[[], Evaluation]:
    """Return the evaluation to run, after checking all that needs no torch.

    Raises:
        ConfigError: It is neither a run nor a model, or an override is wrong.
    """
    model, step = options.model, options.step
    like, overrides = _split(options.overrides)
    described = None
    if not (model / CONFIG).is_file():
        described = _described(model)
        if step is not None:
            message = f"--step: {model} is an exported model, which has one state; remove it, or name the run"
            raise ConfigError([message])
    if described is not None and described.get("model_type") in IMAGE_MODELS:
        of_images = image_folder_config(model, described, overrides, like=like)
        return lambda: evaluate_image_folder(of_images, model)
    if like is not None:
        owner = "a run, which has its own configuration" if described is None else "no image model"
        raise ConfigError([f"{like}: {model} is {owner}; remove it, and write settings as key=value"])
    if described is None:
        of_run = evaluation_config(model, overrides)
        return lambda: evaluate_checkpoint(of_run, model, step)
    of_text = folder_config(model, described, overrides)
    return lambda: evaluate_folder(of_text, model)


def _split(words: list[str]) -> tuple[Path | None, list[str]]:
    """Return the configuration file, if there is one, and the overrides."""
    is_file = bool(words) and "=" not in words[0] and words[0].endswith((".yaml", ".yml"))
    return (Path(words[0]), words[1:]) if is_file else (None, words)


def _described(folder: Path) -> Mapping[str, Any]:
    """Return the config.json of an exported model.

    Raises:
        ConfigError: There is none, or it is damaged.
    """
    if not (folder / _CONFIG_JSON).is_file():
        raise ConfigError(
            [
                f"{folder}: not a run folder (it has no {CONFIG}) and not an exported model (it has no "
                f"{_CONFIG_JSON}); pass one like runs/NAME, or the folder of a model; one on the hub first: hf "
                "download OWNER/NAME [--revision BRANCH] --local-dir FOLDER"
            ]
        )
    described = read_json(folder / _CONFIG_JSON)
    if described is None:
        raise ConfigError([f"{folder / _CONFIG_JSON}: is not a JSON object; copy the folder again"])
    return described


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
