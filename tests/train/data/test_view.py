"""`python -m train.data`: what is in the data, and what a step sees."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.ranks import Ranks
from tests.tiny import tiny_file, write_corpus
from tests.tiny_boxes import tiny_boxes_file, tiny_images
from tests.tiny_filter import tiny_filter_file
from tests.train.test_resume import rows, train
from train.config.errors import ConfigError
from train.config.load import load
from train.config.tasks.language_model import LanguageModelConfig
from train.data.__main__ import lines, main
from train.data.order import sample_ids
from train.data.text.view import TextView


def test_a_step_is_shown_as_the_run_trains_on_it(
    ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tiny_file(tmp_path))
    for step in (1, 3):
        assert main([path, "--step", str(step)]) == 0
    printed = capsys.readouterr().out
    ranks(2, train, path, ["steps=3"])
    hashes = [row["samples_hash"] for row in rows(tmp_path) if "loss" in row]
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("samples_hash")] == hashes[::2]
    assert rows(tmp_path)[0]["epoch"] == pytest.approx(8 / rows(tmp_path, file="events.jsonl")[0]["training_samples"])


def test_windows_are_decoded_with_the_ends_of_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first window of a corpus is its first documents, a line where each ends."""
    (tmp_path / "documents.txt").write_text("".join(f"d{i}\n==\n" for i in range(9)))
    source = f"{{path: '{tmp_path}/documents.txt', document_separator: '=='}}"
    config = load(
        tiny_file(tmp_path),
        [
            f"task.data.sources=[{source}]",
            f"task.data.validation_sources=[{write_corpus(tmp_path / 'other', documents=1)}]",
            "task.data.validation_fraction=null",
            "task.data.sequence_length=8",
        ],
    )
    assert isinstance(config.task, LanguageModelConfig)
    shown = list(TextView(config.task).samples(np.array([0])))
    assert shown[1:4] == ["windows 0", "", "window 0: tokens 0 to 8 of the training text"]
    assert shown[4:8] == ["  | d0", "  --- <|endoftext|>", "  | d1", "  --- <|endoftext|>"]
    assert next(lines(config, 1)).startswith("training data: 9 documents, ")
    assert main([str(tiny_file(tmp_path))]) == 0
    printed = capsys.readouterr().out
    assert "tokenizer: byte-bpe, 300 tokens; <|endoftext|> ends a document" in printed
    assert f"prepared in {tmp_path}/cache" in printed


def test_annotated_images_of_a_step_are_named_with_their_boxes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_boxes_file(tmp_path)
    assert main([str(path), "--step", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    images, config = tiny_images(), load(path)
    assert printed[0] == "training data: 6 images of 40 x 48 pixels"
    counts = Counter(images.classes[number] for index in range(6) for number in images.read(index).classes)
    assert printed[2] == "  boxes: " + ", ".join(f"{counts[name]} {name}" for name in images.classes[1:])
    assert printed[3] == "  masks of all images"
    assert f"  fingerprint {images.fingerprint}" in printed
    ids = sample_ids(2, seed=config.task.data.seed, num_samples=6, global_batch_size=4)
    shown = [line.split(":")[0].split()[1] for line in printed if line.startswith("  image ")]
    assert shown == [str(index) for index in ids]


def test_pairs_of_a_step_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_filter_file(tmp_path)
    assert main([str(path), "--step", "2"]) == 0
    printed = capsys.readouterr().out
    ids = sample_ids(2, seed=0, num_samples=6, global_batch_size=4)
    assert [line for line in printed.splitlines() if line.startswith("  pair ")] == [
        f"  pair {i}: scene-{i:05d}, 32 x 40 pixels" for i in ids
    ]
    assert "training data: 6 pairs of 32 x 40 pixels" in printed
    assert "of each pair, a crop of 24 x 24 pixels" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "0"], "--step 0: tiny has steps 1 to 8"),
        (["--step", "9"], "--step 9: tiny has steps 1 to 8"),
        (["task.data.sources=[nowhere/*.txt]"], "nowhere/*.txt matches no files"),
        (["task.data.nonsense=1"], "task.data.nonsense"),
    ],
)
def test_bad_input_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([str(tiny_file(tmp_path)), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_corpus_that_must_be_prepared_first_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.data.text import cache

    monkeypatch.setattr(cache, "PREPARE_FIRST_BYTES", 10)
    with pytest.raises(ConfigError, match="python -m train CONFIG --prepare"):
        list(lines(load(tiny_file(tmp_path)), None))
