"""Files that a joint image filter reads and writes: which belong together, and how an output comes into being."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from train.config.errors import ConfigError
from train.data.images.image_files import ARRAYS, SUFFIXES

Existing = Literal["skip", "replace"]  # what happens to outputs that exist
_LOSSY = (".jpg", ".jpeg")
_MOST_EXAMPLES = 3  # in a message


class Job(NamedTuple):
    """A pair of files, and the file to write."""

    guidance: Path
    target: Path
    out: Path


def find_jobs(guidance: Path, target: Path, out: Path, *, existing: Existing | None) -> list[Job]:
    """Return what is to be filtered: two files, or the files of two folders that have the same name up to the suffix.

    Args:
        guidance: A file or a folder.
        target: Likewise.
        out: Of two files, the file to write or an existing folder; of two folders, a folder. Outputs in a folder have
            the name of their target, with .png for what would lose by .jpg.
        existing: What happens to outputs that exist; None: they are refused.

    Raises:
        ConfigError: With every fault: files that do not exist, have no partner, or would be overwritten.
    """
    faults = [f"{path}: does not exist; pass a file or a folder" for path in (guidance, target) if not path.exists()]
    if not faults and guidance.is_dir() != target.is_dir():
        folder, file = (guidance, target) if guidance.is_dir() else (target, guidance)
        faults.append(f"{folder} is a folder, but {file} is a file; pass two files or two folders")
    if faults:
        raise ConfigError(faults)
    if guidance.is_dir():
        jobs = _jobs_of_folders(guidance, target, out)
    else:
        jobs = [Job(guidance, target, out / _name_of(target) if out.is_dir() else out)]
    faults = [*_output_faults(jobs), *([] if existing else _existing_faults(jobs))]
    if faults:
        raise ConfigError(faults)
    return [job for job in jobs if existing != "skip" or not job.out.exists()]


def _jobs_of_folders(guidance: Path, target: Path, out: Path) -> list[Job]:
    faults: list[str] = []
    if out.exists() and not out.is_dir():
        faults.append(f"{out}: is a file; the outputs of two folders are written into a folder")
    guides, targets = (_by_stem(folder, faults) for folder in (guidance, target))
    for folder, own, other, others in ((guidance, guides, targets, target), (target, targets, guides, guidance)):
        if alone := [file.name for stem, file in own.items() if stem not in other]:
            faults.append(f"{folder}: {_some(alone)} without a file of the same name, up to the suffix, in {others}")
    if faults:
        raise ConfigError(faults)
    return [Job(guides[stem], file, out / _name_of(file)) for stem, file in targets.items()]


def _by_stem(folder: Path, faults: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in SUFFIXES or file.name[0] == "." or not file.is_file():
            continue
        if (first := found.setdefault(file.stem, file)) != file:
            faults.append(f"{folder}: {first.name} and {file.name} have the same name up to the suffix; remove one")
    if not found:
        faults.append(f"{folder}: contains no image ({' '.join(SUFFIXES)})")
    return found


def _name_of(target: Path) -> str:
    return f"{target.stem}.png" if target.suffix.lower() in _LOSSY else target.name


def _output_faults(jobs: Sequence[Job]) -> Iterator[str]:
    inputs = {path.resolve() for job in jobs for path in (job.guidance, job.target)}
    for job in jobs:
        suffix = job.out.suffix.lower()
        if suffix not in SUFFIXES or suffix in _LOSSY:
            yield f"{job.out}: cannot hold the output exactly; write a name that ends in {job.target.suffix} or .png"
        elif (suffix in ARRAYS) != (job.target.suffix.lower() in ARRAYS):
            yield f"{job.out}: the output has the type of {job.target}; write a name that ends in {job.target.suffix}"
        elif job.out.resolve() in inputs:
            yield f"{job.out}: is an input, which would be overwritten; choose another OUT"


def _existing_faults(jobs: Sequence[Job]) -> Iterator[str]:
    if there := [str(job.out) for job in jobs if job.out.exists()]:
        verb = "exists" if len(there) == 1 else "exist"
        yield f"{_some(there)} {verb}; choose another OUT, or write --existing skip or --existing replace"


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_EXAMPLES
    return ", ".join(names[:_MOST_EXAMPLES]) + (f" and {rest} more" if rest > 0 else "")


# ------------------------------------------------------------------------------------------------- reading and writing


def read(path: Path) -> Any:
    """Return what a filter takes for a file: the array in it, or the path of an image.

    Raises:
        ValueError: It is no array of numbers.
        OSError: It cannot be read.
    """
    if path.suffix.lower() not in ARRAYS:
        return str(path)
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded as arrays:
        if len(arrays.files) != 1:
            raise ValueError(f"contains {len(arrays.files)} arrays ({', '.join(arrays.files)}); save a file with one")
        return arrays[arrays.files[0]]


def write(image: Any, path: Path) -> None:
    """Write a PIL image or an array: the file is complete, or it is not there.

    Raises:
        OSError: The folder cannot be written, or the format cannot hold the image.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix, partial = path.suffix.lower(), path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            if suffix in ARRAYS:
                (np.save if suffix == ".npy" else np.savez)(file, image)
            else:
                image.save(file, format=Image.registered_extensions()[suffix])
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
