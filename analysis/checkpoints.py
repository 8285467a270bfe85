"""Verification of a run's checkpoints, which are read only if manifest and files match their checksums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, reading every byte of it; None if it is intact."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_bytes())
        files = [(str(file["name"]), str(file["sha256"])) for file in manifest["files"]]
        if not _matches_its_seal(manifest) or f"step_{manifest['step']:06d}" != checkpoint.name or not files:
            return "its manifest.json is not what was written"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "its manifest.json cannot be read"
    return next(
        (f"{name} does not match its checksum" for name, sha in files if _sha256(checkpoint / name) != sha), None
    )


def _matches_its_seal(manifest: dict[str, Any]) -> bool:
    """Compare the manifest with its own checksum, which those of older versions lack."""
    seal = manifest.pop("sha256", None)
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return seal is None or seal == hashlib.sha256(canonical.encode()).hexdigest()


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
