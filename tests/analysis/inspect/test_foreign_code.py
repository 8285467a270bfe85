"""A folder's code is run only if it is this checkout's, or with --trust-remote-code; nothing asks at a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.inspect import command
from analysis.inspect.loading import check, load
from analysis.runs import InputError
from modeling.decoder.configuration_periln import PeriLNConfig
from modeling.decoder.modeling_periln import PeriLNForCausalLM
from tests.analysis.inspect.test_inspection import byte_tokenizer
from train.checkpoint.weights_folder import load_folder
from train.config.errors import ConfigError
from train.data.text.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder: weights, our code, a tokenizer."""
    folder = tmp_path_factory.mktemp("exported") / "ours"
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    PeriLNForCausalLM(PeriLNConfig(**shape, num_attention_heads=2, num_key_value_heads=1)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def marking(marker: Path) -> str:
    return f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"


def foreign(folder: Path, name: str, code: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    target = folder / f"{name}.py"
    target.write_text((target.read_text() if target.exists() else "") + code)
    config["auto_map"]["AutoConfig"] = f"{name}.PeriLNConfig"
    (folder / "config.json").write_text(json.dumps(config))


def in_our_file(folder: Path, code: str) -> None:
    foreign(folder, "configuration_periln", code)


def in_another_file(folder: Path, code: str) -> None:
    foreign(folder, "other", (folder / "configuration_periln.py").read_text() + code)


def in_a_linked_file(folder: Path, code: str) -> None:
    target = folder / "modeling_periln.py"
    (folder.parent / "elsewhere.py").write_text(target.read_text() + code)
    target.unlink()
    target.symlink_to(folder.parent / "elsewhere.py")


def in_a_nested_file(folder: Path, code: str) -> None:
    (folder / "inner").mkdir()
    (folder / "inner/modeling_periln.py").write_text(code)


def in_a_linked_folder(folder: Path, code: str) -> None:
    (folder.parent / "inner").mkdir()
    (folder.parent / "inner/anything.py").write_text(code)
    (folder / "inner").symlink_to(folder.parent / "inner")


def in_another_repository(folder: Path, code: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModelForCausalLM"] = "someone/else--modeling_periln.PeriLNForCausalLM"
    (folder / "config.json").write_text(json.dumps(config))


PLACES = [
    in_our_file,
    in_another_file,
    in_a_linked_file,
    in_a_nested_file,
    in_a_linked_folder,
    in_another_repository,
]


def copy(folder: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_an_export_of_this_checkout_is_inspected(ours: Path) -> None:
    check(str(ours))
    assert type(load(str(ours), device="cpu").model).__name__ == "PeriLNForCausalLM"


@pytest.mark.parametrize("place", PLACES)
def test_other_code_is_not_run_unasked(
    ours: Path, tmp_path: Path, place: Callable[[Path, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, marker = copy(ours, tmp_path / "model"), tmp_path / "it ran"
    place(folder, marking(marker))
    assert command.main([str(folder), "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    assert "review it, and if you trust it, pass --trust-remote-code" in capsys.readouterr().err
    with pytest.raises(InputError, match="--trust-remote-code"):
        load(str(folder), device="cpu")
    assert not marker.exists()


def test_other_code_is_run_on_demand(ours: Path, tmp_path: Path) -> None:
    folder, marker = copy(ours, tmp_path / "model_that_is_trusted"), tmp_path / "it ran"
    in_our_file(folder, marking(marker))
    check(str(folder), trust=True)
    assert marker.exists()


@pytest.mark.slow
def test_nothing_is_asked_at_a_terminal(ours: Path, tmp_path: Path) -> None:
    folder, marker = copy(ours, tmp_path / "model"), tmp_path / "it ran"
    in_our_file(folder, marking(marker))
    terminal, ours_of_it = pty.openpty()
    words = ["-m", "analysis", "inspect", str(folder), "--device", "cpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, stdin=ours_of_it, capture_output=True, text=True, check=False
    )
    os.close(terminal)
    assert done.returncode == 2
    assert "[y/N]" not in done.stdout + done.stderr
    assert not marker.exists()


def test_a_start_reads_weights_and_runs_no_code(ours: Path, tmp_path: Path) -> None:
    folder, marker = copy(ours, tmp_path / "model"), tmp_path / "it ran"
    for place in (in_our_file, in_a_nested_file):
        place(folder, marking(marker))
    torch.manual_seed(1)
    model = PeriLNForCausalLM(PeriLNConfig.from_pretrained(ours))
    load_folder(model, folder)
    expected = PeriLNForCausalLM.from_pretrained(ours).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert not marker.exists()


def test_a_tokenizer_with_code_is_refused_without_a_question(ours: Path, tmp_path: Path) -> None:
    folder, marker = copy(ours, tmp_path / "tokenizer"), tmp_path / "it ran"
    (folder / "tokenization_own.py").write_text(marking(marker) + "class OwnTokenizer: ...\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {
        "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
        "tokenizer_class": "OwnTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"task\.data\.tokenizer"):
        load_tokenizer(str(folder))
    with pytest.raises(InputError, match="--trust-remote-code"):
        load(str(ours), device="cpu", tokenizer=str(folder))
    assert not marker.exists()
