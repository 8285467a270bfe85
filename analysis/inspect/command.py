"""Command line of `python -m analysis inspect`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.inspect.settings import DEFAULT_LENGTH, DTYPES, Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0, or 2 for invalid input."""
    options = _parser().parse_args(arguments)
    # These imports take seconds, so they come after --help and argument errors.
    from analysis.inspect.inspection import inspect
    from analysis.runs import InputError

    settings = Settings(
        device=options.device,
        dtype=options.dtype,
        tokenizer=options.tokenizer,
        trust_remote_code=options.trust_remote_code,
        sequence_length=options.sequence_length,
        windows=options.windows,
        gradients=options.gradients,
    )
    try:
        page = inspect(options.model, text=options.text, out=options.out, settings=settings)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(page)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis inspect",
        description="Look inside causal language models: norm placement, and activations, gradients and angular "
        "distances over depth.",
    )
    parser.add_argument(
        "model",
        nargs="+",
        help="a Hugging Face folder or hub name (NAME, NAME@REVISION), or a run: RUN, RUN@STEP, RUN@100,500, RUN@all",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to create; an earlier inspection is replaced")
    parser.add_argument(
        "--text",
        type=Path,
        help="plain-text file, optionally .gz, .xz or .bz2 (default: source code of Python's standard library)",
    )
    parser.add_argument("--windows", type=int, default=8, help="number of text windows (default: 8)")
    parser.add_argument(
        "--sequence-length", type=int, help=f"tokens per window (default: {DEFAULT_LENGTH}, or the model's limit)"
    )
    parser.add_argument(
        "--device", default="auto", help="auto (splits a model that is too large), cpu, cuda, cuda:1, ..."
    )
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), help="dtype of the weights (default: fp32 on a CPU, as saved on a GPU)"
    )
    parser.add_argument("--tokenizer", help="folder or hub name (NAME, NAME@REVISION), for a model without its own")
    parser.add_argument("--no-gradients", dest="gradients", action="store_false", help="run forward passes only")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code of a model's folder that is not this checkout's"
    )
    return parser
