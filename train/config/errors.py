"""The error that a user's mistake raises."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(ValueError):
    """What the user gave is wrong.

    Args:
        faults: Everything that is wrong, one sentence each, opening with the path of the key.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)
