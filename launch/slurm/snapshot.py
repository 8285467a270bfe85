"""Snapshot of the code at submission, so that later edits do not reach a pending or requeued run."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("launch", "train", "modeling", "analysis")
_TAKEN = (*PACKAGES, "configs", "pyproject.toml", "constraints.txt")
_SKIPPED = {"__pycache__", ".git", ".venv"}


def take(target: Path, *, root: Path = ROOT) -> int:
    """Copy our packages and configs: tracked files with local changes, and untracked files that git does not ignore.

    Without git, copy everything but caches. snapshot.json records the commit and whether the working tree differs.

    Args:
        target: Folder to create; must not exist.
        root: Folder that holds the packages.

    Returns:
        Number of files copied.

    Raises:
        OSError: A file cannot be read or written.
    """
    files = sorted(set(_files_by_git(root) or _files_by_walk(root)))
    for name in files:
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, copy)
    version = {"git_sha": _git(root, "rev-parse", "HEAD"), "git_dirty": bool(_git(root, "status", "--porcelain"))}
    (target / "snapshot.json").write_text(json.dumps(version, indent=1) + "\n")
    return len(files)


def _files_by_git(root: Path) -> list[str]:
    """Return tracked files and untracked ones that are not ignored; none if the code is not under git."""
    listed = _git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *_TAKEN) or ""
    files = [name for name in listed.split("\0") if name and (root / name).is_file()]  # skips deleted ones
    return files if any(name.startswith("train/") for name in files) else []


def _files_by_walk(root: Path) -> Iterator[str]:
    for name in _TAKEN:
        start = root / name
        for path in [start] if start.is_file() else start.rglob("*"):
            inside = path.relative_to(root)
            if path.is_file() and not _SKIPPED.intersection(inside.parts) and path.suffix != ".pyc":
                yield str(inside)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
