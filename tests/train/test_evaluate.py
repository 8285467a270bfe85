"""A checkpoint judged again: the run's own figures, other data, and what would not be read."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.ranks import Ranks
from tests.tiny import tiny_file, write_corpus
from tests.tiny_filter import tiny_filter_file
from tests.train.test_resume import rows, train
from train.config.load import load
from train.data.drawn.scenes import scene
from train.evaluate.__main__ import main
from train.evaluate.run import evaluate, overridable


def test_a_checkpoint_is_judged_again_and_on_other_data(
    ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks(2, train, str(tiny_filter_file(tmp_path)), ["steps=3"])
    run = tmp_path / "runs/tiny"
    (last,) = (row for row in rows(tmp_path) if "validation_rmse" in row)
    step, figures = evaluate(run)
    assert step == 3
    assert figures == pytest.approx({name: last[name] for name in figures}, rel=1e-5)
    assert last["epoch"] == 3 * 4 / 6  # three steps of four samples, six pairs
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
    filters = ["micro_batch_size", "task.border", "task.baselines"]
    filters += ["task.data.validation_sources", "task.data.validation_noise"]
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


def test_other_text_is_judged_whole_without_the_training_text(
    ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks(1, train, str(tiny_file(tmp_path)), ["steps=1", "task.data.validation_windows=2"])
    run, judged = tmp_path / "runs/tiny", tmp_path / "judged"
    write_corpus(judged, documents=2, seed=1)
    shutil.rmtree(tmp_path / "corpus")
    shutil.rmtree(tmp_path / "cache")
    there = f"task.data.validation_sources=[{judged}]"
    assert main([str(run), there]) == 0
    size = sum(file.stat().st_size for file in judged.iterdir())
    line = capsys.readouterr().out.splitlines()[1].strip()
    assert line.startswith(f"{judged}/000.txt, {judged}/001.txt: 2 documents, {size / 1000:.1f} kB, ")
    amounts = re.search(r", ([\d,]+) tokens, ([\d,]+) windows of 16 tokens(?:; the last (\d+) tokens fill no)?", line)
    assert amounts is not None
    tokens, windows, rest = (int((number or "0").replace(",", "")) for number in amounts.groups())
    assert windows > 2
    assert tokens == 1 + windows * 16 + rest
    assert not (tmp_path / "cache").exists()
    assert main([str(run), there, "task.data.validation_windows=3"]) == 0
    assert ": 1 document, " in (first := capsys.readouterr().out)
    assert "3 windows of 16 tokens; only its first windows, as task.data.validation_windows says" in first
    (judged / "short.txt").write_text("short")
    short = f"task.data.validation_sources=[{judged}/short.txt, {{path: '{judged}/short.txt', label: a}}]"
    assert main([str(run), short]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"task.data.validation_sources[{number}]: not enough text{of} for a single validation window of 16: there are "
        "6 tokens, 17 are needed; add text, or lower task.data.sequence_length"
        for number, of in ((0, ""), (1, " of the label a"))
    ]


def test_labelled_sets_have_metrics_of_their_own(ranks: Ranks, tmp_path: Path) -> None:
    """In a run of two ranks, afterwards on one, and as each set has when it is judged alone."""
    paths = [write_corpus(tmp_path / name, documents=2, seed=seed) for seed, name in enumerate(("one", "two"), 1)]
    labelled = ", ".join(f"{{path: {path}, label: {path.name}}}" for path in paths)
    overrides = ["steps=2", "task.data.validation_fraction=null", f"task.data.validation_sources=[{labelled}]"]
    ranks(2, train, str(tiny_file(tmp_path)), overrides)
    run = tmp_path / "runs/tiny"
    (last,) = (row for row in rows(tmp_path) if "validation_loss" in row)
    figures = evaluate(run)[1]
    names = ("loss", "perplexity", "bits_per_byte")
    assert set(figures) == {f"validation_{label}{name}" for label in ("", "one_", "two_") for name in names}
    assert figures == pytest.approx({name: last[name] for name in figures}, rel=1e-5)
    alone = [evaluate(run, [f"task.data.validation_sources=[{path}]"])[1] for path in paths]
    for path, of_set in zip(paths, alone, strict=True):
        assert {n: figures[f"validation_{path.name}_{n}"] for n in names} == pytest.approx(
            {name: of_set[f"validation_{name}"] for name in names}, rel=1e-5
        )
    facts = json.loads((run / "environment.json").read_text())["data"]["validation_sets"]
    assert [(each["label"], each["documents"]) for each in facts] == [("one", 2), ("two", 2)]
    windows = [each["windows"] for each in facts]
    mean = np.average([of_set["validation_loss"] for of_set in alone], weights=windows)
    assert figures["validation_loss"] == pytest.approx(mean, rel=1e-5)
