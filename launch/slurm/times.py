"""Durations in SLURM's notation."""

from __future__ import annotations

import re

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def time_limit_seconds(text: str) -> int:
    """Convert a time limit in sbatch's notation to seconds: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        ValueError: The text is not in this notation.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(text)
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
    hours, minutes, seconds = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
    return (hours * 60 + minutes) * 60 + seconds


def duration(seconds: int) -> str:
    """Return a time limit as SLURM shows it: 1-02:03:04, or 02:03:04 below a day."""
    days, rest = divmod(seconds, 86_400)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock
