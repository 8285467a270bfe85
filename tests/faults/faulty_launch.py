"""`python -m tests.faults.faulty_launch MODULE FAULT CONFIG ...`: `launch local CONFIG ...`, with faulty ranks."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launch import local, ranks


def main(module: str, fault: str, arguments: Sequence[str]) -> int:
    """Run `launch local` with ranks that run another module in place of `train`, with the fault as first argument."""
    original = ranks.training_command

    def command(given: Sequence[str], *, ranks: int, nodes: ranks.Nodes | None = None) -> list[str]:
        words = original(given, ranks=ranks, nodes=nodes)
        at = len(words) - len(given)
        assert words[at - 1] == "train"
        return [*words[: at - 1], module, fault, *words[at:]]

    ranks.training_command = command
    return local.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
