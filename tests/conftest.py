"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from tests.ranks import Ranks

# Several workers share the cores, and each has ranks and runs of its own: one thread a process, and none that spins.
torch.set_num_threads(1)
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many workers `-n auto` means: one for each core that this process may use."""
    return len(os.sched_getaffinity(0))


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    pool = Ranks()
    yield pool
    pool.close()
