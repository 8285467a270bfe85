"""Command line of `python -m analysis card`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code.

    Raises:
        InputError: RUN is not a run, or no layer was measured up to the step.
    """
    parser = argparse.ArgumentParser(
        prog="python -m analysis card",
        description="Draw the figure of a model card: variance of the residual stream and gradient norm over depth, "
        "as last measured. `python -m train.export` runs this.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--step", type=int, help="last step that counts (default: all do)")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    options = parser.parse_args(arguments)
    # These imports take seconds, so they come after --help and argument errors.
    from analysis.figures.card import card_figure
    from analysis.runs import InputError, read_run

    figure = card_figure(read_run(options.run), step=options.step)
    if figure is None:
        raise InputError(f"{options.run}: no layer was measured up to this step (see probes.activations_every)")
    try:
        figure.savefig(options.out, format="png", dpi=160)
    except OSError as error:
        raise InputError(f"--out {options.out}: cannot be written ({error.strerror})") from None
    print(options.out)
    return 0
