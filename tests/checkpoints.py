"""A checkpoint for tests that need no torch: a manifest and the file of one rank, which is empty."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from train.config.facts.manifest import FORMAT, MANIFEST, rank_file, step_name
from train.config.facts.sealed import sealed


def write_checkpoint(run: Path, step: int, **fields: int) -> Path:
    """Write or replace a run's checkpoint of a step; `fields` go to the manifest. Return its folder."""
    folder = run / "checkpoints" / step_name(step)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / rank_file(0)).write_bytes(b"")
    file = {"name": rank_file(0), "bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    manifest = {"format": FORMAT, "step": step, "updates": step, "world_size": 1, "data_fingerprint": ""}
    manifest |= {"parameters": {}, "files": [file]} | fields
    (folder / MANIFEST).write_text(json.dumps(sealed(manifest)))
    return folder
