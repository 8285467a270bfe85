"""`--check` refuses what preparation refuses, in the same words, as far as it reads; nothing ends in a traceback."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_file, write_corpus
from tests.train.data.text.written import json_lines, reader, row
from train.__main__ import main
from train.config.errors import ConfigError
from train.config.load import load
from train.config.tasks.language_model import LanguageModelConfig, TextDataConfig
from train.data.text import cache
from train.data.text.check import check
from train.data.text.documents.reader import Sample
from train.tasks import build_task

WORDS = "one two three four five six seven eight nine ten "
ROWS = json_lines([f"{number} {WORDS * 5}" for number in range(100)])


def data(folder: Path, *overrides: str) -> TextDataConfig:
    task = load(tiny_file(folder), overrides).task
    assert isinstance(task, LanguageModelConfig)
    return task.data


def refusals(folder: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> list[str]:
    """Return what `--check` and `--prepare` print, refused with exit code 2, and what the start of a run raises."""
    messages: list[str] = []
    for mode in ("--check", "--prepare"):
        assert main([str(tiny_file(folder)), *overrides, mode]) == 2, mode
        said = capsys.readouterr().err.strip().splitlines()
        messages.append("\n".join(line for line in said if not line.startswith("tokenizing ")))
    with pytest.raises(ConfigError) as error:
        build_task(load(tiny_file(folder), overrides)).open_data()
    return [*messages, str(error.value)]


# content of x.jsonl, further overrides, and what is refused
REFUSED: dict[str, tuple[bytes, list[str], str]] = {
    "missing column": (b'{"body": "x"}\n', [], "x.jsonl, line 1 has no column 'text'; it has body"),
    "malformed line": (ROWS + b"{\n", [], "x.jsonl, line 101 is not a JSON object on one line"),
    "null": (ROWS + json_lines([None]), [], "x.jsonl, line 101 has null in column 'text'"),
    "empty": (b"", [], "x.jsonl is empty"),
    "white space": (json_lines([" ", "\n"]), [], "x.jsonl contains only white space"),
    "too little to train on": (
        json_lines(["one", "two"]),
        ["task.data.validation_fraction=null", "task.data.validation_sources=[corpus]"],
        "not enough text for a single training window of 16: there are 4 tokens, 17 are needed",
    ),
    "one document": (
        json_lines([WORDS * 30]),
        ["task.data.validation_fraction=0.001"],
        "not enough text for a single validation window of 16: there are 0 tokens, 17 are needed",
    ),
    "a tokenizer that is too large": (ROWS, ["task.data.tokenizer=tokenizer"], "task.model.vocab_size: the tokenizer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_check_and_preparation_refuse_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content, overrides, fragment = REFUSED[name]
    Path("x.jsonl").write_bytes(content)
    write_corpus(tmp_path / "corpus")
    if "tokenizer" in name:
        overrides = [*overrides, "task.model.vocab_size=258"]
        trained = data(tmp_path, "task.data.sources=[x.jsonl]", "task.model.vocab_size=300")
        cache.prepare(trained, vocab_size=300).save_tokenizer(Path("tokenizer"))
    messages = refusals(tmp_path, capsys, "task.data.sources=[x.jsonl]", *overrides)
    assert fragment in messages[0]
    assert messages[0] == messages[1] == messages[2]


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    sources = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), f"{{path: {tmp_path}/corpus, max_tokens: 9}}"]
    with pytest.raises(ConfigError) as error:
        check(
            data(tmp_path, f"task.data.sources=[{', '.join(sources)}]", "task.data.tokenizer=./nowhere"), vocab_size=300
        )
    keys = [fault.partition(":")[0] for fault in error.value.faults]
    assert keys == ["task.data.tokenizer", "task.data.sources[0].path", "task.data.sources[1].path"]


def test_what_was_read_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.jsonl").write_bytes(ROWS + json_lines([None, ""]))
    (tmp_path / "y.py").write_text("pass\n" * 100)
    sources = f"task.data.sources=[{tmp_path}/x.jsonl, {tmp_path}/y.py, {tmp_path}/*.py]"
    path = str(tiny_file(tmp_path))
    assert main([path, sources, "task.data.on_bad_document=skip", "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "task.data.sources[0]: 1 file, read whole: 101 documents, 24.8 kB of text",
        "task.data.sources[1]: 1 file, read whole: 1 document, 0.5 kB of text",
        "task.data.sources[1]: recognized by content, as the suffix says nothing: 1 with .py as text",
        "task.data.sources[2]: 1 file, read whole: 1 document, 0.5 kB of text",
        "task.data.sources[2]: recognized by content, as the suffix says nothing: 1 with .py as text",
        "task.data.sources[0]: 1 document without text, empty or white space",
        f"task.data.sources[0]: 1 bad document left out; the first: {tmp_path}/x.jsonl, line 101 has null in column "
        "'text', not text",
        f"task.data: read more than once, by several sources or links: {tmp_path}/y.py",
        "tiny: configuration and data are valid",
    ]
    assert main([path, sources, "task.data.on_bad_document=skip", "--prepare"]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == lines[:-1]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.txt", "x.json", "x.csv"])
def test_of_large_files_the_beginning_is_read(tmp_path: Path, name: str) -> None:
    rows = [row(f"{number} é {WORDS}") for number in range(1000)]
    body = b"".join(json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in rows)
    if name == "x.json":
        body = json.dumps(rows, ensure_ascii=False).encode()
    if name in ("x.txt", "x.csv"):
        body = b"text\n" + "é\n".encode() * 10_000
    bad = body + b"\xff{{,"
    (tmp_path / name).write_bytes(gzip.compress(bad, 0) if name.endswith(".gz") else bad)
    keys: dict[str, Any] = {"text_column": "text"} if name == "x.csv" else {}
    for limit in (4000, 4001):  # one of them cuts a character of two bytes
        source = reader(tmp_path / name, sample=Sample(whole=5000, head=limit), **keys)
        assert 0 < len(list(source)) < 2000
        assert source.counts.files_cut == 1
        assert source.counts.bytes_read == limit
    with pytest.raises(ConfigError, match=name):
        list(reader(tmp_path / name, sample=Sample(whole=1_000_000), **keys))


def test_small_files_of_a_large_source_are_read_whole(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jsonl").write_bytes(json_lines(["x" * 100] * (10 if number else 100)))
    source = reader(tmp_path, sample=Sample(whole=5000, head=3000))
    assert len(list(source)) < 140
    assert source.counts.files_cut == 1
    assert source.counts.files_read == 5


def test_a_fault_beyond_the_sample_ends_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Sample, "__new__", lambda cls: tuple.__new__(cls, (100, 3000)))
    (tmp_path / "x.jsonl").write_bytes(ROWS + b"{\n")
    path, source = str(tiny_file(tmp_path)), f"task.data.sources=[{tmp_path}/x.jsonl]"
    assert main([path, source, "--check"]) == 0
    assert "1 file, 1 of them only in part (3.0 kB read): 11 documents" in capsys.readouterr().out
    assert main([path, source, "--prepare"]) == 2
    assert "x.jsonl, line 101 is not a JSON object" in capsys.readouterr().err


def test_validation_sources_beside_a_fraction_say_what_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, override = str(tiny_file(tmp_path)), f"task.data.validation_sources=[{tmp_path}/corpus/00*.txt]"
    assert main([path, override, "--check"]) == 2
    assert "write task.data.validation_fraction=null" in capsys.readouterr().err
    assert main([path, override, "task.data.validation_fraction=null", "--check"]) == 0


def test_preparation_tells_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.jsonl").write_bytes(ROWS + json_lines([None]))
    overrides = [f"task.data.sources=[{tmp_path}/x.jsonl]", "task.data.on_bad_document=skip"]
    for _ in range(2):  # prepared, and found prepared
        assert main([str(tiny_file(tmp_path)), *overrides, "--prepare"]) == 0
        assert "1 bad document left out" in capsys.readouterr().out
    assert (
        cache.prepare(data(tmp_path, *overrides), vocab_size=300).facts["sources"]["task.data.sources[0]"]["skipped"]
        == 1
    )


def test_max_tokens_stop_after_the_document_that_reaches_them(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(ROWS)
    whole = data(tmp_path, f"task.data.sources=[{tmp_path}/x.jsonl]")
    cache.prepare(whole, vocab_size=300).save_tokenizer(tmp_path / "tokenizer")
    limited = data(
        tmp_path,
        f"task.data.sources=[{{path: {tmp_path}/x.jsonl, max_tokens: 3000}}]",
        f"task.data.tokenizer={tmp_path}/tokenizer",
    )
    facts = cache.prepare(limited, vocab_size=300).facts
    documents = facts["training_documents"] + facts["validation_documents"]
    tokens = facts["training_tokens"] + facts["validation_tokens"]
    assert 3000 <= tokens < 3000 + 1.1 * tokens / documents
    assert facts["sources"]["task.data.sources[0]"]["documents"] == documents < 100
    with pytest.raises(ConfigError, match=r"sources\.0\.max_tokens: byte-bpe is trained .* write max_documents"):
        data(tmp_path, "task.data.sources=[{path: a.txt, max_tokens: 3000}]")
