"""The command line of `python -m analysis inspect`: what it takes, and what it prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.inspect.settings import DEFAULT_LENGTH, DTYPES, Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0, or 2 where what the user gave is wrong."""
    given = _parser().parse_args(arguments)
    # These imports take seconds: --help and mistakes on the command line are answered before them.
    from analysis.inspect.inspection import inspect
    from analysis.runs import InputError

    settings = Settings(
        device=given.device,
        dtype=given.dtype,
        tokenizer=given.tokenizer,
        trust_remote_code=given.trust_remote_code,
        sequence_length=given.sequence_length,
        windows=given.windows,
        gradients=given.gradients,
    )
    try:
        page = inspect(given.model, text=given.text, out=given.out, settings=settings)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(page)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis inspect",
        description="Look inside causal language models: where their norms are, and what their activations, gradients "
        "and directions look like over depth.",
    )
    parser.add_argument(
        "model", nargs="+", help="a Hugging Face folder or hub name, or a run: RUN, RUN@STEP, RUN@100,500, RUN@all"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write: new, or an earlier inspection")
    parser.add_argument(
        "--text", type=Path, help="plain text, also .gz .xz .bz2 (default: sources of the standard library)"
    )
    parser.add_argument("--windows", type=int, default=8, help="windows of text (default: 8)")
    parser.add_argument(
        "--sequence-length", type=int, help=f"tokens per window (default: {DEFAULT_LENGTH}, or the model's limit)"
    )
    parser.add_argument("--device", default="auto", help="auto (spreads what is too large), cpu, cuda, cuda:1 ...")
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), help="of the weights (default: fp32 on a CPU, as saved on a GPU)"
    )
    parser.add_argument("--tokenizer", help="folder or hub name, for a model that has none")
    parser.add_argument("--no-gradients", dest="gradients", action="store_false", help="forward passes only")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that a model's folder brings")
    return parser
