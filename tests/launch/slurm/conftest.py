"""Fixtures of the launcher's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.launch.slurm.slurm_cluster import SlurmCluster, Unavailable, install


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Three nodes under a real SLURM, on this machine; skips, with the reason, where that cannot be."""
    try:
        install()
        cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield cluster
    cluster.close()
