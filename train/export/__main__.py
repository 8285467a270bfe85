"""Export of checkpoints as self-contained Hugging Face folders: `python -m train.export RUN OUT [--step N]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from train.config.errors import ConfigError
from train.config.load import read_run


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    options = _parse(arguments)
    try:
        _require_text(options.run, options.prompt)
        return _export(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m train.export", description="Export a checkpoint as a Hugging Face folder."
    )
    parser.add_argument("run", type=Path, help="run folder, for example runs/NAME")
    parser.add_argument("out", type=Path, help="folder to write; must be empty or not exist")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest intact one)")
    parser.add_argument(
        "--dtype", choices=("bf16", "fp32"), default="fp32", help="type of the exported weights (default: fp32)"
    )
    parser.add_argument("--prompt", help="afterwards load the folder and print its continuation of this text")
    return parser.parse_args(arguments)


def _require_text(run: Path, prompt: str | None) -> None:
    kind = read_run(run).task.kind
    if prompt is not None and kind != "language_model":
        raise ConfigError([f"--prompt: a {kind} model does not generate text; remove it"])


def _export(options: argparse.Namespace) -> int:
    # These imports take seconds: --help and command-line errors are handled before them.
    from transformers.utils import logging as transformers_logging

    from train.checkpoint.checkpoint import CheckpointError
    from train.data.damage import DamagedDataError
    from train.export import model_folder

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        step = model_folder.export(options.run, options.out, step=options.step, dtype=options.dtype)
    except (CheckpointError, DamagedDataError, OSError) as error:
        print(f"export failed: {error}", file=sys.stderr)
        return 1
    print(f"step {step} of {options.run} -> {options.out}")
    if options.prompt is not None:
        print(model_folder.continuation(options.out, options.prompt))
    return 0


if __name__ == "__main__":
    sys.exit(main())
