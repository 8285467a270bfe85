"""Archives of arrays: files NAME.npz in folders step_000500, of which any may be half-written or foreign."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.runs import step_of

# Raised by numpy and zipfile for truncated, corrupt or foreign files.
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_arrays(path: Path, *, only: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a file: all, or only some.

    Raises:
        UNREADABLE: It is broken.
    """
    # np.load closes a file that it was given the path of only if it could read it.
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        return {name: file[name] for name in (file.files if only is None else only)}


def archives(folder: Path) -> list[Path]:
    """Return the files of a folder by name, without those that are just being written under a hidden name."""
    return sorted(folder.glob("[!.]*.npz"))


def steps_in(folder: Path) -> list[tuple[int, Path]]:
    """Return steps and folders called step_000500, ascending."""
    steps = ((step_of(path.name), path) for path in folder.glob("step_*") if path.is_dir())
    return sorted((step, path) for step, path in steps if step is not None)


def reason(error: BaseException) -> str:
    """Return why a file cannot be read, in one line."""
    if isinstance(error, KeyError):
        return f"{error.args[0]}"
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
