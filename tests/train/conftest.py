"""A trained run and its exported folder, for tests that only read them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.ranks import Ranks
from tests.tiny import tiny_file
from train.config.load import load
from train.export import __main__ as export
from train.rank import train_rank


class Exported(NamedTuple):
    run: Path
    folder: Path


def _train(config_file: str) -> None:
    assert train_rank(load(config_file)) == 0


@pytest.fixture(scope="session")
def exported(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The run of `tiny_config`, and its last checkpoint as a Hugging Face folder with its code."""
    place = tmp_path_factory.mktemp("exported")
    ranks(1, _train, str(tiny_file(place)))
    made = Exported(place / "runs/tiny", place / "out")
    assert export.main([str(made.run), str(made.folder), "--format", "periln"]) == 0
    return made
