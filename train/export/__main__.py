"""`python -m train.export RUN OUT [--step N]`: write a checkpoint as a self-contained Hugging Face folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from train.config.errors import ConfigError
from train.config.load import read_run


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = _parse(arguments)
    try:
        _require_text(given.run, given.prompt)
        return _export(given)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m train.export", description="Write a run as a Hugging Face folder.")
    parser.add_argument("run", type=Path, help="a run folder, like runs/NAME")
    parser.add_argument("out", type=Path, help="the folder to write; must not exist, or be empty")
    parser.add_argument("--step", type=int, help="which checkpoint; default: the newest")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="fp32", help="of the weights (default: fp32)")
    parser.add_argument("--prompt", help="afterwards load the folder and show what it writes after this text")
    return parser.parse_args(arguments)


def _require_text(run: Path, prompt: str | None) -> None:
    kind = read_run(run).task.kind
    if prompt is not None and kind != "language_model":
        raise ConfigError([f"--prompt: a model of the task {kind} writes no text; leave it out"])


def _export(given: argparse.Namespace) -> int:
    # These imports take seconds: --help and mistakes on the command line are answered before them.
    from transformers.utils import logging as transformers_logging

    from train.checkpoint.checkpoint import CheckpointError
    from train.export import model_folder

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        step = model_folder.export(given.run, given.out, step=given.step, dtype=given.dtype)
    except (CheckpointError, OSError) as error:
        print(f"export failed: {error}", file=sys.stderr)
        return 1
    print(f"step {step} of {given.run} -> {given.out}")
    if given.prompt is not None:
        print(model_folder.continuation(given.out, given.prompt))
    return 0


if __name__ == "__main__":
    sys.exit(main())
