"""A published Llama is brought in, trained on, inspected and exported again; without it, one made here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from tests.ranks import Ranks
from tests.tiny import write_corpus
from tests.train.convert.natives import random_native
from train.checkpoint.weights_folder import load_folder
from train.config.load import load
from train.convert.__main__ import main as convert
from train.data.text.tokenizer import train_byte_bpe
from train.evaluate.validation import validation_chunks, validation_means
from train.export.__main__ import main as export
from train.rank import train_rank
from train.ranks.distributed import World
from train.tasks import build_task

ROOT = Path(__file__).parents[3]
STORIES = ROOT.parent / "shared/data/checkpoints/stories260K-hf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stories checkpoint, or a random Llama with a tokenizer where that is absent."""
    if STORIES.is_dir():
        return STORIES
    made = tmp_path_factory.mktemp("llama") / "made"
    shape = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    random_native(
        "llama", vocab_size=300, max_position_embeddings=64, tie_word_embeddings=True, **shape
    ).save_pretrained(made)
    train_byte_bpe(["once upon a time"], vocab_size=300).save_pretrained(made)
    return made


@pytest.fixture
def settings(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, list[str]]:
    """Return the path of the printed configuration, and overrides for a small text."""
    assert convert([str(folder)]) == 0
    path = tmp_path / "run.yaml"
    path.write_text(capsys.readouterr().out)
    corpus = write_corpus(tmp_path / "corpus", documents=40)
    return str(path), [
        *("name=on", f"output_dir={tmp_path / 'runs'}", f"task.data.cache_dir={tmp_path / 'cache'}"),
        *(f"task.data.sources=[{corpus}]", "task.data.sequence_length=32", "task.data.validation_fraction=0.1"),
        *("global_batch_size=8", "steps=50", "optim.lr=1e-3", "engine.precision=fp32", "log_every=1", "seed=1"),
    ]


def test_its_validation_loss_is_that_of_transformers(folder: Path, settings: tuple[str, list[str]]) -> None:
    config = load(*settings)
    task: Any = build_task(config)
    model = task.build_model().eval()
    load_folder(model, folder)
    chunks = validation_chunks(task.validation_sets, size=4, ranks=1)
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"))
    means = validation_means(task, model, chunks, world=world)
    assert means is not None
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    windows = task.batch(np.arange(task.num_validation_samples), split="validation", step=0)["tokens"]
    with torch.no_grad():
        logits = theirs(windows[:, :-1]).logits
    loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
    assert task.validation_report(means)["validation_loss"] == pytest.approx(loss, rel=1e-5)  # measured: 1e-7


def train(config_file: str, overrides: list[str]) -> None:
    assert train_rank(load(config_file, overrides)) == 0


@pytest.mark.slow
def test_it_is_trained_on_inspected_and_exported_again(
    folder: Path, settings: tuple[str, list[str]], ranks: Ranks, tmp_path: Path
) -> None:
    ranks(1, train, *settings)
    rows = [json.loads(line) for line in (tmp_path / "runs/on/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 50
    assert np.mean(losses[-5:]) < losses[0] - 0.5
    out = tmp_path / "out"
    assert export([str(tmp_path / "runs/on"), str(out)]) == 0
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, out))
    same = ("architectures", "hidden_size", "head_dim", "num_key_value_heads", "rms_norm_eps", "rope_parameters")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)
    validation = [row["validation_loss"] for row in rows if "validation_loss" in row][-1]
    task: Any = build_task(load(*settings))
    windows = task.batch(np.arange(task.num_validation_samples), split="validation", step=0)["tokens"]
    with torch.no_grad():
        logits = model(windows[:, :-1]).logits
    loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
    assert loss == pytest.approx(validation, rel=1e-5)
    (tmp_path / "text.txt").write_text("once upon a time there was a norm " * 400)
    words = ["inspect", str(out), "--text", str(tmp_path / "text.txt"), "--out", str(tmp_path / "report")]
    run([sys.executable, "-m", "analysis", *words, "--device", "cpu"])
    (summary,) = (tmp_path / "report").rglob("summary.json")
    assert set(re.findall(r'"placement": "(\w+)"', summary.read_text())) == {"pre"}


def run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


GENERATE = """
import importlib.util, sys
assert importlib.util.find_spec("modeling") is None, "the project can be seen"
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)
inputs = tokenizer("def read", return_tensors="pt", return_token_type_ids=False)
written = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)
print(type(model).__name__, written.shape[1] - inputs["input_ids"].shape[1])
"""


@pytest.mark.slow
def test_the_quickstarts_model_generates_where_the_project_is_not(ranks: Ranks, tmp_path: Path) -> None:
    """Its decoder, trained for two steps on a small text."""
    corpus = write_corpus(tmp_path / "corpus", documents=200)
    small = [f"task.data.sources=[{corpus}]", f"task.data.cache_dir={tmp_path / 'cache'}", "task.model.vocab_size=300"]
    short = ["name=peri", f"output_dir={tmp_path}", "steps=2", "global_batch_size=2", "micro_batch_size=2"]
    ranks(1, train, str(ROOT / "configs/language_model/quickstart.yaml"), [*short, *small])
    assert export([str(tmp_path / "peri"), str(tmp_path / "exported")]) == 0
    elsewhere = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", GENERATE, str(tmp_path / "exported")],
        cwd=tmp_path,
        env=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["HyperCLOVAXForCausalLM", "8"]


@pytest.mark.slow
def test_the_lines_of_readme_can_be_typed(ranks: Ranks, tmp_path: Path) -> None:
    """Export and loading elsewhere, then bringing the exported model in again."""
    from tests.tiny import tiny_file

    ranks(1, train, str(tiny_file(tmp_path)), [])
    section = (ROOT / "README.md").read_text().split("## To other tools and back")[1].split("\n## ")[0]
    lines = [line for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 6
    places = {
        "runs/NAME": tmp_path / "runs/tiny",
        "OUT": tmp_path / "out",
        "FOLDER": tmp_path / "out",
        "TEXT": tmp_path / "corpus/000.txt",
        "REPORT": tmp_path / "report",
        "mine.yaml": tmp_path / "mine.yaml",
    }
    text = f"task.data.sources='[{tmp_path}/corpus]' task.data.cache_dir={tmp_path}/cache"
    brief = f"output_dir={tmp_path}/runs name=mine steps=2"
    for line in lines:
        command = line.split("  #")[0]
        for word, place in places.items():
            command = command.replace(word, str(place))
        command += f" {text} {brief}" * line.startswith("python -m train ")
        scripts = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        words = ["bash", "-euo", "pipefail", "-c", command]
        done = subprocess.run(words, cwd=ROOT, env=scripts, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs/mine/metrics.jsonl").exists()
