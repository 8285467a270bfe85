"""Unreadable text is refused, by file and place, or left out and counted."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from tests.train.data.text.written import (
    COMPRESSIONS,
    SEPARATOR,
    documents,
    json_array,
    json_lines,
    parquet,
    reader,
    saved,
    table,
    texts_of,
)
from train.config.errors import ConfigError
from train.data.text.documents.reader import Sample

GOOD = json_lines(["a", "b", "c"])
LONG = json_lines([os.urandom(50).hex() for _ in range(3000)])
SKIP = "task.data.on_bad_document=skip"

# name -> content, keys of the source, and what the message contains
UNREADABLE: dict[str, tuple[bytes, dict[str, str], list[str]]] = {
    "png.txt": (b"\x89PNG\r\n\x1a\n123", {}, ["is a PNG image", ".jsonl"]),
    "random.bin": (bytes(range(256)) * 4, {}, ["neither of a known format nor text", "Parquet"]),
    "tokens.npy": (b"\x93NUMPY\x01\x00", {}, ["is a NumPy array"]),
    "zeros": (bytes(100), {}, ["neither of a known format nor text"]),
    "a.tar.gz": (gzip.compress(bytes(257) + b"ustar" + bytes(300)), {}, ["is a tar archive; unpack it"]),
    "a.zip.txt": (b"PK\x03\x04more", {}, ["is a zip archive; unpack it"]),
    "rows.txt": (GOOD, {}, ["named as text but holds JSON objects", "rename it to end in .jsonl"]),
    "rows.txt.gz": (gzip.compress(GOOD), {}, ["rename it to end in .jsonl"]),
    "a.csv": (table(["a"]), {}, ["is a table", "text_column", "it has id, text"]),
    "mark.csv": (b"\xef\xbb\xbf", {}, ["is a table", "text_column"]),
    "lines.txt": ('{"text": "a\u2028b\x85c"}\n'.encode(), {}, ["rename it to end in .jsonl"]),
    "long.txt": (json_lines(["a" * 100_000]), {}, ["rename it to end in .jsonl"]),
    "a.parquet": (b"PAR0", {}, ["does not begin as a .parquet does"]),
    "packed.parquet.gz": (
        gzip.compress(b"PAR1" + bytes(9)),
        {},
        ["is a .parquet compressed as a whole; decompress it"],
    ),
    "empty.jsonl": (b"", {}, ["empty.jsonl is empty"]),
    "empty.jsonl.gz": (b"", {}, ["is empty"]),
    "empty.txt.gz": (gzip.compress(b""), {}, ["is empty"]),
    "blank.jsonl": (b" \n\n", {}, ["is empty"]),
    "blank.txt": (b" \n\t", {}, ["contains only white space"]),
    "other.csv": (table(["a"]), {"text_column": "body"}, [".text_column: ", "has no column 'body'; it has id, text"]),
    "separator.jsonl": (GOOD, {"document_separator": "--"}, [".document_separator: has no effect", "remove it"]),
    "column.txt": (b"text", {"text_column": "body"}, [".text_column: has no effect", "remove it"]),
}
# the same of documents that may be skipped; the last number is that of the documents that remain
BAD: dict[str, tuple[bytes, dict[str, str], list[str], int]] = {
    "line.jsonl": (GOOD + b'{"text": "x"\n' + GOOD, {}, ["line.jsonl, line 4 is not a JSON object on one line"], 6),
    "null.jsonl": (GOOD + json_lines([None]), {}, ["null.jsonl, line 4 has null in column 'text'"], 3),
    "number.jsonl": (json_lines([3]) + GOOD, {}, ["line 1 has a number (3) in column 'text'"], 3),
    "list.jsonl": (GOOD + json_lines([["a"]]), {}, ["line 4 has a list in column 'text'"], 3),
    "half.jsonl": (GOOD + b'{"text": "\\ud800"}\n', {}, ["line 4 has half a character"], 3),
    "deep.jsonl": (GOOD + b'{"text": ' + b"[" * 100_000 + b"\n", {}, ["line 4 cannot be read", "brackets"], 3),
    "digits.jsonl": (GOOD + b'{"text": ' + b"1" * 5000 + b"}\n", {}, ["line 4 cannot be read", "digits"], 3),
    "values.jsonl": (b"3\n" + GOOD, {}, ["line 1 is a number (3), not an object"], 3),
    "column.jsonl": (
        GOOD + b'{"body": "x", "meta": {"a": 1}}\n',
        {},
        ["sources[0].text_column: ", "line 4 has no column 'text'; it has body, meta.a"],
        3,
    ),
    "nested.jsonl": (
        json_lines(["a"], "meta.text") + b'{"meta": null}\n',
        {"text_column": "meta.text"},
        ["line 2 has no column 'meta.text'; it has meta"],
        1,
    ),
    "entry.json": (json_array(["a", None, "b"]), {}, ["entry.json, entry 2 has null"], 2),
    "cut.json": (json_array(["a", "b"])[:-20], {}, ["cut.json is not a JSON array of objects after entry 1"], 1),
    "more.json": (json_array(["a"]) + b"[", {}, ["more.json is not a JSON array", "'[' follows the array"], 1),
    "latin.jsonl": (GOOD + '{"text": "é"}\n'.encode("latin-1"), {}, ["line 4 is not UTF-8", "byte 79 (0xe9)"], 3),
    "latin.csv": (b"text\na\n\xe9\n", {"text_column": "text"}, ["latin.csv is not UTF-8", "byte 7 (0xe9)"], 1),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_files_without_text_are_refused(tmp_path: Path, name: str) -> None:
    content, keys, fragments = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    for on_bad in ("refuse", "skip"):  # what is wrong with the file as a whole is not skipped
        with pytest.raises(ConfigError) as error:
            documents(tmp_path / name, on_bad=on_bad, **keys)
        assert str(error.value).startswith("task.data.sources[0].")
        for fragment in fragments:
            assert fragment in str(error.value)


@pytest.mark.parametrize("name", BAD)
def test_bad_documents_are_refused_or_counted(tmp_path: Path, name: str) -> None:
    content, keys, fragments, left = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as error:
        documents(tmp_path / name, **keys)
    for fragment in [*fragments, SKIP]:
        assert fragment in str(error.value)
    source = reader(tmp_path / name, on_bad="skip", **keys)
    assert len(list(source)) == left
    assert source.facts()["skipped"] == 1
    assert all(part in str(error.value) for part in source.facts()["first_skipped"])


@pytest.mark.parametrize(
    ("compression", "damage"),
    [(name, "cut") for name in COMPRESSIONS if name] + [(name, "changed") for name in (".gz", ".xz")],
)  # a changed byte garbles a whole block of bz2, which is then no JSON; these frames of zstd have no checksum
def test_a_damaged_archive_is_named_and_its_readable_part_kept(tmp_path: Path, compression: str, damage: str) -> None:
    packed = bytearray(COMPRESSIONS[compression](LONG))
    if damage == "cut":
        packed = packed[:-100]
    else:
        packed[-100] ^= 0xFF
    path = tmp_path / f"a.jsonl{compression}"
    path.write_bytes(packed)
    with pytest.raises(ConfigError, match=rf"a\.jsonl{compression} is damaged or cut off after line [\d,]+ .*{SKIP}"):
        documents(path)
    source = reader(path, on_bad="skip")
    kept = [document.text for document in source]
    assert source.counts.skipped == 1
    assert kept == [json.loads(line)["text"] for line in LONG.splitlines()][: len(kept)]
    assert len(kept) > 1000


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_damaged_text_is_no_document(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(COMPRESSIONS[compression](LONG.replace(b"{", b"("))[: -100 if compression else None])
    if compression == "":
        assert len(documents(path)) == 1
        return
    with pytest.raises(ConfigError, match=r"a\.txt\.\w+ is damaged or cut off"):
        documents(path)
    with pytest.raises(ConfigError, match=r"contains no document that can be read: 1 skipped, as .*a\.txt"):
        documents(path, on_bad="skip")


def test_tables_without_text_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "other.parquet", ["a"], "meta.body")
    parquet(tmp_path / "numbers.parquet", [1, 2])
    saved(tmp_path / "saved", ["a"], "body")
    for name, fragment in (
        ("other.parquet", r"sources\[0\]\.text_column: .*other.parquet has no column 'text'; it has id, meta\.\w+"),
        ("numbers.parquet", "numbers.parquet has int64 in column 'text', not text; its columns are id, text"),
        ("saved", "saved has no column 'text'; it has id, body"),
    ):
        for on_bad in ("refuse", "skip"):
            with pytest.raises(ConfigError, match=fragment):
                documents(tmp_path / name, on_bad=on_bad)


def test_a_damaged_saved_data_set_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "saved", ["a" * 1000] * 2000)
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:-100_000])
    with pytest.raises(ConfigError, match=r"saved cannot be (loaded|read after row [\d,]+) \("):
        documents(tmp_path / "saved")


def test_rows_of_tables_without_text(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", ["a", None, "b"], "meta.text")
    with pytest.raises(ConfigError, match=r"a\.parquet, row 2 has null in column 'meta\.text'"):
        documents(tmp_path / "a.parquet", text_column="meta.text")
    assert texts_of(tmp_path / "a.parquet", text_column="meta.text", on_bad="skip") == ["a", "b"]
    parquet(tmp_path / "b.parquet", [str(n) * 1000 for n in range(1000)])
    (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-30])
    with pytest.raises(ConfigError, match=r"b\.parquet is damaged or cut off after row 0"):
        documents(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("ab é".encode("latin-1"), "ISO-8859-1"),
        ("it\u2019s".encode("cp1252"), "WINDOWS-1252"),
        ("text é".encode("utf-16"), "UTF-16"),
        ("text é".encode("utf-32"), "UTF-32"),
        ("only ASCII, without a mark".encode("utf-16-le"), "UTF-16LE"),
    ],
)
@pytest.mark.parametrize("name", ["a b.txt", "a b.txt.gz", "a b", "a b.f90"])
def test_another_encoding_is_refused_by_a_command_that_converts_it(
    tmp_path: Path, name: str, content: bytes, encoding: str
) -> None:
    if encoding == "UTF-16LE" and ".txt" not in name:
        name += ".txt"  # without a mark and a suffix it is no text
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(ConfigError, match=rf"is not UTF-8 text: byte \d.* if it is {encoding}, convert it") as error:
        documents(path)
    command = re.search(r"convert it: (.*); mend it", str(error.value))
    assert command
    subprocess.run(["bash", "-c", command[1]], check=True)  # as a user pastes it
    (converted,) = tmp_path.glob("*utf8*")
    assert texts_of(converted) == [content.decode(encoding)]


def test_binary_data_are_no_other_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"text first " + bytes(range(256)) * 20)
    with pytest.raises(ConfigError, match=r"is not text: byte 139 is not UTF-8.*binary data; leave the file out"):
        documents(tmp_path / "a.txt")


def test_one_bad_text_among_separators(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(f"a\n{SEPARATOR}\n".encode() + b"\xe9\n" + f"{SEPARATOR}\nb\n".encode())
    with pytest.raises(ConfigError, match=r"a\.txt, from line 3 on is not UTF-8 text: byte 10 \(0xe9\)"):
        documents(tmp_path / "a.txt", document_separator=SEPARATOR)
    assert texts_of(tmp_path / "a.txt", document_separator=SEPARATOR, on_bad="skip") == ["a\n", "b\n"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nope.txt", "nope.txt does not exist"),
        ("nope.jsonl.zst", "nope.jsonl.zst does not exist"),
        ("folder", "folder contains no files; hidden ones are not read"),
        ("*.txt", r"\*\.txt matches no files"),
        ("fol*", r"fol\* matches no files, only folders; write .*fol\*/\*\*"),
    ],
)
def test_nothing_to_read_is_refused(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/.hidden.txt").write_text("a")
    with pytest.raises(ConfigError, match=message):
        documents(tmp_path / path)


def test_a_source_without_one_good_document_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines([None, 3]))
    with pytest.raises(ConfigError, match=r"contains no document that can be read: 2 skipped, as .*line 1 has null"):
        documents(tmp_path / "a.jsonl", on_bad="skip")


def test_all_files_of_unknown_formats_are_listed_up_to_five(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ConfigError) as error:
        documents(tmp_path)
    assert len(error.value.faults) == 7
    assert "4.png is a PNG image" in error.value.faults[4]
    assert "2 more files" in error.value.faults[5]


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_text("a")
    source = reader(tmp_path / "a.txt")
    monkeypatch.setattr(Path, "open", refuse)
    for attempt in (lambda: list(source), lambda: reader(tmp_path / "a.txt")):
        with pytest.raises(ConfigError, match=r"a\.txt cannot be read \(Permission denied\)"):
            attempt()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> list[str]:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return list_folder(path)  # type: ignore[arg-type]

    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("a")
    list_folder = os.listdir
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(ConfigError, match=r"closed cannot be read \(Permission denied\)"):
        reader(tmp_path)


@pytest.mark.parametrize("sample", [None, Sample()])
@pytest.mark.parametrize("error", [ConnectionError("no network\nsecond line"), ValueError("no such name")])
def test_a_data_set_that_cannot_be_loaded_is_refused(
    monkeypatch: pytest.MonkeyPatch, error: Exception, sample: Sample | None
) -> None:
    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    reason = str(error).splitlines()[0]
    message = rf"some/name is neither a local file or folder nor a loadable data set \({reason}\)"
    with pytest.raises(ConfigError, match=message):
        documents("some/name", sample=sample)


def test_a_stream_that_breaks_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "a"}
        raise ConnectionError("connection lost")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    with pytest.raises(ConfigError, match=r"some/name cannot be read after row 1 \(connection lost\)"):
        documents("some/name", streaming=True)


def test_a_sample_without_a_network_is_taken_from_the_cache_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: str, *, streaming: bool, **__: object) -> datasets.Dataset:
        if streaming:
            raise ConnectionError("no network")
        return datasets.Dataset.from_dict({"text": ["cached"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert texts_of("some/name", sample=Sample()) == ["cached"]
