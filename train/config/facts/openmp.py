"""Waiting of OpenMP threads in processes that share cores, for launchers and ranks."""

from __future__ import annotations

from collections.abc import MutableMapping


def wait_passively(environment: MutableMapping[str, str]) -> None:
    """Make idle OpenMP threads sleep rather than spin, unless the user has chosen how they wait.

    OpenMP threads spin by default: 12 to 25 % faster for a process with cores of its own, several times slower for
    processes that share them. Takes effect only in processes that load torch, and with it OpenMP, afterwards.

    Args:
        environment: Environment variables; OMP_WAIT_POLICY and GOMP_SPINCOUNT are the user's.
    """
    if "GOMP_SPINCOUNT" not in environment:
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
