"""Files, folders and patterns: names, links, hidden files, and what is met twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.train.data.text.written import documents, json_lines, reader, texts_of
from train.config.errors import ConfigError
from train.config.tasks.language_model import SourceConfig, TextDataConfig
from train.data.text.documents import files

NAMES = ["with blank.txt", "[brackets].txt", "a,b.txt", "größe 層.txt", "what?*.txt", "{x}.txt"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_a_path(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(name)
    (tmp_path / "b.txt").write_text("also matched by [brackets].txt as a pattern")
    assert texts_of(tmp_path / name) == [name]


def test_a_name_that_is_not_utf8_is_read_and_shown(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jsonl")
    (tmp_path / name).write_bytes(json_lines(["a", None]))
    source = reader(tmp_path, on_bad="skip")
    assert [(document.text, document.file) for document in source] == [("a", f"{tmp_path}/caf\\xe9.jsonl")]
    assert source.counts.first_skipped[0].encode()
    assert files.identity(source.source)
    assert files.repeated([source.source] * 2)[0].encode()


def test_a_folder_below_a_hidden_one_is_read_and_hidden_files_are_not(tmp_path: Path) -> None:
    folder = tmp_path / ".cache/[data]"
    for name in ("a.txt", ".hidden.txt", ".git/b.txt", "c/.d/e.txt", "c/f.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    assert texts_of(folder) == ["a.txt", "c/f.txt"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.txt").write_text("a")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file.txt").symlink_to(tmp_path / "elsewhere/a.txt")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "circle").symlink_to(folder)
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "elsewhere")
    assert [Path(d.file).relative_to(folder).as_posix() for d in documents(folder)] == ["file.txt", "linked/a.txt"]
    (tmp_path / "alias").symlink_to(folder)
    assert len(documents(tmp_path / "alias")) == 2


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to("nowhere.txt")
    for path in (tmp_path, tmp_path / "*.txt", tmp_path / "b.txt"):
        with pytest.raises(
            ConfigError, match=r"sources\[0\]\.path: .*b\.txt is a link to nowhere\.txt, which does not"
        ):
            documents(path)


def test_the_order_is_that_of_the_paths(tmp_path: Path) -> None:
    for name in ("b/1.txt", "a-b.txt", "a/2.txt", "a/10.txt", "B.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    order = ["B.txt", "a/10.txt", "a/2.txt", "a-b.txt", "b/1.txt"]
    assert texts_of(tmp_path) == order
    assert texts_of(tmp_path / "**") == order


def test_what_is_named_twice_is_reported(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "c.txt").symlink_to("a.txt")
    sources = [SourceConfig(path=str(tmp_path / name)) for name in ("b.txt", "*.txt")]
    assert files.repeated(sources) == [str(tmp_path / "b.txt"), str(tmp_path / "c.txt")]
    named = SourceConfig(path="some/name")
    assert files.repeated([named, SourceConfig(path="other"), named]) == ["some/name"]


def test_added_settings_change_no_key_at_their_defaults() -> None:
    """Caches of older versions stay valid; the text is what `repr` gave at commit 7dfd814."""
    config = TextDataConfig(sources=(SourceConfig(path="a.txt"),), tokenizer="byte-bpe", sequence_length=16)
    source = "SourceConfig(path='a.txt', name=None, split=None, text_column=None, document_separator=None)"
    assert files.stable_repr([1, config]) == (
        f"[1, TextDataConfig(sources=({source},), tokenizer='byte-bpe', sequence_length=16, validation_fraction=None, "
        "validation_sources=(), validation_windows=None, seed=0, cache_dir='cache', num_workers=None)]"
    )
    assert "max_documents=3" in files.stable_repr(SourceConfig(path="a.txt", max_documents=3))
