"""Valid configuration values by path, as seen by the validation rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


class AbsentError(Exception):
    """A rule read a value that is missing or invalid."""


class Values(dict[str, Any]):
    """Valid values by path."""

    def __missing__(self, path: str) -> Any:
        raise AbsentError(path)

    def below(self, section: str) -> dict[str, Any]:
        """Return the values below a section, by their paths relative to it; `section` ends with a dot."""
        return {path.removeprefix(section): value for path, value in self.items() if path.startswith(section)}


Rule = Callable[[Values], Iterator[str]]  # yields faults, each starting with the path of the key
