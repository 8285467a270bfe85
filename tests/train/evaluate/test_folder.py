"""Exported folders evaluated on any text: the run's own loss, transformers' own loss, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from tests.tiny import write_corpus
from tests.train.conftest import Exported
from train.evaluate.__main__ import main
from train.evaluate.run import evaluate

STORIES = Path(__file__).parents[4] / "shared/data/checkpoints/stories260K-hf"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "judged", documents=4, seed=3)


def judged(folder: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, Any]:
    assert main([str(folder), *overrides, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([str(folder), *arguments]) == 2
    said = capsys.readouterr()
    assert not said.out
    return said.err


def test_a_folder_has_the_metrics_of_its_run(
    exported: Exported, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With windows of the same length in passes of the same size; also by label."""
    one, two = text / "000.txt", text / "001.txt"
    sources = f"task.data.validation_sources=[{text}, {{path: {one}, label: a}}, {{path: {two}, label: b}}]"
    overrides = [sources, "task.data.sequence_length=16", "micro_batch_size=3"]
    found = judged(exported.folder, capsys, *overrides)
    of_run = evaluate(exported.run, overrides)[1]
    assert {key: found[key] for key in of_run} == pytest.approx(of_run, rel=1e-6)  # measured: 0
    assert len(of_run) == 9
    assert "PeriLNForCausalLM of this checkout" in found["model"]
    assert "step" not in found
    fewer = judged(exported.folder, capsys, *overrides, "task.data.validation_windows=3")
    assert fewer["validation_loss"] != found["validation_loss"]
    # Without a length: that of the positions, and the table instead of JSON.
    assert main([str(exported.folder), f"task.data.validation_sources=[{text}]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " windows of 32 tokens" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["loss", "perplexity", "bits"]


def llama(folder: Path, tokenizer_of: Path, **changes: Any) -> LlamaForCausalLM:
    """Write a Llama with random weights and the tokenizer of another folder."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    model = LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy2(tokenizer_of / name, folder / name)
    return model


def own_loss(model: Any, tokenizer: Any, documents: list[str], length: int) -> tuple[float, float]:
    """Return transformers' own mean loss over consecutive windows, and the bits per byte of what they predict."""
    ids: list[int] = []
    sizes: list[int] = []
    for document in documents:
        encoded = tokenizer(document, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in encoded["offset_mapping"]]
        reached = [0, *(len(document[:end].encode()) for end in ends)]
        reached = [max(reached[: i + 1]) for i in range(len(reached))]
        ids += [*encoded["input_ids"], tokenizer.eos_token_id]
        sizes += [*(after - before for before, after in itertools.pairwise(reached)), 0]
    windows = range(0, len(ids) - length, length)
    losses = []
    for start in windows:
        window = torch.tensor([ids[start : start + length + 1]])
        with torch.no_grad():
            losses.append(model(window, labels=window).loss.item())
    num_bytes = sum(sizes[1 : len(windows) * length + 1])
    return sum(losses) / len(losses), sum(losses) * length / num_bytes / math.log(2)


def test_a_native_folder_has_transformers_own_loss(
    exported: Exported, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = llama(tmp_path / "llama", exported.folder)
    found = judged(tmp_path / "llama", capsys, f"task.data.validation_sources=[{text}]", "task.data.sequence_length=24")
    documents = [path.read_text() for path in sorted(text.iterdir())]
    loss, bits = own_loss(model, AutoTokenizer.from_pretrained(tmp_path / "llama"), documents, 24)
    assert found["validation_loss"] == pytest.approx(loss, rel=1e-5)  # measured: 1e-7
    assert found["validation_bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert found["validation_perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert "LlamaForCausalLM of transformers" in found["model"]


@pytest.mark.skipif(not STORIES.is_dir(), reason="stories260K-hf is not in ../shared/data/checkpoints")
def test_a_trained_native_folder_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.\n" * 8
    (tmp_path / "story.txt").write_text(story)
    sources = f"task.data.validation_sources=[{tmp_path}/story.txt]"
    found = judged(STORIES, capsys, sources, "task.data.sequence_length=128")
    assert found["validation_bits_per_byte"] < 2  # random text: 6.4
    assert refusal(STORIES, capsys, sources, "task.data.sequence_length=513") == (
        f"task.data.sequence_length: 513 exceeds the 512 positions of {STORIES}; write 512 or less\n"
    )


def test_what_an_evaluation_of_a_folder_never_reads_is_refused(
    exported: Exported, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, sources = exported.folder, f"task.data.validation_sources=[{text}]"
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("[1")
    for model, arguments, fragment in (
        (tmp_path / "empty", [sources], "(it has no config.yaml) and not an exported model (it has no config.json)"),
        (tmp_path / "none", [sources], "hf download OWNER/NAME [--revision BRANCH] --local-dir FOLDER"),
        (tmp_path / "broken", [sources], "is not a JSON object"),
        (folder, ["run.yaml", sources], "run.yaml: "),
        (folder, [], "task.data.validation_sources: missing; name the text to evaluate on"),
        (folder, ["task.data.validation_sources=[]"], "task.data.validation_sources: is empty"),
        (folder, [sources, "--step", "8"], "which has one state; remove it, or name the run"),
        (folder, [sources, "task.border=2"], "task.border: cannot be overridden; only evaluation settings can"),
        (folder, [sources, "task.data.scale=8"], "task.data.scale: cannot be overridden"),
        (folder, [sources, "task.data.tokenizer=gpt2"], "task.data.tokenizer: cannot be overridden"),
        (
            folder,
            [sources, "task.data.sources=[a.txt]"],
            "validation_sources, task.data.validation_windows, task.data.on_",
        ),
        (folder, [sources, "task.data.cache_dir=elsewhere"], "task.data.cache_dir: cannot be overridden"),
        (folder, [sources, "task.attention=eager"], "task.attention: cannot be overridden"),
        (folder, [sources, "task.model.hidden_size=8"], "task.model.hidden_size: cannot be overridden"),
        (folder, [sources, "task.data.sequence_length=33"], "33 exceeds the 32 positions"),
        (folder, [sources, "task.data.sequence_length=many"], "task.data.sequence_length: 'many' is not a whole"),
        (folder, [f"task.data.validation_sources=[{tmp_path}/no.txt]"], "no.txt"),
    ):
        assert fragment in refusal(model, capsys, *arguments)


def test_a_model_that_cannot_be_evaluated_is_refused(
    exported: Exported, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = f"task.data.validation_sources=[{text}]"
    llama(tmp_path / "small", exported.folder, vocab_size=299)
    assert "has ids up to 299, but the model only 299 tokens" in refusal(tmp_path / "small", capsys, sources)
    (tmp_path / "small/tokenizer.json").unlink()
    (tmp_path / "small/tokenizer_config.json").unlink()
    assert refusal(tmp_path / "small", capsys, sources).startswith(f"{tmp_path / 'small'}: ")
    (tmp_path / "small/model.safetensors").unlink()
    assert "contains no .safetensors file" in refusal(tmp_path / "small", capsys, sources)

    bert = BertConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    assert "BertForMaskedLM is not a causal language model" in refusal(tmp_path / "bert", capsys, sources)

    shutil.copytree(exported.folder, tmp_path / "deeper")
    config = json.loads((tmp_path / "deeper/config.json").read_text())
    (tmp_path / "deeper/config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "lacks model.layers.2." in refusal(tmp_path / "deeper", capsys, sources)
    (tmp_path / "deeper/config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    assert "has weights that its class does not read: model.layers.1." in refusal(tmp_path / "deeper", capsys, sources)
    (tmp_path / "deeper/config.json").write_text(json.dumps(config | {"norm_placement": "nowhere"}))
    assert "cannot be loaded: norm_placement: 'nowhere' is none of" in refusal(tmp_path / "deeper", capsys, sources)


def test_no_code_of_a_folder_is_run(
    exported: Exported, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = f"task.data.validation_sources=[{text}]"
    shutil.copytree(exported.folder, tmp_path / "ours")
    for path in (tmp_path / "ours").glob("*.py"):
        path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert judged(tmp_path / "ours", capsys, sources) | {"model": ""} == judged(exported.folder, capsys, sources) | {
        "model": ""
    }
    config = json.loads((tmp_path / "ours/config.json").read_text())
    (tmp_path / "ours/config.json").write_text(json.dumps(config | {"model_type": "foreign"}))
    assert "needs code of its own, which is not run" in refusal(tmp_path / "ours", capsys, sources)
    assert not (tmp_path / "ran").exists()
