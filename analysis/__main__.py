"""Command-line entry point for the analysis: `python -m analysis {report|inspect|card} ...`.

Exit codes: 0 success, 2 invalid arguments or input, 1 any other failure.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

USAGE = """usage: python -m analysis {report|inspect|card} ...

  report RUN [RUN ...] --out DIR                     compare runs side by side on one self-contained page
  inspect MODEL [MODEL ...] [--text FILE] --out DIR  look inside causal language models, or saved steps of a run
  card RUN [--step N] --out FILE                     draw the figure of a model card

Run `python -m analysis COMMAND --help` for details."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if not words or words[0] not in ("report", "inspect", "card"):
        unknown = f"unknown command {words[0]!r}\n" if words else ""
        print(f"{unknown}{USAGE}", file=sys.stderr)
        return 2
    try:
        return _run(words[0], words[1:])
    except ValueError as error:
        from analysis.runs import InputError

        if not isinstance(error, InputError):
            raise
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 1


def _run(name: str, arguments: Sequence[str]) -> int:
    """Run a command. Each one imports its dependencies itself, after parsing its arguments: they take seconds."""
    if name == "report":
        from analysis.report import report

        return report.main(arguments)
    if name == "card":
        from analysis.figures import command as card

        return card.main(arguments)
    from analysis.inspect import command as inspect

    return inspect.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
