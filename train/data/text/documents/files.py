"""Files of a source: what its path, folder or pattern stands for, in a fixed order."""

from __future__ import annotations

import glob
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

from train.config.setting import default_of
from train.config.tasks.language_model import EMBEDDED_CORPUS, SourceConfig

_EXCLUDED = {"test", "tests", "idle_test", "encodings", "site-packages", "__pycache__", "lib2to3", "lib-dynload"}
# Settings that did not exist when the key of a cache was defined: at their defaults they are no part of it.
_ADDED_LATER = {"max_documents", "max_tokens", "streaming", "on_bad_document", "label"}


def standard_library() -> list[Path]:
    """Return the source files of the running Python's standard library, without tests and encoding tables.

    These are about 10 MB of code and English available on every machine, so the default corpus needs no download. They
    differ between Python versions, so results are not comparable across machines.
    """
    paths: list[Path] = []
    for folder, below, names in os.walk(sysconfig.get_path("stdlib")):
        below[:] = [name for name in below if name not in _EXCLUDED]
        paths += [Path(folder, name) for name in names if name.endswith((".py", ".txt"))]
    return sorted(path for path in paths if path.stat().st_size)


def places(source: SourceConfig) -> list[Path]:
    """Return the files and saved data sets of a source, sorted; also links that lead nowhere.

    A path that exists stands for itself, whatever characters it has; otherwise it is a pattern. In folders, hidden
    files and folders are left out. Links are followed, unless they lead to a folder above.
    """
    if source.path == EMBEDDED_CORPUS:
        return standard_library()
    path = Path(source.path).expanduser()
    if os.path.lexists(path):
        return sorted(_below(path, frozenset()))
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    saved = {match for match in matches if is_saved(match)}
    files = [match for match in matches if not os.path.isdir(match) and saved.isdisjoint(match.parents)]
    return sorted([*files, *(match for match in saved if saved.isdisjoint(match.parents))])


def is_saved(path: Path) -> bool:
    """Return whether a path is a data set that `datasets` saved."""
    one = os.path.isfile(path / "state.json") and os.path.isfile(path / "dataset_info.json")
    return one or os.path.isfile(path / "dataset_dict.json")


def _below(path: Path, above: frozenset[str]) -> Iterator[Path]:
    """Yield a file, a saved data set or what stands in a folder; `above` are the real folders on the way to it.

    A folder that cannot be listed is yielded itself, so that its reader reports it.
    """
    if not os.path.isdir(path) or is_saved(path):
        yield path
        return
    real = os.path.realpath(path)
    if real in above:
        return
    try:
        names = os.listdir(path)
    except OSError:
        yield path
        return
    for name in names:
        if not name.startswith("."):
            yield from _below(path / name, above | {real})


def files(source: SourceConfig) -> list[Path]:
    """Return the files of a source, those of saved data sets one by one, sorted."""
    inside = (sorted(_plain(place)) if os.path.isdir(place) else [place] for place in places(source))
    return [file for place in inside for file in place if os.path.exists(file)]


def _plain(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))


def size_on_disk(sources: Sequence[SourceConfig]) -> int:
    """Return the total size of all local files of the sources, in bytes."""
    return sum(file.stat().st_size for source in sources for file in files(source))


def identity(source: SourceConfig) -> str:
    """Return a quick fingerprint of a source on this machine, from names, sizes and times of its files."""
    digest = hashlib.blake2b(stable_repr(source).encode(), digest_size=16)
    if source.path == EMBEDDED_CORPUS:
        digest.update(sys.version.encode())
    for file in files(source):
        stat = file.stat()
        digest.update(os.fsencode(file) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def stable_repr(value: object) -> str:
    """Return the repr that settings had before some were added, unless these are set."""
    if isinstance(value, list):
        return f"[{', '.join(map(stable_repr, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(stable_repr, value))}{',' * (len(value) == 1)})"
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    names = [
        field.name
        for field in fields(value)
        if field.name not in _ADDED_LATER or getattr(value, field.name) != default_of(type(value), field.name)
    ]
    return f"{type(value).__qualname__}({', '.join(f'{n}={stable_repr(getattr(value, n))}' for n in names)})"


def repeated(sources: Sequence[SourceConfig]) -> list[str]:
    """Return what the sources name more than once: files by whatever links lead to them, and names of data sets."""
    seen: set[object] = set()
    twice: list[str] = []
    for source in sources:
        for place in places(source) or [source]:
            is_named = isinstance(place, SourceConfig)
            real = place if is_named else os.path.realpath(place)
            if real in seen:
                twice.append(source.path if is_named else os.fsencode(place).decode("utf-8", "backslashreplace"))
            seen.add(real)
    return twice
