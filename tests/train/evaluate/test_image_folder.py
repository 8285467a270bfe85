"""Exported image models evaluated on any images: their runs' figures, those of a network called directly, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling.segmentation.configuration_bap import SegmenterConfig
from modeling.segmentation.modeling_bap import Segmenter
from tests.modeling.joint_filter.plain_filter import random_filter
from tests.ranks import Ranks
from tests.tiny_boxes import tiny_boxes_file
from tests.tiny_filter import SIZE, tiny_filter_file
from tests.tiny_scores import tiny_scores_file
from tests.train.export.test_authors import authors_file
from tests.train.test_resume import train
from train.config.tasks.joint_filter import PairSourceConfig
from train.data.images.pairs import open_pairs
from train.data.images.patches import min_max
from train.data.images.resize import degrade
from train.evaluate.__main__ import main
from train.evaluate.run import evaluate
from train.export.__main__ import main as export

SCENES = f"{{path: procedural-scenes, size: {SIZE}, start: 100, stop: 103, units_per_value: 100}}"
SOURCES = f"task.data.validation_sources=[{SCENES}]"


def judged(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert not said.out
    return said.err


def test_a_filter_has_the_figures_of_its_run_and_stays_as_it_is(
    ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_filter_file(tmp_path)
    ranks(1, train, str(path), ["steps=2"])
    run, folder = tmp_path / "runs/tiny", tmp_path / "out"
    assert export([str(run), str(folder)]) == 0
    capsys.readouterr()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    found = judged(capsys, folder, SOURCES, "task.data.scale=4")
    of_run = evaluate(run)[1]
    assert {name: found[name] for name in of_run} == pytest.approx(of_run, rel=1e-6)
    like = judged(capsys, folder, path)
    assert like == found
    assert judged(capsys, folder, path, "task.border=0", "task.baselines=false")["validation_rmse"] != pytest.approx(
        found["validation_rmse"], rel=1e-3
    )
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    textures = f"task.data.validation_sources=[{{path: procedural-textures, size: {SIZE}, stop: 2}}]"
    texture = judged(capsys, folder, "task.kind=texture_removal", textures, "task.iterations=2")
    assert {"validation_psnr", "validation_edge_psnr", "validation_guided_filter_psnr"} <= texture.keys()


def test_imported_weights_have_the_figures_of_the_network_called_directly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its scale is that of the import."""
    model = authors_file(tmp_path / "weights.pth", architecture="fdkn")
    assert export([str(tmp_path / "weights.pth"), str(tmp_path / "out"), "scale=8"]) == 0
    capsys.readouterr()
    found = judged(capsys, tmp_path / "out", SOURCES, "task.baselines=false")
    config = PairSourceConfig(path="procedural-scenes", size=(SIZE[0], SIZE[1]), start=100, stop=103)
    pairs, errors = open_pairs([config], path="sources"), []
    for index in range(len(pairs)):
        pair = pairs.read(index)
        span = min_max(pair.target, pair.valid)
        truth = span.to_unit(pair.target)
        small = degrade(truth, pair.valid, scale=8, mode="bicubic")
        guidance, target = (torch.from_numpy(x.transpose(2, 0, 1)[None].copy()) for x in (pair.guidance, small))
        with torch.no_grad():
            output = model(guidance, target).output[0, 0].numpy()
        inside = (output - truth[:, :, 0])[6:-6, 6:-6].astype(np.float64)
        errors.append(100 * span.width * np.sqrt(np.square(inside).mean()))
    assert found["validation_rmse"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert judged(capsys, tmp_path / "out", SOURCES, "task.data.scale=4")["validation_rmse"] != pytest.approx(
        found["validation_rmse"], rel=1e-3
    )


def test_a_network_of_segmentation_is_judged_by_its_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_boxes_file(tmp_path, "semantic_segmentation")
    torch.manual_seed(0)
    classes = ["disk", "triangle", "diamond", "cross"]
    config = SegmenterConfig.of_classes(classes, backbone="lite0", features=16, normalization="half")
    Segmenter(config).save_pretrained(tmp_path / "out")
    objects = "task.data.validation_sources=[{path: procedural-objects, size: [40, 48], start: 100, stop: 103}]"
    found = judged(capsys, tmp_path / "out", objects)
    assert 0 <= found["validation_miou"] <= 1
    assert judged(capsys, tmp_path / "out", path)["validation_miou"] == found["validation_miou"]


def test_a_filter_of_scores_is_judged_by_its_purpose(
    ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks(1, train, str(tiny_scores_file(tmp_path)), ["steps=2"])
    run, folder = tmp_path / "runs/tiny", tmp_path / "out"
    assert export([str(run), str(folder)]) == 0
    capsys.readouterr()
    images = "[{path: procedural-objects, start: 100, stop: 103, size: [40, 48]}]"
    found = judged(capsys, folder, f"task.data.validation_sources={images}")
    of_run = {name: value for name, value in evaluate(run)[1].items() if value == value}  # some class is nowhere
    assert {name: found[name] for name in of_run} == pytest.approx(of_run, rel=1e-6)


def test_what_an_evaluation_of_images_never_reads_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, scale = tmp_path / "filter", "task.data.scale=4"
    random_filter().save_pretrained(folder)
    (tmp_path / "text.yaml").write_text("task: {kind: language_model}")
    for arguments, fragment in (
        ([], "task.data.validation_sources: missing; name the images to evaluate on, as in task.data."),
        ([], "task.data.scale: missing; write the factor"),
        ([SOURCES], "task.data.scale: missing"),
        (["task.data.validation_sources=[]", scale], "task.data.validation_sources: is empty"),
        ([SOURCES, scale, "--step", "3"], "which has one state; remove it, or name the run"),
        ([SOURCES, scale, "task.model.window_size=9"], "task.model.window_size: cannot be overridden"),
        ([SOURCES, scale, "task.data.sources=[a]"], "task.data.sources: cannot be overridden"),
        ([SOURCES, scale, "task.kind=language_model"], "does not judge such a model; write depth_upsampling or"),
        ([SOURCES, "task.kind=texture_removal", scale], "task.data.scale: cannot be overridden"),
        ([f"task.data.validation_sources=[{tmp_path}/none]", scale], f"{tmp_path}/none does not exist"),
        ([tmp_path / "text.yaml"], "task.kind is language_model, but"),
        ([tmp_path / "none.yaml"], "none.yaml"),
    ):
        assert fragment in refusal(capsys, folder, *arguments)
    (folder / "model.safetensors").rename(folder / "weights")
    assert "contains no .safetensors file" in refusal(capsys, folder, SOURCES, scale)
    random_filter(architecture="dkn").save_pretrained(tmp_path / "dkn")
    (folder / "config.json").rename(tmp_path / "dkn/config.json")
    assert refusal(capsys, tmp_path / "dkn", SOURCES, scale).startswith(f"{tmp_path / 'dkn'}: cannot be loaded: ")
