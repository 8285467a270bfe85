"""JSON Lines sink: the .jsonl files of a run folder, in strict JSON and whole lines, truncated on resume."""

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

from train.config.facts.run_layout import row_of
from train.observe.sink import Sink, Table

logger = logging.getLogger(__name__)


class JsonLines(Sink):
    """One file per table, created with its first row.

    Args:
        folder: The run folder.
        done: The step after which the run resumes; later rows are dropped, as they are written again. Events stay.
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
    """An append-only file of JSON lines. A full disk does not stop the run: lines are buffered until there is space."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._waiting = b""
        self._warned = False

    def append(self, fields: Mapping[str, Any]) -> None:
        """Write a line, after any buffered lines."""
        self._waiting += json.dumps(strict(fields), allow_nan=False).encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(self._waiting)
            if written != len(self._waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)  # no partial lines
            if not self._warned:
                logger.error("%s: %s; lines are buffered and written once there is space", self.path, error.strerror)
            self._warned = True
            return
        self._waiting, self._warned = b"", False

    def close(self) -> None:
        """Close the file; log an error if buffered lines are lost."""
        if self._waiting:
            logger.error("%s: %d buffered lines are lost", self.path, self._waiting.count(b"\n"))
        self._file.close()


def cut_after_step(path: Path, step: int | None) -> None:
    """Drop damaged lines, such as an incomplete last one, and every row after `step`, which is written again."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    rows = [row_of(line) if line.endswith(b"\n") else None for line in lines]
    damaged = [number for number, row in enumerate(rows, start=1) if row is None]
    if damaged:
        logger.warning("%s: %d damaged lines were dropped, the first of them line %d", path, len(damaged), damaged[0])
    kept = [
        line for line, row in zip(lines, rows, strict=True) if row is not None and (step is None or row["step"] <= step)
    ]
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(kept))
    temporary.replace(path)


def strict(value: Any) -> Any:
    """Return a JSON value with non-finite numbers replaced by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    return [strict(item) for item in value] if isinstance(value, list | tuple) else value
