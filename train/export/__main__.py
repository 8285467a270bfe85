"""Hugging Face folders: `python -m train.export RUN|FILE OUT [--step N] [--format native|periln] [key=value ...]`.

A language model that an architecture of transformers computes is written as that one, and compared with it; any other
model takes its own code along. With `--push REPO [--public] [--revision BRANCH]`, the folder is uploaded to the Hugging
Face hub afterwards.

    python -m train.export FDKN_8x.pth OUT scale=8

writes a file of weights that the authors of DKN published as such a folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from train.config.commands.authors_weights import AuthorsWeightsConfig
from train.config.errors import ConfigError
from train.config.facts.native_choice import Choice
from train.config.load import load_settings, read_run
from train.export.formats import FORMATS, choice_for


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    options = _parse(arguments)
    try:
        if options.source.is_file():
            return _import(options)
        if not options.source.exists():
            raise ConfigError([f"{options.source}: does not exist; pass a run like runs/NAME, or a file of weights"])
        if options.settings:
            only = f"is for a file of weights, which {options.source} is not; remove it"
            raise ConfigError([f"{word.partition('=')[0]}: {only}" for word in options.settings])
        config = read_run(options.source)
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
        prog="python -m train.export",
        description="Write a checkpoint, or a file of the DKN authors' weights, as a Hugging Face folder.",
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="RUN|FILE",
        help="run folder, for example runs/NAME, or a file of weights, for example FDKN_8x.pth",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must be empty or not exist")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="what a file of weights does not tell: scale=8, and more (docs/settings.md)",
    )
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
    return parser.parse_intermixed_args(arguments)


def _require_text(kind: str, prompt: str | None) -> None:
    if prompt is not None and kind != "language_model":
        raise ConfigError([f"--prompt: a {kind} model does not generate text; remove it"])


def _require_push(options: argparse.Namespace) -> None:
    given = {"--public": options.public, "--revision": options.revision is not None}
    unread = [name for name, is_given in given.items() if is_given and options.push is None]
    if unread:
        raise ConfigError([f"{name}: has no effect without --push REPO; remove it, or add --push" for name in unread])


def _import(options: argparse.Namespace) -> int:
    """Write a file of weights as a folder."""
    unread = {
        "--step": options.step is not None,
        "--format": options.format is not None,
        "--no-verify": options.no_verify,
        "--dtype": options.dtype != "fp32",
        "--no-figure": not options.with_figure,
        "--prompt": options.prompt is not None,
    }
    if faults := [f"{name}: has no effect on a file of weights; remove it" for name, given in unread.items() if given]:
        raise ConfigError(faults)
    _require_push(options)
    settings = load_settings(AuthorsWeightsConfig, options.settings)

    def write() -> list[str]:
        from train.export.authors_folder import import_weights

        lines = import_weights(options.source, options.out, settings, place=options.push or "FOLDER")
        return [f"{options.source} -> {options.out}", *lines]

    return _write_and_push(options, write)


def _export(options: argparse.Namespace, choice: Choice) -> int:
    """Write a run's checkpoint as a folder."""

    def write() -> list[str]:
        from train.export import formats, model_folder

        exported = formats.export(
            options.source,
            options.out,
            choice=choice,
            step=options.step,
            dtype=options.dtype,
            is_verified=not options.no_verify,
            with_figure=options.with_figure,
            place=options.push or "FOLDER",
        )
        lines = [f"step {exported.step} of {options.source} -> {options.out}", *exported.lines]
        if options.prompt is not None:
            lines.append(model_folder.continuation(options.out, options.prompt, trust=not exported.is_native))
        return lines

    return _write_and_push(options, write)


def _write_and_push(options: argparse.Namespace, write: Callable[[], list[str]]) -> int:
    """Write the folder, print the lines that come back, and upload it if asked to; return the exit code."""
    # These imports take seconds: --help and command-line errors are handled before them.
    from transformers.utils import logging as transformers_logging

    from train.checkpoint.checkpoint import CheckpointError
    from train.data.damage import DamagedDataError
    from train.export.native_report import VerificationError
    from train.export.push import Push, PushError, refuse, upload

    push = Push(options.push, options.public, options.revision) if options.push is not None else None
    if push is not None:
        refuse(push)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        print(*write(), sep="\n")
        if push is not None:
            print(*upload(options.out, push), sep="\n")
    except (CheckpointError, DamagedDataError, OSError, VerificationError) as error:
        print(f"export failed: {error}", file=sys.stderr)
        return 1
    except PushError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
