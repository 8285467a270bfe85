"""What no single type can say: ranges, and what goes together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def broken_rules(leaves: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong among valid values."""
    return iter(())
