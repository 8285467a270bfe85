"""`python -m train CONFIG --check`: what the machine and the files must provide is missing here, and exit code 2."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modeling.joint_filter.configuration_dkn import DKNConfig
from modeling.joint_filter.modeling_dkn import DKNModel
from modeling.segmentation.configuration_bap import SegmenterConfig
from modeling.segmentation.modeling_bap import Segmenter
from tests.checkpoints import write_checkpoint
from tests.tiny import tiny_file
from tests.tiny_boxes import tiny_boxes_file
from tests.tiny_filter import tiny_filter_file
from train.__main__ import main
from train.config.load import load, to_yaml
from train.tasks.language_model import decoder

CASES = {
    "a parent of output_dir is a file": (["output_dir={file}/runs"], "output_dir: ", "is not a folder"),
    "a parent of cache_dir is a file": (["task.data.cache_dir={file}/cache"], "task.data.cache_dir: ", "not a folder"),
    "output_dir is a dangling link": (["output_dir={dangling}"], "output_dir: ", "does not exist"),
    "output_dir is too long": (["output_dir=" + "x" * 300], "output_dir: ", "longer than 255 bytes"),
    "a source is too long": (["task.data.sources=[" + "x" * 300 + ".txt]"], "task.data", ""),
    "a tokenizer is too long": (["task.data.tokenizer=/" + "x" * 300], "task.data", ""),
    "no such run": (["checkpoint.start_from=missing@3"], "checkpoint.start_from: ", "missing does not exist"),
    "no such folder": (["checkpoint.start_from=missing"], "checkpoint.start_from: ", "missing does not exist"),
    "an @ in a path": (["checkpoint.start_from=/tmp/user@host/model"], "checkpoint.start_from: ", "does not exist"),
    "a folder without weights": (["checkpoint.start_from={empty}"], "checkpoint.start_from: ", "no .safetensors"),
    "no such step": (["checkpoint.start_from={other}@7"], "checkpoint.start_from: ", "available steps: 3"),
    "a step after the last": (["checkpoint.start_from={other}@3", "steps=3"], "nothing to train", "steps (3)"),
    "weights of another placement": (
        ["checkpoint.start_from={other}@3", "task.model.norm_placement=pre"],
        "task.model.norm_placement is 'pre', but 'peri'",
        "",
    ),
    "a folder of another activation": (
        ["checkpoint.start_from={folder}", "task.model.hidden_act=gelu"],
        "task.model.hidden_act is 'gelu', but 'silu'",
        "",
    ),
    "a folder of another width": (
        ["checkpoint.start_from={folder}", "task.model.intermediate_size=32"],
        "task.model.intermediate_size is 32, but 64",
        "",
    ),
    "no flash attention": (
        ["task.attention=flash_attention_2", "engine.precision=auto"],
        "task.attention: flash_attention_2 cannot be used here",
        "",
    ),
    "flash attention in fp32": (["task.attention=flash_attention_3"], "task.attention: ", "engine.precision fp32"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("places")
    (folder / "file").write_text("")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "empty").mkdir()
    path = tiny_file(folder)
    write_run(path, folder / "runs/other")
    write_folder(path, folder / "folder")
    names = {"file", "dangling", "empty", "folder"}
    return {name: str(folder / name) for name in names} | {"path": str(path), "other": str(folder / "runs/other")}


def write_run(path: Path, run: Path) -> Path:
    """Write a run with a checkpoint of step 3; return that one's folder."""
    checkpoint = write_checkpoint(run, 3)
    (run / "config.yaml").write_text(to_yaml(load(path)))
    return checkpoint


def write_folder(path: Path, folder: Path) -> None:
    config: Any = load(path).task
    torch.manual_seed(0)
    decoder(config).save_pretrained(folder)


def check(path: str | Path, *overrides: str) -> int:
    return main([str(path), "--check", *overrides])


@pytest.mark.parametrize("case", CASES)
def test_what_is_missing_is_exit_2(case: str, places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    overrides, first, second = CASES[case]
    before = sorted(Path(places["path"]).parent.rglob("*"))
    assert check(places["path"], *(override.format(**places) for override in overrides)) == 2
    error = capsys.readouterr().err
    assert first in error
    assert second in error
    assert sorted(Path(places["path"]).parent.rglob("*")) == before, "a check writes nothing"


def test_good_starting_points_pass(places: dict[str, str]) -> None:
    assert check(places["path"], f"checkpoint.start_from={places['other']}@3") == 0
    assert check(places["path"], "checkpoint.start_from=other@3") == 0
    assert check(places["path"], f"checkpoint.start_from={places['folder']}") == 0


def test_a_folder_with_an_at_sign_is_a_folder(tmp_path: Path) -> None:
    path = tiny_file(tmp_path)
    write_folder(path, tmp_path / "user@12")
    assert check(path, f"checkpoint.start_from={tmp_path}/user@12") == 0


def test_positions_may_be_extended_from_a_starting_point(places: dict[str, str]) -> None:
    longer = ["task.model.max_position_embeddings=64", "task.model.rope_parameters.rope_theta=5e5"]
    assert check(places["path"], f"checkpoint.start_from={places['folder']}", *longer) == 0


def test_other_positions_alone_are_refused(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    turned = "task.model.rope_parameters.rope_theta=5e5"
    for start in (places["folder"], f"{places['other']}@3"):
        assert check(places["path"], f"checkpoint.start_from={start}", turned) == 2
        error = capsys.readouterr().err
        assert "task.model.rope_parameters is " in error
        assert "or raise task.model.max_position_embeddings (32 there) to train on longer text" in error


def test_what_does_not_change_the_meaning_of_weights_may_differ(places: dict[str, str]) -> None:
    words = ["initializer_range=0.1", "z_loss_coefficient=1e-4", "frozen_norm_scales=all"]
    overrides = [f"task.model.{word}" for word in words]
    assert check(places["path"], f"checkpoint.start_from={places['folder']}", *overrides) == 0


@pytest.mark.parametrize("is_stated", [True, False])
def test_a_filter_that_means_something_else_is_refused(
    is_stated: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where config.json leaves out what is the default; name and purpose mean nothing to the weights."""
    path, folder = tiny_filter_file(tmp_path), tmp_path / "folder"
    DKNModel(DKNConfig()).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"purpose": {"task": "other", "scale": 16}}
    if not is_stated:
        config = {key: config[key] for key in ("model_type", "architectures", "purpose")}
    (folder / "config.json").write_text(json.dumps(config))
    start = f"checkpoint.start_from={folder}"
    assert check(path, start, "name=other") == 0
    for key, value, theirs in (
        ("window_size", 9, 15),
        ("residual", "false", "true"),
        ("sampling", "compat", "centered"),
    ):
        assert check(path, start, f"task.model.{key}={value}") == 2
        error = capsys.readouterr().err
        assert f"checkpoint.start_from: task.model.{key} is " in error
        assert f"{theirs}" in error
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bap_segmenter"}))
    assert check(path, start) == 2
    assert "holds another kind of model: its model_type is 'bap_segmenter'" in capsys.readouterr().err


def test_a_segmenter_may_start_with_another_dropout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder = tiny_boxes_file(tmp_path, "semantic_segmentation"), tmp_path / "folder"
    classes = ["disk", "triangle", "diamond", "cross"]
    Segmenter(SegmenterConfig.of_classes(classes, backbone="lite0", features=16, dropout=0.1)).save_pretrained(folder)
    assert check(path, f"checkpoint.start_from={folder}") == 0
    assert check(path, f"checkpoint.start_from={folder}", "task.model.temperature=5") == 2
    assert "task.model.temperature is 5.0, but 20.0 in" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest"])
def test_a_damaged_checkpoint_is_no_starting_point(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_file(tmp_path)
    checkpoint = write_run(path, tmp_path / "runs/other")
    if damage == "cut":
        (checkpoint / "rank_00000.safetensors").write_bytes(b"x")
    elif damage == "gone":
        (checkpoint / "rank_00000.safetensors").unlink()
    else:
        (checkpoint / "manifest.json").write_text('{"files": [3]}')
    assert check(path, "checkpoint.start_from=other@3") == 2
    assert str(checkpoint) in capsys.readouterr().err


def test_weights_of_other_shapes_or_cut_off_are_found_by_their_headers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_file(tmp_path)
    write_folder(path, tmp_path / "folder")
    weights = tmp_path / "folder/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert check(path, f"checkpoint.start_from={tmp_path}/folder") == 2
    assert f"has {len(whole) - 1:,} bytes instead of {len(whole):,}" in capsys.readouterr().err
    save_file({"lm_head.weight": torch.zeros(3)}, weights)
    assert check(path, f"checkpoint.start_from={tmp_path}/folder") == 2
    error = capsys.readouterr().err
    assert "lm_head.weight is [320, 32] here and [3]" in error
    assert "... and " in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_file(tmp_path)
    (tmp_path / "closed").mkdir(mode=0o500)
    assert check(path, f"output_dir={tmp_path}/closed/runs") == 2
    assert "closed may not be written to" in capsys.readouterr().err


def test_a_read_only_file_system_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_file(tmp_path)
    monkeypatch.setattr(os, "access", lambda place, mode: "cache" not in str(place))
    (tmp_path / "cache").mkdir()
    assert check(path) == 2
    assert "cache may not be written to" in capsys.readouterr().err


@pytest.mark.parametrize(("pixel", "code"), [("[31, 39]", 0), ("[32, 0]", 2), ("[0, 40]", 2)])
def test_the_shown_pixel_is_inside_the_images(pixel: str, code: int, tmp_path: Path) -> None:
    assert check(tiny_filter_file(tmp_path), f"task.shown_pixel={pixel}") == code


def test_the_folder_of_another_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_file(tmp_path)
    (tmp_path / "runs/tiny").mkdir(parents=True)
    (tmp_path / "runs/tiny/config.yaml").write_text(to_yaml(load(path, ["optim.lr=3e-4"])))
    assert check(path) == 2
    assert "optim.lr: 0.0003 -> 0.01" in capsys.readouterr().err
