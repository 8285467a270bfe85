"""`python -m launch {local|slurm|plan|sweep} ...`: start runs. Exit codes: 0 done, 2 what was given is wrong, 1 else.

75: the run stopped early on a signal, with a checkpoint saved; the same command goes on.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from train.config.errors import ConfigError

USAGE = """usage: python -m launch {local|slurm|plan|sweep} ...

  local CONFIG [key=value ...] [--ranks N]                        train on this machine
  slurm CONFIG [key=value ...] --cluster FILE [--dry-run]         submit to a SLURM cluster
  plan  CONFIG [key=value ...] [--gpus N] [--gpu-memory GiB]      memory, time and sizes, without a GPU
  sweep SWEEP.yaml [--cluster FILE] [--dry-run]                   a grid of runs, here or as a SLURM array

`python -m launch COMMAND --help` tells the rest."""
COMMANDS = {
    "local": "launch.local",
    "slurm": "launch.slurm.slurm",
    "plan": "launch.plan.plan",
    "sweep": "launch.sweep.sweep",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if not given or given[0] not in COMMANDS:
        unknown = f"no command {given[0]!r}\n" if given else ""
        print(f"{unknown}{USAGE}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(COMMANDS[given[0]]).main(given[1:])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 1


if __name__ == "__main__":
    sys.exit(main())
