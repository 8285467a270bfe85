"""JSON Lines: the .jsonl files of a run folder, strict JSON, whole lines, cut back at a resume."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from typing_extensions import override

from train.observe.sink import Sink, Table

logger = logging.getLogger(__name__)


class JsonLines(Sink):
    """One file per table, made by its first row.

    Args:
        folder: Of the run.
        done: The step that the run resumes after: later rows are dropped, as they will come again; events stay.
    """

    def __init__(self, folder: Path, *, done: int) -> None:
        self._folder = folder
        self._files: dict[Table, LineFile] = {}
        self._lock = threading.Lock()  # the checkpoint writer's thread logs its own event
        for table in get_args(Table):
            cut_after_step(folder / f"{table}.jsonl", None if table == "events" else done)

    @override
    def row(self, table: Table, step: int, fields: Mapping[str, Any]) -> None:
        with self._lock:
            if table not in self._files:
                self._files[table] = LineFile(self._folder / f"{table}.jsonl")
            self._files[table].append(fields)

    @override
    def close(self) -> None:
        for file in self._files.values():
            file.close()


class LineFile:
    """A file of JSON lines that only grows. A full disk does not end the run: lines wait until there is room."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._waiting = b""
        self._warned = False

    def append(self, fields: Mapping[str, Any]) -> None:
        """Write a line, after those that still wait."""
        self._waiting += json.dumps(strict(fields), allow_nan=False).encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(self._waiting)
            if written != len(self._waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)  # no half lines
            if not self._warned:
                logger.error("%s: %s; its lines are kept and written when that is over", self.path, error.strerror)
            self._warned = True
            return
        self._waiting, self._warned = b"", False

    def close(self) -> None:
        """Close the file; lines that could not be written are lost now, and that is said."""
        if self._waiting:
            logger.error("%s: %d lines could not be written", self.path, self._waiting.count(b"\n"))
        self._file.close()


def cut_after_step(path: Path, step: int | None) -> None:
    """Drop a half-written last line, and every row after `step`: a resumed run writes them again."""
    if not path.exists():
        return
    kept = [line for line in path.read_bytes().splitlines(keepends=True) if _is_kept(line, step)]
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(kept))
    temporary.replace(path)


def _is_kept(line: bytes, step: int | None) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and (step is None or row["step"] <= step)


def strict(value: Any) -> Any:
    """Return a JSON value in which what is not finite is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    return [strict(item) for item in value] if isinstance(value, list | tuple) else value
