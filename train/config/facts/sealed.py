"""JSON objects with a checksum of their own content, so that a changed bit is found when they are read.

The checksum is the SHA-256 of the canonical form: sorted keys, no spaces, without the checksum itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

SEAL = "sha256"


class DamagedFileError(ValueError):
    """A file is missing or is not what was written; the message says what is wrong with it."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON content with its checksum."""
    plain = json.loads(json.dumps(content))  # as it will be read: tuples are lists, keys are words
    return {**plain, SEAL: _checksum(plain)}


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the content of a JSON object without its checksum; one written before there were checksums has none.

    Raises:
        DamagedFileError: It is missing, not a JSON object, or does not match its checksum.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedFileError(f"{path.name} is missing") from None
    except OSError as error:
        raise DamagedFileError(f"{path.name} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise DamagedFileError(f"{path.name} is not JSON") from None
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path.name} holds {type(content).__name__} instead of an object")
    return _without_seal(cast("dict[str, Any]", content), path.name)


def _without_seal(content: dict[str, Any], name: str) -> dict[str, Any]:
    seal = content.pop(SEAL, None)
    if seal is not None and seal != _checksum(content):
        raise DamagedFileError(f"{name} does not match its own checksum")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
