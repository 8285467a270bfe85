"""Results of a stage: a JSON file that is replaced after every item, so that a kill loses only what was under way."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

OK, FAILED, NOT_RUN, RUNNING = "ok", "failed", "not run", "running"


class Report:
    """The results file of a stage; items may be added from several threads.

    `state` of stage and items is one of the above, with a `reason` unless it is "ok"; `running` stays where the script
    was killed.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self.path = folder / f"{stage}.json"
        self._lock = threading.Lock()
        self._content: dict[str, Any] = {"stage": stage, "state": RUNNING, "items": {}}

    def add(self, item: str, **values: Any) -> None:
        """Add an item and write the file."""
        with self._lock:
            self._content["items"][item] = values
            _replace(self.path, self._content)

    def write(self) -> None:
        """Write the file."""
        with self._lock:
            _replace(self.path, self._content)

    @property
    def items(self) -> dict[str, dict[str, Any]]:
        """The items so far."""
        return self._content["items"]


def close(folder: Path, stage: str, *, state: str, seconds: float, reason: str | None = None) -> None:
    """Write how a stage ended into its file, keeping its items; make the file if the stage left none."""
    path = folder / f"{stage}.json"
    content = read(path) or {"stage": stage, "items": {}}
    content |= {"state": state, "seconds": round(seconds, 1)}
    _replace(path, content | ({"reason": reason} if reason else {}))


def read(path: Path) -> dict[str, Any] | None:
    """Return a results file; None if it is absent or unreadable."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _replace(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")
    temporary.replace(path)
