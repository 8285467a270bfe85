"""Sets that validation sources form: sources with one label have metrics of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from train.config.tasks.joint_filter import PairSourceConfig


def labels(sources: Sequence[PairSourceConfig]) -> list[str]:
    """Return the label of each source: its own, or the end of its path: as much of it as tells two paths apart."""
    paths = list(dict.fromkeys(source.path for source in sources))
    ends = {path: _end(path, 1) for path in paths}
    unclear = {path for path in paths if list(ends.values()).count(ends[path]) > 1}
    return [
        source.label or (_end(source.path, 2) if source.path in unclear else ends[source.path]) for source in sources
    ]


def _end(path: str, parts: int) -> str:
    """Return the last parts of a path as part of a metric's name."""
    return re.sub(r"\W+", "_", "_".join(Path(path).expanduser().parts[-parts:]), flags=re.ASCII).strip("_") or "pairs"


def by_label(sources: Sequence[PairSourceConfig]) -> list[PairSourceConfig]:
    """Return the sources with those of one label next to each other, in the order of the first of each."""
    of_source = labels(sources)
    order = list(dict.fromkeys(of_source))
    return [sources[i] for i in sorted(range(len(sources)), key=lambda i: order.index(of_source[i]))]
