"""Progress of a preparation on the screen."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from train.data.text.shards import ShardRecord

logger = logging.getLogger(__name__)

_TOLD_EVERY = 30  # seconds, where there is no terminal


class Progress:
    """Progress of a preparation: a bar on a terminal, else a line now and then.

    Args:
        total: Bytes of text in all; None where they are not known, as in compressed files.
    """

    def __init__(self, total: int | None):
        from tqdm import tqdm

        settings: dict[str, Any] = {"unit": "B", "unit_scale": True, "leave": False}
        self._bar = tqdm(desc="tokenizing", total=total, disable=not sys.stderr.isatty(), **settings)
        self._total = total
        self._began = self._told = time.monotonic()
        self._bytes = self._tokens = 0

    def advance(self, record: ShardRecord) -> None:
        """Count a shard."""
        self._bytes += record.read_bytes
        self._tokens += sum(record.tokens.values())
        self._bar.update(record.read_bytes)
        now = time.monotonic()
        if self._bar.disable and now - self._told > _TOLD_EVERY:
            self._told = now
            rate = self._bytes / (now - self._began)
            left = f", {(self._total - self._bytes) / rate / 60:.0f} minutes left" if self._total else ""
            logger.info(
                "%.1f MB of text, %s tokens, %.1f MB/s%s", self._bytes / 1e6, f"{self._tokens:,}", rate / 1e6, left
            )

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
