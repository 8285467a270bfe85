"""The training contract for every norm placement: ZeRO stages agree, resumes are bit-exact, parameters are counted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from modeling.decoder.facts_counts_periln import count_parameters
from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.facts_placements_periln import CHOICES
from tests.ranks import Ranks
from tests.tiny import tiny_file
from tests.train.test_resume import losses, rows, train
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


def counts(folder: Path, path: str, run: list[str]) -> tuple[int, int]:
    """Return the parameters that a run trained, as environment.json says, and those of the closed form."""
    config = load(path, run)
    environment = json.loads((folder / "runs" / config.name / "environment.json").read_text())
    return environment["parameters"], count_parameters(DecoderShape.of(config.task.model)).total


@pytest.mark.slow
@pytest.mark.parametrize("switched", [False, True])
def test_stages_0_and_3_give_equal_losses_for_every_placement(ranks: Ranks, tmp_path: Path, switched: bool) -> None:
    path = str(tiny_file(tmp_path))
    for placement in CHOICES:
        for stage, size in ((0, 1), (3, 2)):
            run = [*settings(placement, switched=switched), f"name=stage{stage}-{placement}"]
            ranks(size, train, path, [*run, f"engine.zero_stage={stage}"])
            trained, expected = counts(tmp_path, path, run)
            assert trained == expected, run
        one, other = (losses(tmp_path, f"stage{stage}-{placement}") for stage in (0, 3))
        assert len(one) == len(other) == 3
        assert all(math.isfinite(loss) and 0 < norm < math.inf for loss, norm, _ in one.values()), placement
        for step, (loss, norm, samples) in other.items():
            assert loss == pytest.approx(one[step][0], rel=1e-5), placement
            assert norm == pytest.approx(one[step][1], rel=1e-5), placement
            assert samples == one[step][2]


SEVERAL = ("peri", "lns_learned", "keel", "hybrid")  # with every kind of parameter that a placement can add


@pytest.mark.parametrize(
    ("stage", "size", "placements"),
    [
        pytest.param(3, 2, SEVERAL, marks=pytest.mark.slow),
        pytest.param(3, 2, tuple(CHOICES), marks=pytest.mark.nightly),
        pytest.param(0, 1, tuple(CHOICES), marks=pytest.mark.nightly),
    ],
    ids=["several, stage 3", "all, stage 3", "all, stage 0"],
)
def test_placements_resume_bit_for_bit_with_their_switches_on(
    ranks: Ranks, tmp_path: Path, stage: int, size: int, placements: tuple[str, ...]
) -> None:
    path, chosen = str(tiny_file(tmp_path)), f"engine.zero_stage={stage}"
    for placement in placements:
        run = [*settings(placement, switched=True), chosen]
        ranks(size, train, path, [*run, f"name=unbroken-{placement}"])
        broken = [*run, f"name=broken-{placement}"]
        assert ranks(size, train, path, broken, 3)[0] == "broken off"
        ranks(size, train, path, broken)
        events = rows(tmp_path, f"broken-{placement}", "events.jsonl")
        assert [event["step"] for event in events if event["event"] == "resume"] == [2]
        assert losses(tmp_path, f"broken-{placement}") == losses(tmp_path, f"unbroken-{placement}"), placement
