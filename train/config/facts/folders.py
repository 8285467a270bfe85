"""Whether a run can write to a folder, and what `checkpoint.start_from` names, without changing anything on disk."""

from __future__ import annotations

import os
import re
from pathlib import Path


def obstacle(folder: Path) -> str | None:
    """Return what keeps this user from creating a folder and files in it; None if nothing does.

    Nothing is created: the nearest ancestor that exists decides.
    """
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            place.stat()
        except (FileNotFoundError, NotADirectoryError):
            if place.is_symlink():
                return f"{place} is a link to a folder that does not exist"
            continue
        except OSError as error:  # no permission to look, or a name that is too long
            return f"{place}: {error.strerror}"
        if not place.is_dir():
            return f"{place} is not a folder"
        return None if os.access(place, os.W_OK | os.X_OK) else f"{place} may not be written to"
    return None


def named_checkpoint(start: str) -> tuple[str, int] | None:
    """Return run and step of RUN@STEP; None for a folder, whose path may contain an @ too."""
    run, _, step = start.rpartition("@")
    if not run or not re.fullmatch("[0-9]{1,10}", step) or os.path.isdir(start):
        return None
    return run, int(step)
