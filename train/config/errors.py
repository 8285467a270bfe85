"""The exception for user errors."""

from __future__ import annotations

from collections.abc import Sequence

MOST_LINES = 100


class ConfigError(ValueError):
    """Invalid user input; its text lists the first MOST_LINES faults.

    Args:
        faults: Every fault, one sentence each, starting with the path of the key.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        more = [f"... and {len(faults) - MOST_LINES} more"] if len(faults) > MOST_LINES else []
        super().__init__("\n".join([*faults[:MOST_LINES], *more]))
        self.faults = list(faults)
