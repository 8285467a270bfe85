"""`python -m analysis {report|inspect} ...`. Exit codes: 0 done, 2 what was given is wrong, 1 anything else."""

from __future__ import annotations

import sys
from collections.abc import Sequence

USAGE = """usage: python -m analysis {report|inspect} ...

  report RUN [RUN ...] --out DIR                     runs side by side: one self-contained page and its figures
  inspect MODEL [MODEL ...] [--text FILE] --out DIR  look into any causal language model, or the kept steps of a run

`python -m analysis COMMAND --help` tells the rest."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if not given or given[0] not in ("report", "inspect"):
        unknown = f"no command {given[0]!r}\n" if given else ""
        print(f"{unknown}{USAGE}", file=sys.stderr)
        return 2
    try:
        return _run(given[0], given[1:])
    except ValueError as error:
        from analysis.runs import InputError

        if not isinstance(error, InputError):
            raise
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 1


def _run(name: str, arguments: Sequence[str]) -> int:
    """Run a command; what it needs beyond its command line takes seconds to import, so it imports that itself."""
    if name == "report":
        from analysis.report import report

        return report.main(arguments)
    from analysis.inspect import command as inspect

    return inspect.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
