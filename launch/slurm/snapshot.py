"""The code of a job, as it was when the job was submitted: later edits do not reach a run that waits or is requeued."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("launch", "train", "modeling", "analysis")
_TAKEN = (*PACKAGES, "configs", "pyproject.toml", "constraints.txt")
_PASSED_OVER = {"__pycache__", ".git", ".venv"}


def take(target: Path, *, root: Path = ROOT) -> int:
    """Copy our packages and configs: what git tracks, changed or not, and what is new and not ignored.

    Without git, everything but caches. In it stands snapshot.json: the commit, and whether anything differs from it.

    Args:
        target: A folder that does not exist yet.
        root: Where the packages are.

    Returns:
        How many files were copied.

    Raises:
        OSError: A file can not be read or written.
    """
    files = sorted(set(_files_by_git(root) or _files_by_walk(root)))
    for name in files:
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, copy)
    described = {"git_sha": _git(root, "rev-parse", "HEAD"), "git_dirty": bool(_git(root, "status", "--porcelain"))}
    (target / "snapshot.json").write_text(json.dumps(described, indent=1) + "\n")
    return len(files)


def _files_by_git(root: Path) -> list[str]:
    """Return tracked and untracked, not ignored files; none where git does not know this folder's code."""
    listed = _git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *_TAKEN) or ""
    files = [name for name in listed.split("\0") if name and (root / name).is_file()]  # one may be deleted
    return files if any(name.startswith("train/") for name in files) else []


def _files_by_walk(root: Path) -> Iterator[str]:
    for name in _TAKEN:
        start = root / name
        for path in [start] if start.is_file() else start.rglob("*"):
            inside = path.relative_to(root)
            if path.is_file() and not _PASSED_OVER.intersection(inside.parts) and path.suffix != ".pyc":
                yield str(inside)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        found = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
