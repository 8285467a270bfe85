"""Exported folders in the hands of clients of transformers, in a process that cannot see the project."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.train.conftest import Exported
from train.data.text.tokenizer import complete, train_byte_bpe

CLIENT = """
import importlib.util, json, sys
assert importlib.util.find_spec("modeling") is None, "the project can be seen"
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
assert not any(name.startswith("transformers_modules") for name in sys.modules), "code of the folder was run"
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
texts = ["the norm", "every layer and the stream grows with depth while"]
batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
alone = [tokenizer(text, return_tensors="pt", return_token_type_ids=False) for text in texts]
logits = model(**batch).logits
worst = max((logits[i, -1] - model(**each).logits[0, -1]).abs().max().item() for i, each in enumerate(alone))
write = pipeline("text-generation", model=model, tokenizer=tokenizer)
options = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
batched = [each[0]["generated_text"] for each in write(texts, batch_size=2, **options)]
single = [write(text, **options)[0]["generated_text"] for text in texts]
print(json.dumps({
    "padding": tokenizer.padding_side, "pad": tokenizer.pad_token_id, "longest": tokenizer.model_max_length,
    "config": model.config.pad_token_id, "generation": model.generation_config.pad_token_id,
    "caches": model.generation_config.use_cache,
    "mask": batch["attention_mask"].tolist(), "worst": worst, "batched": batched, "single": single,
}))
"""


def client(folder: Path, hub: Path) -> subprocess.CompletedProcess[str]:
    """Run a client with its input closed, as in a batch job."""
    return subprocess.run(
        [sys.executable, "-I", "-c", CLIENT, str(folder)],
        cwd=folder.parent,
        env={**os.environ, "HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_client_pads_batches_and_generates(exported: Exported, tmp_path: Path) -> None:
    """The tokenizer loads without a word on trust, although nobody can answer a question, and no code is run for it.

    transformers prints the question, which no file in the folder can prevent: see docs/decisions/0017.
    """
    done = client(exported.folder, tmp_path / "hub")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout[done.stdout.index('{"padding"') :])
    config = json.loads((exported.folder / "config.json").read_text())
    assert found["longest"] == config["max_position_embeddings"] == 32
    assert found["padding"] == "left"
    assert found["pad"] == found["config"] == found["generation"] == config["eos_token_id"]
    assert found["caches"] is True
    assert 0 in found["mask"][0]
    assert 0 not in found["mask"][1]
    assert found["worst"] < 1e-5  # measured: 1.4e-6; another token at the end differs by more than 1e-2
    assert found["batched"] == found["single"]
    assert all(found["single"])


def test_files_have_the_mode_of_new_ones(exported: Exported) -> None:
    umask = os.umask(0)
    os.umask(umask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in exported.folder.iterdir()}
    assert set(modes.values()) == {0o666 & ~umask}, modes
    assert {"model.safetensors", "tokenizer_config.json", "README.md"} <= modes.keys()


def tokenizer_in(folder: Path, **special: str) -> PreTrainedTokenizerFast:
    made = train_byte_bpe(["the norm stands before every layer"] * 9, vocab_size=270)
    made = PreTrainedTokenizerFast(tokenizer_object=made.backend_tokenizer, **special)
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize(
    ("special", "padding"),
    [
        ({"eos_token": "<|endoftext|>"}, "<|endoftext|>"),
        ({}, "<|endoftext|>"),  # found by its usual name
        ({"eos_token": "<|endoftext|>", "pad_token": "!"}, "!"),
    ],
)
def test_a_tokenizer_gets_a_padding_token_and_no_new_ids(tmp_path: Path, special: dict[str, str], padding: str) -> None:
    before = tokenizer_in(tmp_path, **special)
    vocabulary = (tmp_path / "tokenizer.json").read_bytes()
    complete(tmp_path, max_length=77)
    complete(tmp_path, max_length=77)
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert (after.pad_token, after.eos_token) == (padding, "<|endoftext|>")
    assert (after.padding_side, after.model_max_length) == ("left", 77)
    assert after.get_vocab() == before.get_vocab()
    assert (tmp_path / "tokenizer.json").read_bytes() == vocabulary
    text = "the norm stands! Grows: <|endoftext|> ünd"
    assert after(text)["input_ids"] == before(text)["input_ids"]
    batch = after(["the", "the norm stands before"], padding=True)
    assert len({len(ids) for ids in batch["input_ids"]}) == 1
