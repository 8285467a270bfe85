"""Manifests protect themselves: what is not consistent, or not what was written, is not believed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import write_checkpoint
from train.config.facts.manifest import damage, read_manifest
from train.config.facts.run_layout import is_finished
from train.config.facts.sealed import DamagedFileError, read_sealed, sealed

STORED = Path(__file__).parents[2] / "stored_run/checkpoints/step_000003"


def test_content_survives_sealing(tmp_path: Path) -> None:
    content = {"numbers": (1, 2.5, 1e-300, math.inf), "by number": {10: "ten", 9: "nine"}, "word": "\u00df \U0001f642"}
    (tmp_path / "file.json").write_text(json.dumps(sealed(content), indent=1))
    assert read_sealed(tmp_path / "file.json") == json.loads(json.dumps(content))


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 8, evaluated=8) / "manifest.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(DamagedFileError):
            read_manifest(path.parent)


def test_a_manifest_of_an_older_version_is_accepted() -> None:
    assert "sha256" not in json.loads((STORED / "manifest.json").read_text())
    assert damage(STORED) == []


FILE = {"name": "rank_00000.safetensors", "bytes": 0, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"step": 1}, "step is 1, but the folder is step_000008"),
        ({"step": "last"}, "step is 'last' instead of a count"),
        ({"step": True}, "step is True instead of a count"),
        ({"step": None}, "field 'step' is missing"),
        ({"updates": 9}, "updates is 9 after 8 steps"),
        ({"updates": -1}, "updates is -1 instead of a count"),
        ({"evaluated": 12}, "evaluated is 12 after 8 steps"),
        ({"spikes": 1.5}, "spikes is 1.5 instead of a count"),
        ({"format": 2}, "format 2 is unknown, this version reads format 1"),
        ({"format": None}, "format None is unknown"),
        ({"later": 1}, "unknown field 'later'"),
        ({"files": []}, "the files are not one for each of 1 ranks"),
        ({"files": "all"}, "the files are not one for each of 1 ranks"),
        ({"files": [], "world_size": 0}, "the files are not one for each of 0 ranks"),
        ({"world_size": 2}, "the files are not one for each of 2 ranks"),
        ({"files": [3]}, "the entry of rank_00000.safetensors is not its name, size and checksum"),
        ({"files": [{**FILE, "name": "../../secret"}]}, "the entry of rank_00000.safetensors"),
        ({"files": [{**FILE, "bytes": "0"}]}, "the entry of rank_00000.safetensors"),
        ({"files": [{**FILE, "sha256": "0"}]}, "the entry of rank_00000.safetensors"),
        ({"files": [{**FILE, "mode": 1}]}, "the entry of rank_00000.safetensors"),
        ({"parameters": ["a"]}, "parameters are not shapes by name"),
        ({"parameters": {"a": 3}}, "parameters are not shapes by name"),
        ({"recent": {"loss": ["x"]}}, "recent values are not numbers by name"),
        ({"data_fingerprint": 3}, "data_fingerprint is not a word"),
    ],
)
def test_a_manifest_without_a_checksum_is_to_be_consistent(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    folder = write_checkpoint(tmp_path, 8)
    content = read_sealed(folder / "manifest.json") | changes
    content = {name: value for name, value in content.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(content))
    (found,) = damage(folder)
    assert fault in found
    assert not is_finished(tmp_path, 8)


def test_a_run_is_finished_only_if_its_result_is_intact(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 8)
    assert is_finished(tmp_path, 8)
    assert not is_finished(tmp_path, 9)
    (folder / "rank_00000.safetensors").write_bytes(b"x")
    assert not is_finished(tmp_path, 8)


@pytest.mark.parametrize(
    ("last", "is_end"),
    [
        ('{"event": "finish", "step": 8}', True),
        ('{"event": "finish", "step": 7}', False),
        ('{"event": "save", "step": 8}', False),
        ("3", False),
        ("[]", False),
        ("{}", False),
        ('{"event": "finish"}', False),
        ('{"event": "finish", "st', False),
        ("\x80", False),
    ],
)
def test_any_last_event_may_be_damaged(tmp_path: Path, last: str, is_end: bool) -> None:
    write_checkpoint(tmp_path, 8, evaluated=4)
    (tmp_path / "events.jsonl").write_bytes(b'{"event": "start", "step": 0}\n' + last.encode("latin-1"))
    assert is_finished(tmp_path, 8) == is_end
