"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.ranks import Ranks

torch.set_num_threads(1)  # several workers share the cores, and each has ranks of its own


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    pool = Ranks()
    yield pool
    pool.close()
