"""Manifests of checkpoints: what a checkpoint holds, and proof that all of it is there. No torch.

What is read when:

| who | reads |
|---|---|
| a run that resumes | every byte of the newest checkpoint, shared by the ranks; of older ones if it is damaged |
| a run whose last checkpoint exists ("is it finished?"), also asked by `launch` | every byte of that checkpoint |
| export, evaluation, `checkpoint.start_from` | every byte of the checkpoint that they use |

A core hashes about 0.5 GB/s, 2 GB/s with SHA instructions, and files are hashed in parallel. 38 GB in 64 files take 16
cores 2 to 5 seconds, or as long as the disk; a program pays it once per start, before it reads the same files or ends.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from train.config.facts.sealed import DamagedFileError, read_sealed

MANIFEST = "manifest.json"
FORMAT = 1

_COUNTS = {"step", "updates", "world_size", "skipped_in_a_row", "evaluated", "spikes"}
_ADDED_LATER = {"skipped_in_a_row", "evaluated", "spikes", "recent"}  # since then a manifest may lack them
_FIELDS = {"format", "data_fingerprint", "parameters", "files", "recent"} | _COUNTS
_SHA256 = re.compile(r"[0-9a-f]{64}")


class WrittenFile(NamedTuple):
    """Name, size and checksum of a written file."""

    name: str
    bytes: int
    sha256: str


def step_name(step: int) -> str:
    """Return the name of a step's folder in checkpoints/, weights/ and images/."""
    return f"step_{step:06d}"


def rank_file(rank: int) -> str:
    """Return the name of the file that a rank writes to a checkpoint."""
    return f"rank_{rank:05d}.safetensors"


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint.

    One without a checksum, as written by older versions, is accepted if it is consistent.

    Raises:
        DamagedFileError: It is missing or unreadable, is not what was written, or belongs to another folder.
    """
    manifest = read_sealed(checkpoint / MANIFEST)
    fault = next(_faults(manifest, checkpoint.name), None)
    if fault is not None:
        raise DamagedFileError(f"{MANIFEST}: {fault}")
    return manifest


def files_of(manifest: Mapping[str, Any]) -> list[WrittenFile]:
    """Return the files that a manifest lists, one per rank."""
    return [WrittenFile(**entry) for entry in manifest["files"]]


def damage(checkpoint: Path) -> list[str]:
    """Return the faults of a checkpoint, reading every byte of it; none if it is intact."""
    try:
        return damaged_files(checkpoint, read_manifest(checkpoint))
    except DamagedFileError as error:
        return [str(error)]


def damaged_files(checkpoint: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return the faults of a checkpoint's files, reading every byte of them, several at once."""
    files = files_of(manifest)
    with ThreadPoolExecutor(max_workers=min(len(files), os.cpu_count() or 1)) as threads:
        intact = list(threads.map(partial(is_intact, checkpoint), files))
    return [mismatch(file) for file, good in zip(files, intact, strict=True) if not good]


def mismatch(file: WrittenFile) -> str:
    """Return the fault of a file that is missing, cut off or changed."""
    return f"{file.name} does not match its checksum"


def is_intact(folder: Path, file: WrittenFile) -> bool:
    """Return whether a file exists in the folder and matches its size and checksum."""
    path = folder / file.name
    try:
        if path.stat().st_size != file.bytes:
            return False
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------------ consistency


def _faults(manifest: Mapping[str, Any], folder: str) -> Iterator[str]:
    """Yield what is wrong with a manifest; the first fault may make the rest meaningless."""
    if manifest.get("format") != FORMAT:
        yield f"format {manifest.get('format')!r} is unknown, this version reads format {FORMAT}"
    if unknown := sorted(manifest.keys() - _FIELDS):
        yield f"unknown field {unknown[0]!r}"
    if missing := sorted(_FIELDS - _ADDED_LATER - manifest.keys()):
        yield f"field {missing[0]!r} is missing"
    for name in sorted(_COUNTS & manifest.keys()):
        if not _is_count(manifest[name]):
            yield f"{name} is {manifest[name]!r} instead of a count"
    step = manifest["step"]
    if folder != step_name(step):
        yield f"step is {step}, but the folder is {folder}"
    for name in ("updates", "evaluated", "skipped_in_a_row"):
        if manifest.get(name, 0) > step:
            yield f"{name} is {manifest[name]} after {step} steps"
    yield from _faults_of_contents(manifest)


def _faults_of_contents(manifest: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(manifest["data_fingerprint"], str):
        yield "data_fingerprint is not a word"
    if not _is_mapping_of_lists(manifest["parameters"], _is_count):
        yield "parameters are not shapes by name"
    if not _is_mapping_of_lists(manifest.get("recent", {}), _is_number):
        yield "recent values are not numbers by name"
    files, size = manifest["files"], manifest["world_size"]
    if not isinstance(files, list) or len(cast("list[Any]", files)) != size or size == 0:
        yield f"the files are not one for each of {size} ranks"
    for rank, file in enumerate(cast("list[Any]", files)):
        if not _is_file_of_rank(file, rank):
            yield f"the entry of {rank_file(rank)} is not its name, size and checksum"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_mapping_of_lists(value: Any, is_item: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return all(
        isinstance(items, list) and all(map(is_item, cast("list[Any]", items)))
        for items in cast("dict[str, Any]", value).values()
    )


def _is_file_of_rank(entry: Any, rank: int) -> bool:
    if not isinstance(entry, dict):
        return False
    file = cast("dict[str, Any]", entry)
    if file.keys() != set(WrittenFile._fields) or file["name"] != rank_file(rank):
        return False
    return _is_count(file["bytes"]) and isinstance(file["sha256"], str) and bool(_SHA256.fullmatch(file["sha256"]))
