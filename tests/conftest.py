"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.ranks import Ranks

# Files whose tests share a fixture that takes long to make, a SLURM cluster. One worker runs them; they mostly wait,
# while the others compute.
ONE_WORKER = ("tests/launch/slurm/test_real_cluster.py",)

# Several workers share the cores, and each has ranks and runs of its own: one thread a process, and none that spins.
torch.set_num_threads(1)
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many workers `-n auto` means: one for each core that this process may use."""
    return len(os.sched_getaffinity(0))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the tests of a file in ONE_WORKER to one worker, the first of all, under `--dist loadgroup`.

    pytest-xdist 3.8 groups by marker, but writes the group into an attribute that pytest 9.2 no longer has.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file in ONE_WORKER else nodeid

    return ByFile(config, log)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    pool = Ranks()
    yield pool
    pool.close()
