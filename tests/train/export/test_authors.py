"""`python -m train.export FILE OUT scale=8`: the authors' weights as a folder that loads like any export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel

from modeling.joint_filter.modeling_dkn import DKNModel
from tests.modeling.joint_filter.plain_filter import random_filter, random_pair
from tests.modeling.joint_filter.test_authors import authors_state_dict
from train.export.__main__ import main


def authors_file(path: Path, **fields: Any) -> DKNModel:
    """Write random weights with the authors' names, as their code saves them; return the filter that they make."""
    model = random_filter(sampling="compat", **fields)
    torch.save({f"module.{name}": tensor for name, tensor in authors_state_dict(model).items()}, path)
    return model


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert not said.out
    return said.err


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"architecture": "fdkn"}, ["scale=8"]),
        ({"architecture": "dkn", "kernel_size": 5}, ["scale=4", "downsampling=nearest_right_bottom"]),
        ({"architecture": "fdkn", "residual": False, "window_size": 9}, ["scale=8", "residual=false", "window_size=9"]),
    ],
)
def test_the_folder_computes_what_the_file_does(
    fields: dict[str, Any], settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = authors_file(tmp_path / "weights.pth", **fields)
    assert main([str(tmp_path / "weights.pth"), str(tmp_path / "out"), *settings]) == 0
    assert str(tmp_path / "out") in capsys.readouterr().out
    loaded = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    pair = random_pair(16, 20)
    with torch.no_grad():
        assert torch.equal(loaded(*pair).output, model(*pair).output)
    config = json.loads((tmp_path / "out/config.json").read_text())
    stated = {"sampling": "compat", "architecture": fields["architecture"]} | fields
    assert {key: config[key] for key in stated} == stated
    assert config["purpose"]["scale"] == int(settings[0].removeprefix("scale="))
    card = (tmp_path / "out/README.md").read_text()
    assert "`weights.pth`, SHA-256 " in card
    assert 'AutoModel.from_pretrained("FOLDER", trust_remote_code=True)' in card
    assert "python -m train.filter FOLDER GUIDANCE TARGET OUT" in card


def test_a_file_of_other_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    fdkn = authors_state_dict(random_filter(sampling="compat"))

    def saved(content: object) -> Path:
        torch.save(content, tmp_path / "file.pth")
        return tmp_path / "file.pth"

    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    no_bias = {name: tensor for name, tensor in fdkn.items() if name != "DepthKernel.conv2.bias"}
    nan = fdkn | {"DepthKernel.conv1.bias": torch.full((32,), torch.nan)}
    cases: list[tuple[Path | dict[str, Tensor] | list[int], str]] = [
        (tmp_path / "text.pth", "cannot be read as weights"),
        (tmp_path / "empty.pth", "cannot be read as weights"),
        (tmp_path / "other.safetensors", "no weights of DKN or FDKN, which have DepthKernel.conv1.weight and"),
        (tmp_path / "none.pth", "does not exist; pass a run like runs/NAME, or a file of weights"),
        ([1, 2], "a list, not tensors by name"),
        ({"conv1.weight": torch.zeros(1)}, "but conv1.weight"),
        ({}, "but nothing"),
        (no_bias, "missing: DepthKernel.conv2.bias"),
        (fdkn | {"DepthKernel.extra": torch.zeros(1)}, "too many: DepthKernel.extra"),
        (fdkn | {"DepthKernel.conv7.weight": torch.zeros(1)}, "does not fit this dkn"),
        (fdkn | {"DepthKernel.conv1.weight": torch.zeros(32, 1, 7, 7)}, "(32, 1, 7, 7) given, (32, 16, 3, 3) wanted"),
        (nan, "DepthKernel.conv1.bias: not finite"),
    ]
    for content, fragment in cases:
        path = content if isinstance(content, Path) else saved(content)
        message = refusal(capsys, path, out, "scale=8")
        assert fragment in message
        assert str(path) in message
        assert not out.exists()


def test_what_an_import_never_reads_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "weights.pth", tmp_path / "out"
    authors_file(file)
    assert refusal(capsys, file, out) == "scale: missing and has no default; write a whole number\n"
    assert "window_size: 10 has no pixel in the middle; write 9 or 11" in refusal(
        capsys, file, out, "scale=8", "window_size=10"
    )
    assert "sampling: unknown key" in refusal(capsys, file, out, "scale=8", "sampling=centered")
    options = ["--step", "3", "--format", "native", "--no-verify", "--dtype", "bf16", "--no-figure", "--prompt", "a"]
    named = [line.split(":")[0] for line in refusal(capsys, file, out, "scale=8", *options).splitlines()]
    assert named == [option for option in options if option.startswith("--")]
    assert "--public: has no effect without --push" in refusal(capsys, file, out, "scale=8", "--public")
    assert "scale: is for a file of weights" in refusal(capsys, tmp_path, out, "scale=8")
    out.mkdir()
    (out / "mine").touch()
    assert "exists and is not an empty folder" in refusal(capsys, file, out, "scale=8")
    assert [path.name for path in out.iterdir()] == ["mine"]
