"""The exception for user errors."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(ValueError):
    """Invalid user input.

    Args:
        faults: Every fault, one sentence each, starting with the path of the key.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)
