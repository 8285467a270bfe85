"""The kit of a machine without a network: its text is packed once, and found again after a move."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.bench import ROOT, Bench, Options
from tests.gpu.kit import __main__ as kit
from tests.gpu.kit import data, wheels
from tests.gpu.kit.closure import missing, read_machine
from tests.gpu.runs import large, loaded, small
from tests.tiny import write_corpus
from train.config.tasks.language_model import SourceConfig
from train.data.text import cache

LENGTHS = (16, 32, 48)


def packed(folder: Path, **settings: Any) -> data.PackedData:
    source = SourceConfig(path=str(write_corpus(folder / "corpus")))
    return data.pack(folder / "data", **{"source": source, "lengths": LENGTHS, "vocab_size": 300, **settings})


def refuse_to_tokenize(*_: Any, **__: Any) -> None:
    raise AssertionError("tokenized again")


def test_a_moved_kit_is_not_tokenized_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = packed(tmp_path)
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "data", moved, copy_function=shutil.copyfile)  # with other times
    shutil.rmtree(tmp_path / "data")
    monkeypatch.setattr(cache, "build_store", refuse_to_tokenize)
    monkeypatch.chdir(moved)
    with pytest.raises(AssertionError, match="tokenized again"):
        cache.prepare(data.text_data(LENGTHS[0]), vocab_size=made.tokenizer_size)
    assert data.read_packed(moved) == made._replace(folder=moved)
    for length in LENGTHS:
        found = cache.prepare(data.text_data(length), vocab_size=made.tokenizer_size)
        assert found.num_training_samples > 4
        assert found.num_validation_samples > 0


@pytest.mark.parametrize("tiny", [True, False])
def test_every_run_of_the_script_finds_the_packed_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: bool
) -> None:
    packed(tmp_path)
    options = Options(str(tmp_path), str(tmp_path / "data"), str(tmp_path / "work"), "cpu", tiny)
    bench = Bench("stage", options, seconds=60)
    monkeypatch.setattr(cache, "build_store", refuse_to_tokenize)
    monkeypatch.chdir(tmp_path / "data")
    runs = [small(bench, "small"), *(large(bench, "1.5b", "large", micro=1, batch=1, length=i) for i in (1, 2))]
    for length, words in zip(LENGTHS, runs, strict=True):
        task = loaded(words).task
        found = cache.prepare(task.data, vocab_size=task.model.vocab_size)  # type: ignore[union-attr, arg-type]
        assert found.read("training", [0]).shape == (1, length + 1)  # type: ignore[arg-type]


def test_a_given_tokenizer_is_used_and_a_single_document_is_cut(tmp_path: Path) -> None:
    tokenizer = packed(tmp_path).folder / data.TOKENIZER
    kept = shutil.copytree(tokenizer, tmp_path / "kept")
    text = tmp_path / "book.txt"
    text.write_text("".join(f"{number} lines of a book with one norm around every layer\n" for number in range(4000)))
    made = packed(tmp_path, source=SourceConfig(path=str(text)), tokenizer=kept)
    assert made.tokenizer_size == 300
    assert len(list((made.folder / data.CACHE).glob("text-*/windows-*/facts.json"))) == len(LENGTHS)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--corpus", "no-such.txt"], "CORPUS: no-such.txt does not exist"),
        (["--tokenizer", "no-such-folder"], "TOKENIZER: no-such-folder does not exist"),
        (["--separator", "<|doc|>"], "SEPARATOR: belongs to CORPUS"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert kit.main(arguments) == 2
    assert named in capsys.readouterr().err


def test_a_kit_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large.whl").write_bytes(b"0" * 200_000)
    kit.require_small(tmp_path)
    with pytest.raises(wheels.KitError, match=r"large\.whl 0\.2"):
        kit.require_small(tmp_path, largest_mb=0.1)


def test_the_command_installs_the_wheels_and_starts_the_script(tmp_path: Path) -> None:
    (tmp_path / ".offline/wheels").mkdir(parents=True)
    (tmp_path / ".offline/wheels/one.whl").touch()
    shutil.copy(ROOT / "tests/gpu/kit/there.sh", tmp_path / ".offline")
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin/python3"
    fake.write_text(f'#!/bin/sh\necho "$PYTHONPATH" "$@" >> {tmp_path}/calls\n')
    fake.chmod(0o755)
    command = ["bash", str(tmp_path / ".offline/there.sh"), "480", "out", "--only", "speed"]
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHONPATH": "given"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    pip, script = (tmp_path / "calls").read_text().splitlines()
    site = script.partition(":")[0]
    assert f"--target {site} .offline/wheels/one.whl" in pip
    assert {"--no-index", "--no-deps"} <= set(pip.split())
    seconds = int(script.split("--seconds ")[1].split()[0])
    assert 400 < seconds <= 480
    assert script.endswith(f"--pack {tmp_path}/out/results.tar.gz --only speed")
    assert subprocess.run(command[:3], capture_output=True).returncode == 2


@pytest.mark.nightly  # downloads half a gigabyte
def test_the_real_kit_is_complete_and_small(tmp_path: Path) -> None:
    try:
        kit.make(tmp_path, corpus=None, separator=None, tokenizer=None)
    except wheels.KitError as error:
        if "pip" in str(error):
            pytest.skip(f"no package index: {error}")
        raise
    brought, machine = wheels.present(tmp_path / "wheels"), read_machine(kit.HERE / "installed.txt")
    assert {"deepspeed", "transformers", "datasets"} <= {wheel.name for wheel in brought}
    for taken in brought:
        unmet = missing(kit.requirements(), [wheel for wheel in brought if wheel != taken], machine)
        assert taken.name in {one.requirement.name.lower().replace("_", "-") for one in unmet}
