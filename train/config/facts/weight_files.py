"""The safetensors files of a Hugging Face folder, and the shapes in their headers; reads no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from train.config.facts.run_layout import read_json
from train.config.facts.sealed import DamagedFileError

_INDEX = "model.safetensors.index.json"  # of weights in several files: the file of each
HEAD = "lm_head.weight"
_MOST_FAULTS = 8
_TABLES = re.compile(r".*rotary_emb\.inv_freq")  # written by old versions; they follow from the configuration
_LONGEST_HEADER = 100_000_000  # bytes, the limit of safetensors


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors of a Hugging Face folder; with an index, those that it names.

    Raises:
        DamagedFileError: The index is damaged, or names files that are missing.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / _INDEX).exists():
        return files
    try:
        named = set((read_json(folder / _INDEX) or {})["weight_map"].values())
    except (KeyError, TypeError, AttributeError):
        raise DamagedFileError(f"{folder / _INDEX} is damaged; copy the folder again") from None
    if missing := sorted(map(str, named - {path.name for path in files})):
        raise DamagedFileError(f"{folder} lacks {', '.join(missing)}; copy the folder again")
    return [path for path in files if path.name in named]


def saved_shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shapes of all tensors of a folder.

    Raises:
        DamagedFileError: A file is missing or no complete safetensors file.
    """
    return {name: shape for path in weight_files(folder) for name, shape in _shapes(path).items()}


def shape_faults(saved: Mapping[str, list[int]], wanted: Mapping[str, list[int]], *, is_tied: bool) -> Iterator[str]:
    """Yield the tensors that are missing, left over or of another shape, the first few of them.

    Args:
        saved: Shapes of a folder by name.
        wanted: Shapes that a model needs.
        is_tied: Whether the head is the embedding, so that a copy of it may be saved or not.
    """
    faults = [
        f"{name} is {wanted.get(name, 'absent')} here and {saved.get(name, 'absent')} in the folder"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
        and not (is_tied and name == HEAD and (name not in saved or name not in wanted))
        and not (_TABLES.fullmatch(name) and name not in wanted)
    ]
    yield from faults[:_MOST_FAULTS]
    if len(faults) > _MOST_FAULTS:
        yield f"... and {len(faults) - _MOST_FAULTS} more"


def _shapes(path: Path) -> dict[str, list[int]]:
    try:
        return _complete_header(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}); copy it again") from None


def _complete_header(path: Path) -> dict[str, list[int]]:
    """Return the shapes in the header of a safetensors file, whose size must be what the header states."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, _LONGEST_HEADER):
            raise ValueError("its header is longer than the file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + length + end:
        raise ValueError(f"it has {size:,} bytes instead of {8 + length + end:,}")
    return {name: list(entry["shape"]) for name, entry in header.items()}
