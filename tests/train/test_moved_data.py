"""The same data at another path: a run resumes, as the fingerprint of the data decides, not the path."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.faults.damaged import start
from tests.faults.processes import losses, rows
from tests.ranks import Ranks
from tests.tiny import tiny_file, tiny_run
from tests.tiny_filter import tiny_filter_config
from train.config.load import to_dict
from train.config.resume import differences, moved_data
from train.observe.run_facts import write_config


def finished_twice(ranks: Ranks, config: str) -> None:
    """Train, and once more under another name."""
    for words in ([], ["name=unbroken"]):
        (outcome,) = ranks(1, start, config, *words)
        assert outcome.code == 0, outcome.said


def resumed(run: Path) -> list[int]:
    return [event["step"] for event in rows(run, "events") if event["event"] == "resume"]


def test_the_same_text_at_another_path_resumes(ranks: Ranks, tmp_path: Path) -> None:
    config, run = str(tiny_file(tmp_path)), tmp_path / "runs/tiny"
    finished_twice(ranks, config)
    shutil.rmtree(run / "checkpoints/step_000008")
    (tmp_path / "corpus").rename(tmp_path / "moved")
    elsewhere = f"task.data.sources=[{tmp_path}/moved/*.txt]"
    (outcome,) = ranks(1, start, config, elsewhere)
    assert outcome.code == 0, outcome.said
    (line,) = [line for line in outcome.said.splitlines() if "the data lie elsewhere and are the same" in line]
    assert f"task.data.sources.0.path: '{tmp_path}/corpus/*.txt' -> '{tmp_path}/moved/*.txt'" in line
    assert resumed(run) == [6]
    assert losses(run) == losses(tmp_path / "runs/unbroken")
    (outcome,) = ranks(1, start, config, elsewhere)  # the new place is that of the run now
    assert (outcome.code, "not compared" in outcome.said) == (0, False)
    (outcome,) = ranks(1, start, config)
    assert "not compared: task.data.sources.0.path" in outcome.said


def test_other_text_at_another_path_is_refused(ranks: Ranks, tmp_path: Path) -> None:
    config, run = str(tiny_file(tmp_path)), tmp_path / "runs/tiny"
    (outcome,) = ranks(1, start, config)
    shutil.rmtree(run / "checkpoints/step_000008")
    shutil.copytree(tmp_path / "corpus", tmp_path / "other")
    changed = tmp_path / "other/000.txt"
    changed.write_text(changed.read_text() + "one more word")
    (outcome,) = ranks(1, start, config, f"task.data.sources=[{tmp_path}/other/*.txt]")
    assert outcome.code == 2
    assert "the data has changed since" in outcome.said
    assert f"task.data.sources.0.path: '{tmp_path}/corpus/*.txt' -> '{tmp_path}/other/*.txt'" in outcome.said
    assert resumed(run) == []


def test_the_same_images_at_another_path_resume(ranks: Ranks, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(6):
        for side, shape in (("RGB", (32, 40, 3)), ("Depth", (32, 40))):
            file = tmp_path / "pairs" / side / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(1, 255, shape, np.uint8)).save(file)
    settings = tiny_filter_config(tmp_path, "depth_upsampling")
    settings["task"]["data"] |= {"sources": [str(tmp_path / "pairs")], "validation_sources": [str(tmp_path / "pairs")]}
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings))
    (outcome,) = ranks(1, start, str(config))
    assert outcome.code == 0, outcome.said
    shutil.rmtree(tmp_path / "runs/tiny/checkpoints/step_000006")
    (tmp_path / "pairs").rename(tmp_path / "moved")
    words = [f"task.data.{name}=[{tmp_path}/moved]" for name in ("sources", "validation_sources")]
    (outcome,) = ranks(1, start, str(config), *words)
    assert outcome.code == 0, outcome.said
    assert resumed(tmp_path / "runs/tiny") == [4]
    assert outcome.said.count("the data lie elsewhere and are the same") == 1


@pytest.mark.parametrize(
    ("word", "is_place"),
    [
        ("task.data.sources=[elsewhere]", True),
        ("task.data.tokenizer=elsewhere/tokenizer", True),
        ("task.data.sources=[elsewhere, another]", False),
        ("task.data.sources=[{path: elsewhere, text_column: body}]", False),
        ("task.data.validation_sources=[elsewhere]", False),
        ("seed=3", False),
    ],
)
def test_only_a_place_is_left_to_the_fingerprint(tmp_path: Path, word: str, is_place: bool) -> None:
    old = tiny_run(tmp_path)
    new = tiny_run(tmp_path, word, *(["task.data.validation_fraction=null"] if "validation_sources" in word else []))
    write_config(old)
    assert bool(differences(to_dict(old), new)) != is_place
    if is_place:
        (change,) = moved_data(old.folder, new)
        assert "elsewhere" in change
