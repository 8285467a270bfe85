"""A checkpoint judged again: the run's own figures, other data, and what would not be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.ranks import Ranks
from tests.tiny import tiny_file
from tests.tiny_filter import tiny_filter_file
from tests.train.test_resume import rows, train
from train.config.load import load
from train.data.drawn.scenes import scene
from train.evaluate.__main__ import evaluate, main, overridable


def test_a_checkpoint_is_judged_again_and_on_other_data(
    ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks(2, train, str(tiny_filter_file(tmp_path)), ["steps=3"])
    run = tmp_path / "runs/tiny"
    (last,) = (row for row in rows(tmp_path) if "validation_rmse" in row)
    step, figures = evaluate(run)
    assert step == 3
    assert figures == pytest.approx({name: last[name] for name in figures}, rel=1e-5)
    other = ["task.data.validation_sources=[{path: procedural-scenes, start: 7, stop: 8, size: [40, 56]}]"]
    assert evaluate(run, other)[1]["validation_rmse"] != pytest.approx(last["validation_rmse"], rel=1e-2)
    assert main([str(run), "optim.lr=1", "task.model.residual=false", "engine.precision=fp32"]) == 2
    said = capsys.readouterr().err
    assert "optim.lr: cannot be overridden; only evaluation settings can" in said
    assert "task.model.residual: cannot be" in said
    assert "engine.precision: cannot be" in said  # it would not be read
    assert main([str(tmp_path)]) == 2


@pytest.mark.parametrize(
    ("kind", "override"),
    [
        ("depth_upsampling", "task.data.sources=[elsewhere]"),
        ("depth_upsampling", "task.data.sources.0.path=elsewhere"),
        ("depth_upsampling", "task.data.crop=32"),
        ("depth_upsampling", "task.data.flips=false"),
        ("depth_upsampling", "task.data.seed=3"),
        ("depth_upsampling", "task.data.unit=cm"),
        ("depth_upsampling", "task.shown_images=0"),
        ("depth_upsampling", "task={model: {residual: false}}"),
        ("texture_removal", "task.data.noise=0.5"),
        ("texture_removal", "task.shown_pixel=[1, 1]"),
        ("language_model", "task.data.seed=3"),
        ("language_model", "task.data.tokenizer=gpt2"),
        ("language_model", "task.model.hidden_size=8"),
    ],
)
def test_what_an_evaluation_never_reads_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, override: str
) -> None:
    written = tiny_file(tmp_path) if kind == "language_model" else tiny_filter_file(tmp_path, kind)
    written.rename(tmp_path / "config.yaml")
    assert main([str(tmp_path), override]) == 2
    (fault,) = capsys.readouterr().err.splitlines()
    assert fault.startswith(f"{override.partition('=')[0]}: cannot be overridden; only evaluation settings can")


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("depth_upsampling", ["task.data.scale=8", "task.data.downsampling=block_mean", "task.other_guidance=true"]),
        ("depth_upsampling", ["task.data.validation_sources.0.stop=101", "task.border=2", "task.baselines=false"]),
        ("texture_removal", ["task.iterations=2", "micro_batch_size=1"]),
        ("language_model", ["task.data.validation_sources=[a.txt]"]),
        ("language_model", ["task.data.sources=[elsewhere/*.txt]", "task.data.cache_dir=elsewhere"]),
    ],
)
def test_what_an_evaluation_reads_may_be_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, overrides: list[str]
) -> None:
    """As far as that there is no checkpoint to judge."""
    written = tiny_file(tmp_path) if kind == "language_model" else tiny_filter_file(tmp_path, kind)
    written.rename(tmp_path / "config.yaml")
    assert main([str(tmp_path), *overrides]) == 2
    assert capsys.readouterr().err == f"{tmp_path}: has no complete checkpoint\n"


def test_an_evaluation_may_override_what_decides_how_a_model_is_judged(tmp_path: Path) -> None:
    filters = ["micro_batch_size", "task.data.validation_sources", "task.border", "task.baselines"]
    depth = [*filters, "task.data.scale", "task.data.downsampling", "task.other_guidance"]
    texture = [*filters, "task.iterations"]
    for kind, paths in (("depth_upsampling", depth), ("texture_removal", texture)):
        assert sorted(overridable(load(tiny_filter_file(tmp_path, kind)))) == sorted(paths)
    text = ["sources", "sequence_length", "validation_fraction", "validation_sources", "validation_windows"]
    text += ["on_bad_document", "cache_dir", "num_workers"]
    of_a_decoder = ["micro_batch_size", *(f"task.data.{key}" for key in text), "task.attention"]
    assert overridable(load(tiny_file(tmp_path))) == of_a_decoder


def test_a_checkpoint_is_judged_where_its_training_data_are_not(
    ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs"
    for number in range(2):
        for side, values in zip(("RGB", "Depth"), scene(number, (32, 40)), strict=True):
            (pairs / side).mkdir(parents=True, exist_ok=True)
            np.save(pairs / side / f"{number}.npy", values)
    ranks(1, train, str(tiny_filter_file(tmp_path)), ["steps=1", "task.data.crop=null", f"task.data.sources=[{pairs}]"])
    run = tmp_path / "runs/tiny"
    figures = evaluate(run)[1]
    shutil.rmtree(pairs)
    assert evaluate(run)[1] == figures
    for override, fragment in (
        (f"task.data.validation_sources=[{pairs}]", f"{pairs} does not exist"),
        ("task.data.validation_sources=[{path: procedural-textures, stop: 1}]", "3 channels"),
        ("task.data.scale=64", "task.data.scale: 64 is too large for scene-00100 (32 x 40 pixels)"),
    ):
        assert main([str(run), override]) == 2
        assert fragment in capsys.readouterr().err


def test_other_text_is_read_by_the_tokens_that_were_learned(ranks: Ranks, tmp_path: Path) -> None:
    """A tokenizer made of the sources would be another with other sources, and its tokens mean nothing to the model."""
    ranks(1, train, str(tiny_file(tmp_path)), ["steps=8"])
    run = tmp_path / "runs/tiny"
    judged = tmp_path / "judged.txt"
    judged.write_text((tmp_path / "corpus/000.txt").read_text())
    (tmp_path / "other.txt").write_text("zyx wvu tsr qpo nml kji hgf edc ba " * 500)
    there = [f"task.data.validation_sources=[{judged}]"]
    figures = evaluate(run, there)[1]
    assert evaluate(run, [*there, f"task.data.sources=[{tmp_path / 'other.txt'}]"])[1] == figures
    # measured: 3.53; by a tokenizer made anew of the whole corpus 3.62, of the other text 6.88
    assert figures["validation_bits_per_byte"] == pytest.approx(3.53, abs=0.03)
