"""`python -m train.export`: which format it chooses and why, and a native folder as the start of another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.ranks import Ranks
from tests.tiny import tiny_file
from tests.tiny_filter import tiny_filter_file
from train.__main__ import main as train_main
from train.checkpoint.weights_folder import load_folder
from train.config.errors import ConfigError
from train.config.load import load
from train.convert.__main__ import configuration
from train.convert.steps import Vocabulary
from train.export.__main__ import main
from train.export.formats import choice_for
from train.rank import train_rank
from train.tasks.language_model import decoder


def train(config_file: str, overrides: list[str]) -> None:
    assert train_rank(load(config_file, overrides)) == 0


@pytest.fixture(scope="module")
def runs(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two steps: `pre`, which is a Llama with its embeddings normalized, and `post`."""
    folder = tmp_path_factory.mktemp("native")
    path = str(tiny_file(folder))
    short = ["steps=2", "checkpoint.every=2", "task.model.embedding_norm=true"]
    for placement in ("pre", "post"):
        ranks(1, train, path, [*short, f"name={placement}", f"task.model.norm_placement={placement}"])
    return folder / "runs"


def test_native_is_the_default_where_there_is_one(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(runs / "pre"), str(tmp_path / "out"), "--prompt", "the norm"]) == 0
    printed = capsys.readouterr().out
    assert "exported as LlamaForCausalLM: plain transformers loads it, without remote code" in printed
    assert "fp32, validation text: logits differ by at most" in printed
    assert "bf16, random tokens: logits differ by at most" in printed
    assert "greedy continuation of 32 tokens: the same" in printed
    assert "\nthe norm" in printed  # and its continuation
    card = (tmp_path / "out/README.md").read_text()
    assert "architecture: `LlamaForCausalLM`, no remote code" in card
    assert "validation text: logits differ by at most" in card
    assert "trust_remote_code" not in card
    names = {path.name for path in (tmp_path / "out").iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert (
        names
        == {"README.md", "config.json", "generation_config.json", "model.safetensors", "measurements.png"} | tokenizer
    )


def test_without_a_native_one_the_code_goes_along_and_the_reason_is_printed(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(runs / "post"), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "exported as PeriLNForCausalLM with its code: pass trust_remote_code=True to load it" in printed
    assert "norm_placement post: no architecture that fits computes norm(x + f(x))" in printed
    assert "the nearest decoder with a native architecture: task.model.norm_placement=pre" in printed
    assert list((tmp_path / "out").glob("modeling_periln.py"))


def test_the_format_can_be_chosen(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs / "pre"), str(tmp_path / "own"), "--format", "periln"]) == 0
    assert "exported as PeriLNForCausalLM" in capsys.readouterr().out
    assert main([str(runs / "pre"), str(tmp_path / "unseen"), "--no-verify", "--dtype", "bf16"]) == 0
    assert "not compared with the trained model (`--no-verify`)" in capsys.readouterr().out
    assert "not compared with the trained model" in (tmp_path / "unseen/README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "unseen")
    assert model.dtype == torch.bfloat16


def test_what_cannot_be_native_is_exit_2(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs / "post"), str(tmp_path / "out"), "--format", "native"]) == 2
    error = capsys.readouterr().err
    assert "--format native: norm_placement post" in error
    assert "the nearest decoder that has one: task.model.norm_placement=pre. Write --format periln, or omit it" in error
    assert main([str(runs / "post"), str(tmp_path / "out"), "--no-verify"]) == 2
    assert "--no-verify: only a native export is compared" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="transformers has no architecture for it"):
        choice_for(load(tiny_filter_file(tmp_path)), "native")
    assert not (tmp_path / "out").exists()


def test_a_failed_comparison_is_exit_1_and_leaves_nothing(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Vocabulary, "to_native", lambda self, tensor, read: tensor[: self.vocab_size].roll(1, 0))
    assert main([str(runs / "pre"), str(tmp_path / "out")]) == 1
    assert "export failed: the exported model does not compute what the trained one does" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_native_folder_starts_a_run(
    runs: Path, ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(runs / "pre"), str(out), "--no-verify"]) == 0
    path, start = str(tiny_file(runs.parent)), f"checkpoint.start_from={out}"
    assert train_main([path, "--check", start]) == 2
    error = capsys.readouterr().err
    assert f"checkpoint.start_from: task.model.norm_placement is 'peri', but 'pre' in {out}; write the latter" in error
    fitting = ["name=again", start, "task.model.norm_placement=[pre, pre]", "task.model.vocab_size_multiple=128"]
    assert train_main([path, "--check", *fitting]) == 0
    ranks(1, train, path, [*fitting, "steps=1", "optim.lr=1e-12"])
    rows = [(runs / name / "metrics.jsonl").read_text().splitlines()[-1] for name in ("pre", "again")]
    before, after = (json.loads(row)["validation_loss"] for row in rows)
    assert after == pytest.approx(before, rel=1e-6)


def test_a_folder_that_means_something_else_is_exit_2(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(runs / "pre"), str(out), "--no-verify"]) == 0
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"mlp_bias": True}))
    assert train_main([str(tiny_file(runs.parent)), "--check", f"checkpoint.start_from={out}"]) == 2
    assert "config.json: mlp_bias: True is not supported (biases in the MLP)" in capsys.readouterr().err


def test_what_is_exported_comes_back_bit_for_bit(runs: Path, tmp_path: Path) -> None:
    assert main([str(runs / "pre"), str(tmp_path / "first"), "--no-verify"]) == 0
    (tmp_path / "run.yaml").write_text(configuration(tmp_path / "first"))
    task: Any = load(tmp_path / "run.yaml").task
    model = decoder(task)
    load_folder(model, tmp_path / "first")
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    tokens = torch.randint(300, (2, 16))
    torch.testing.assert_close(model(tokens).logits, native(tokens).logits, atol=0, rtol=0)
