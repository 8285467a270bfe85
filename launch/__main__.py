"""Command-line entry point for starting runs: `python -m launch {local|slurm|plan|sweep} ...`.

Exit codes: 0 success, 2 invalid arguments or configuration, 1 any other failure, 75 stopped early on a signal with a
checkpoint saved; the same command resumes.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from train.config.errors import ConfigError

USAGE = """usage: python -m launch {local|slurm|plan|sweep} ...

  local CONFIG [key=value ...] [--ranks N]                        train on this machine
  slurm CONFIG [key=value ...] --cluster FILE [--dry-run]         submit to a SLURM cluster
  plan  CONFIG [key=value ...] [--gpus N] [--gpu CARD]            estimate memory, time and sizes; needs no GPU
  sweep SWEEP.yaml [--cluster FILE] [--dry-run]                   run a grid of runs, here or as a SLURM array

Run `python -m launch COMMAND --help` for details."""
COMMANDS = {
    "local": "launch.local",
    "slurm": "launch.slurm.slurm",
    "plan": "launch.plan.plan",
    "sweep": "launch.sweep.sweep",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if not words or words[0] not in COMMANDS:
        unknown = f"unknown command {words[0]!r}\n" if words else ""
        print(f"{unknown}{USAGE}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(COMMANDS[words[0]]).main(words[1:])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 1
    except BrokenPipeError:  # the reader had enough, as in `--dry-run | head`; nothing is left to be flushed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
