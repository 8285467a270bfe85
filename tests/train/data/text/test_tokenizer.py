"""The name of a special token within a document is text for every tokenizer; the reader says where documents end."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from tests.faults.processes import ROOT, losses
from tests.tiny import tiny_file
from tests.train.data.text.written import json_lines
from train.config.tasks.language_model import SourceConfig, TextDataConfig
from train.data.text import cache
from train.data.text.tokenizer import END_OF_TEXT, encode, load_tokenizer

TEXTS = [f"{number} before {END_OF_TEXT} and after, again {END_OF_TEXT}" for number in range(40)]


def write_gpt2(folder: Path) -> Path:
    """Write a tokenizer in GPT-2's format: 256 bytes, two merges and the end of text."""
    folder.mkdir()
    tokens = [*sorted(ByteLevel.alphabet()), "th", "the", END_OF_TEXT]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    return folder


def prepared(folder: Path, tokenizer: str, *, num_workers: int = 1) -> cache.TextData:
    (folder / "rows.jsonl").write_bytes(json_lines(TEXTS))
    config = TextDataConfig(
        sources=(SourceConfig(path=str(folder / "rows.jsonl")),),
        tokenizer=tokenizer,
        sequence_length=16,
        validation_fraction=0.2,
        cache_dir=str(folder / f"cache-{num_workers}"),
        num_workers=num_workers,
    )
    return cache.prepare(config, vocab_size=300)


@pytest.fixture(params=["byte-bpe", "folder in GPT-2's format", "tokenizer.json"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "byte-bpe":
        return request.param
    if request.param == "tokenizer.json":
        prepared(tmp_path, "byte-bpe").save_tokenizer(tmp_path / "trained")
        shutil.move(tmp_path / "trained/tokenizer.json", tmp_path / "alone.json")
        return str(tmp_path / "alone.json")
    return str(write_gpt2(tmp_path / "tokens"))


@pytest.mark.parametrize("num_workers", [1, 2])  # the library forgets the setting when a tokenizer is pickled
def test_the_end_of_text_within_a_document_is_text(tmp_path: Path, tokenizer: str, num_workers: int) -> None:
    data = prepared(tmp_path, tokenizer, num_workers=num_workers)
    facts = data.facts
    for split, number in (("training", facts["training_documents"]), ("validation", facts["validation_documents"])):
        windows = data.read(split, np.arange(facts[f"{split}_windows"]))  # type: ignore[arg-type]
        stream = np.concatenate([windows[0][:1], windows[:, 1:].reshape(-1)])
        ends = int((stream == data.eos_token_id).sum())
        assert number - 2 <= ends <= number  # the last tokens fill no window
        loaded = load_tokenizer(str(data.tokenizer_folder))
        first = loaded.decode(stream[: int(np.argmax(stream == data.eos_token_id))].tolist())
        assert first in TEXTS


def test_bytes_of_the_name_of_a_special_token_are_counted(tmp_path: Path, tokenizer: str) -> None:
    loaded = load_tokenizer(str(prepared(tmp_path, tokenizer).tokenizer_folder))
    encoded = encode([TEXTS[0]], loaded.backend_tokenizer, counts_bytes=True)
    assert encoded["bytes"][0].sum() == len(TEXTS[0].encode())


def test_the_command_of_the_readme_trains_on_own_text(tmp_path: Path) -> None:
    line = re.search(r"^torchrun .* -m train CONFIG (task\.data\..*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert line
    (tmp_path / "my").mkdir()
    for number in range(3):
        rows = json_lines([f"{number} {text}" for text in TEXTS])
        (tmp_path / f"my/{number}.jsonl.gz").write_bytes(gzip.compress(rows))
    write_gpt2(tmp_path / "gpt2")
    command = [sys.executable, "-m", "train", str(tiny_file(tmp_path)), *shlex.split(line[1]), "steps=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "runs/tiny")) == 2
    facts = json.loads((tmp_path / "runs/tiny/environment.json").read_text())
    assert '"documents": 120' in json.dumps(facts)
