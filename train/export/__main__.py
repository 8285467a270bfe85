"""Export of checkpoints as Hugging Face folders: `python -m train.export RUN OUT [--step N] [--format native|periln]`.

A language model that an architecture of transformers computes is written as that one, and compared with it; any other
model takes its own code along. With `--push REPO [--public] [--revision BRANCH]`, the folder is uploaded to the Hugging
Face hub afterwards.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from train.config.errors import ConfigError
from train.config.facts.native_choice import Choice
from train.config.load import read_run
from train.export.formats import FORMATS, choice_for


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    options = _parse(arguments)
    try:
        config = read_run(options.run)
        _require_text(config.task.kind, options.prompt)
        _require_push(options)
        choice = choice_for(config, options.format)
        if options.no_verify and choice.architecture is None:
            raise ConfigError(["--no-verify: only a native export is compared with the trained model; remove it"])
        return _export(options, choice)
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
        "--format",
        choices=FORMATS,
        help="native: as an architecture of transformers, loaded without remote code; periln: with this project's code "
        "(default: native where an architecture computes the same, else periln)",
    )
    parser.add_argument(
        "--no-verify", action="store_true", help="native: do not compare the folder with the trained model"
    )
    parser.add_argument(
        "--dtype", choices=("bf16", "fp32"), default="fp32", help="type of the exported weights (default: fp32)"
    )
    parser.add_argument("--no-figure", dest="with_figure", action="store_false", help="model card without a figure")
    parser.add_argument("--push", metavar="REPO", help="afterwards upload the folder to the hub, as OWNER/NAME")
    parser.add_argument("--public", action="store_true", help="with --push: a new repository is public, not private")
    parser.add_argument("--revision", metavar="BRANCH", help="with --push: branch, created if missing (default: main)")
    parser.add_argument("--prompt", help="afterwards load the folder and print its continuation of this text")
    return parser.parse_args(arguments)


def _require_text(kind: str, prompt: str | None) -> None:
    if prompt is not None and kind != "language_model":
        raise ConfigError([f"--prompt: a {kind} model does not generate text; remove it"])


def _require_push(options: argparse.Namespace) -> None:
    given = {"--public": options.public, "--revision": options.revision is not None}
    unread = [name for name, is_given in given.items() if is_given and options.push is None]
    if unread:
        raise ConfigError([f"{name}: has no effect without --push REPO; remove it, or add --push" for name in unread])


def _export(options: argparse.Namespace, choice: Choice) -> int:
    # These imports take seconds: --help and command-line errors are handled before them.
    from transformers.utils import logging as transformers_logging

    from train.checkpoint.checkpoint import CheckpointError
    from train.data.damage import DamagedDataError
    from train.export import formats, model_folder
    from train.export.native_report import VerificationError
    from train.export.push import Push, PushError, refuse, upload

    push = Push(options.push, options.public, options.revision) if options.push is not None else None
    if push is not None:
        refuse(push)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        exported = formats.export(
            options.run,
            options.out,
            choice=choice,
            step=options.step,
            dtype=options.dtype,
            is_verified=not options.no_verify,
            with_figure=options.with_figure,
            place=options.push or "FOLDER",
        )
    except (CheckpointError, DamagedDataError, OSError, VerificationError) as error:
        print(f"export failed: {error}", file=sys.stderr)
        return 1
    print(f"step {exported.step} of {options.run} -> {options.out}")
    print("\n".join(exported.lines))
    if options.prompt is not None:
        print(model_folder.continuation(options.out, options.prompt, trust=not exported.is_native))
    if push is not None:
        try:
            print(*upload(options.out, push), sep="\n")
        except PushError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
