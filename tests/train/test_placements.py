"""The training contract for every norm placement: ZeRO stages agree, resumes are bit-exact, parameters are counted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeling.decoder.facts_counts_periln import count_parameters
from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.facts_placements_periln import CHOICES
from tests.ranks import Ranks
from tests.tiny import tiny_file
from tests.train.test_resume import losses, train
from train.config.load import load

LAYERS = 4  # mix needs them
SHORT = ["steps=3", "evaluate_every=3", "checkpoint.every=2", f"task.model.num_hidden_layers={LAYERS}"]


def settings(placement: str, *, switched: bool = False) -> list[str]:
    """Return the settings of three steps; `switched` turns on all that the placement allows."""
    model = {"norm_placement": placement}
    if switched:
        model |= {"gpas": "true", "attention_gate": "element", "embedding_norm": "true", "residual_factor": "0.5"}
        model |= {} if placement == "keel" else {"norm_kind": "dyt"}
        model |= {} if "hybrid" in placement else {"qk_norm": "projection"}
    return SHORT + [f"task.model.{key}={value}" for key, value in model.items()]


def train_all(path: str, runs: list[tuple[list[str], int | None]]) -> list[str]:
    """Train one configuration after the other; returns how each ended."""
    return [train(path, overrides, stop_after) for overrides, stop_after in runs]


def of_all(name: str, *more: str, switched: bool = False) -> Iterator[list[str]]:
    """Yield the settings of a run for each placement, called `<name>-<placement>`."""
    for placement in CHOICES:
        yield [*settings(placement, switched=switched), f"name={name}-{placement}", *more]


@pytest.mark.parametrize("switched", [False, True])
def test_every_placement_trains_and_counts_its_parameters(ranks: Ranks, tmp_path: Path, switched: bool) -> None:
    path = str(tiny_file(tmp_path))
    runs = list(of_all("plain", "engine.zero_stage=0", switched=switched))
    ranks(1, train_all, path, [(run, None) for run in runs])
    for placement, run in zip(CHOICES, runs, strict=True):
        seen = losses(tmp_path, f"plain-{placement}")
        assert len(seen) == 3
        assert all(math.isfinite(loss) and 0 < norm < math.inf for loss, norm, _ in seen.values()), placement
        environment = json.loads((tmp_path / f"runs/plain-{placement}/environment.json").read_text())
        model = load(path, run).task.model
        assert environment["parameters"] == count_parameters(DecoderShape.of(model)).total


@pytest.mark.slow
@pytest.mark.parametrize("switched", [False, True])
def test_stages_0_and_3_give_equal_losses_for_every_placement(ranks: Ranks, tmp_path: Path, switched: bool) -> None:
    path = str(tiny_file(tmp_path))
    for stage, size in ((0, 1), (3, 2)):
        runs = of_all(f"stage{stage}", f"engine.zero_stage={stage}", switched=switched)
        ranks(size, train_all, path, [(run, None) for run in runs])
    for placement in CHOICES:
        one, other = (losses(tmp_path, f"stage{stage}-{placement}") for stage in (0, 3))
        for step, (loss, norm, samples) in other.items():
            assert loss == pytest.approx(one[step][0], rel=1e-5), placement
            assert norm == pytest.approx(one[step][1], rel=1e-5), placement
            assert samples == one[step][2]
        environment = [
            json.loads((tmp_path / f"runs/stage{stage}-{placement}/environment.json").read_text()) for stage in (0, 3)
        ]
        assert environment[0]["parameters"] == environment[1]["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "size"), [(0, 1), (3, 2)])
def test_every_placement_resumes_bit_for_bit_with_its_switches_on(
    ranks: Ranks, tmp_path: Path, stage: int, size: int
) -> None:
    path, chosen = str(tiny_file(tmp_path)), f"engine.zero_stage={stage}"
    unbroken, broken = (list(of_all(name, chosen, switched=True)) for name in ("unbroken", "broken"))
    ended = ranks(size, train_all, path, [(run, None) for run in unbroken] + [(run, 3) for run in broken])[0]
    assert ended == ["done"] * len(CHOICES) + ["broken off"] * len(CHOICES)
    ranks(size, train_all, path, [(run, None) for run in broken])
    for placement in CHOICES:
        assert len(losses(tmp_path, f"broken-{placement}")) == 3
        assert losses(tmp_path, f"broken-{placement}") == losses(tmp_path, f"unbroken-{placement}"), placement
