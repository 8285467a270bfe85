"""Valid values of a configuration by path, and the rules that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


class AbsentError(Exception):
    """A rule asked for a value that is missing or invalid by itself."""


class Values(dict[str, Any]):
    """Valid values by path."""

    def __missing__(self, path: str) -> Any:
        raise AbsentError(path)

    def below(self, section: str) -> dict[str, Any]:
        """Return the values of a section, given with its final dot, by the rest of their paths."""
        return {path.removeprefix(section): value for path, value in self.items() if path.startswith(section)}


Rule = Callable[[Values], Iterator[str]]  # yields faults, each opening with the path of the key
