"""Every format, compression, column and layout gives the same documents."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.train.data.text.written import (
    COLUMNS,
    COMPRESSIONS,
    SEPARATOR,
    TEXTS,
    documents,
    json_array,
    json_lines,
    parquet,
    reader,
    saved,
    separated,
    table,
    texts_of,
)
from train.config.errors import ConfigError

WRITERS = {".jsonl": json_lines, ".ndjson": json_lines, ".JSONL": json_lines, ".json": json_array, ".csv": table}
LAYOUTS = ("file", "glob", "folder", "folder of folders")


def lay_out(folder: Path, layout: str, name: str) -> tuple[Path, str]:
    """Return where to write a file and the path of the source that it is."""
    below = folder / "inner" if layout == "folder of folders" else folder
    below.mkdir(parents=True, exist_ok=True)
    paths = {"file": below / name, "glob": folder / "*part*", "folder": folder, "folder of folders": folder}
    return below / name, str(paths[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("suffix", WRITERS)
def test_rows_of_text_files(tmp_path: Path, suffix: str, compression: str, layout: str) -> None:
    for number, column in enumerate(COLUMNS):
        if suffix == ".csv" and column is None:
            continue  # a column of CSV is always named
        path, source = lay_out(tmp_path / str(number), layout, f"part-0{suffix}{compression}")
        path.write_bytes(COMPRESSIONS[compression](WRITERS[suffix](TEXTS, column)))
        assert texts_of(source, text_column=column) == TEXTS
        assert {document.file for document in documents(source, text_column=column)} == {str(path)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("write", [parquet, saved])
def test_rows_of_tables(tmp_path: Path, write: object, layout: str) -> None:
    for number, column in enumerate(COLUMNS):
        path, source = lay_out(tmp_path / str(number), layout, "part-0")
        write(path, TEXTS, column)  # type: ignore[operator]
        found = documents(source, text_column=column)
        assert [document.text for document in found] == TEXTS
        assert [document.row for document in found] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_text_between_separators_and_whole(tmp_path: Path, compression: str, layout: str) -> None:
    path, source = lay_out(tmp_path / "separated", layout, f"part.txt{compression}")
    path.write_bytes(COMPRESSIONS[compression](separated(TEXTS)))
    found = documents(source, document_separator=SEPARATOR)
    assert [document.text.removesuffix("\n") for document in found] == TEXTS
    assert [document.row for document in found] == [1, 5, 7, 9, 11]
    path, source = lay_out(tmp_path / "whole", layout, f"part.txt{compression}")
    path.write_bytes(COMPRESSIONS[compression](separated(TEXTS)))
    assert documents(source) == [(separated(TEXTS).decode(), str(path), None)]


def test_each_file_of_a_folder_is_read_by_its_own_format(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("plain")
    (tmp_path / "2.jsonl.gz").write_bytes(gzip.compress(json_lines(["rows"])))
    parquet(tmp_path / "3.parquet", ["table"])
    saved(tmp_path / "4", ["saved"])
    (tmp_path / "5.py").write_text("print()")
    source = reader(tmp_path)
    assert [document.text for document in source] == ["plain", "rows", "table", "saved", "print()"]
    assert source.facts() == {
        "path": str(tmp_path),
        "files": 5,
        "formats": {"text": 2, "json": 1, "parquet": 1, "saved": 1},
        "documents": 5,
        "bytes": 26,
        "recognized_by_content": "1 with .py as text",
    }
    assert [document.text for document in source] == ["plain", "rows", "table", "saved", "print()"]  # once more
    assert source.counts.documents == 5


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_content_counts_more_than_the_suffix(tmp_path: Path, compression: str) -> None:
    """Files lose their suffix on the way, or have that of a compression though a browser has undone it."""
    pack = COMPRESSIONS[compression]
    for name in ("plain.jsonl", "other.jsonl.gz", "nothing"):
        (tmp_path / name).write_bytes(pack(json_lines(TEXTS)))
        assert texts_of(tmp_path / name) == TEXTS
    parquet(tmp_path / "table.bin", TEXTS)
    assert texts_of(tmp_path / "table.bin") == TEXTS


@pytest.mark.parametrize("compression", [name for name in COMPRESSIONS if name])
def test_archives_of_several_members_are_read_whole(tmp_path: Path, compression: str) -> None:
    parts = [COMPRESSIONS[compression](json_lines([text])) for text in TEXTS]
    (tmp_path / f"a.jsonl{compression}").write_bytes(b"".join(parts))
    assert texts_of(tmp_path / f"a.jsonl{compression}") == TEXTS


def test_zero_padding_and_skippable_frames_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json_lines(["a"])) + bytes(512))
    frame = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    (tmp_path / "b.jsonl.zst").write_bytes(frame + COMPRESSIONS[".zst"](json_lines(["b"])) + frame)
    assert texts_of(tmp_path) == ["a", "b"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "1.txt").write_bytes(mark + b"a")
    (tmp_path / "2.jsonl").write_bytes(mark + json_lines(["b"]))
    (tmp_path / "3.json").write_bytes(mark + json_array(["c"]))
    assert texts_of(tmp_path) == ["a", "b", "c"]
    (tmp_path / "4.csv").write_bytes(mark + table(["d"]).replace(b"id,", b"").replace(b"7,", b""))
    assert texts_of(tmp_path / "4.csv", text_column="text") == ["d"]
    (tmp_path / "5.txt").write_bytes(mark + f"{SEPARATOR}\r\ne\r\n{SEPARATOR}\r\nf".encode())
    assert texts_of(tmp_path / "5.txt", document_separator=SEPARATOR) == ["e\r\n", "f"]


def test_blank_lines_and_line_ends_of_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n" + json_lines(["a"])[:-1] + b"\r\n\r\n" + json_lines(["b"])[:-1])
    assert [(d.text, d.row) for d in documents(tmp_path / "a.jsonl")] == [("a", 2), ("b", 4)]


def test_a_json_file_of_one_object_a_line(tmp_path: Path) -> None:
    (tmp_path / "dolma.json.gz").write_bytes(gzip.compress(json_lines(TEXTS)))
    assert texts_of(tmp_path / "dolma.json.gz") == TEXTS
    (tmp_path / "empty.json").write_text(" [ ] ")
    with pytest.raises(ConfigError, match="is empty"):
        documents(tmp_path / "empty.json")


@pytest.mark.parametrize("size", [1 << 18, 3_000_000])
def test_documents_larger_than_the_buffers(tmp_path: Path, size: int) -> None:
    texts = ["a" * size, "é" * size, "b"]
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts))
    (tmp_path / "b.json").write_bytes(json_array(texts))
    (tmp_path / "c.csv").write_bytes(table(texts))
    parquet(tmp_path / "d.parquet", texts)
    for name in ("a.jsonl", "b.json", "c.csv", "d.parquet"):
        assert texts_of(tmp_path / name, text_column="text") == texts, name


def test_a_column_whose_name_has_a_dot(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"a.b": "flat", "a": {"b": "nested"}}))
    pq.write_table(pa.table({"a.b": ["flat"]}), tmp_path / "b.parquet")
    assert texts_of(tmp_path, text_column="a.b") == ["flat", "flat"]


def test_types_of_text_in_tables(tmp_path: Path) -> None:
    for number, kind in enumerate((pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))):
        pq.write_table(pa.table({"text": pa.array(["a", "b"], kind)}), tmp_path / f"{number}.parquet")
    assert texts_of(tmp_path) == ["a", "b"] * 3


def test_splits_of_a_saved_data_set(tmp_path: Path) -> None:
    splits = datasets.DatasetDict()
    for name in ("train", "test"):
        splits[name] = datasets.Dataset.from_dict({"text": [name]})
    splits.save_to_disk(tmp_path / "both")
    assert texts_of(tmp_path / "both") == ["train"]
    assert texts_of(tmp_path / "both", split="test") == ["test"]
    with pytest.raises(ConfigError, match=r"both has no split 'valid'; write split: one of train, test"):
        documents(tmp_path / "both", split="valid")


def test_data_sets_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    def load(path: str, **arguments: object) -> object:
        asked.append((path, arguments))
        rows = datasets.Dataset.from_dict({"text": TEXTS})
        return rows.to_iterable_dataset() if arguments["streaming"] else rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert texts_of("some/name", name="part", split="test") == TEXTS
    assert asked.pop() == ("some/name", {"name": "part", "split": "test", "streaming": False})
    for keys in ({"streaming": True}, {"max_documents": 9}, {"max_tokens": 9}):
        assert texts_of("some/name", **keys) == TEXTS
        assert asked.pop() == ("some/name", {"name": None, "split": "train", "streaming": True})
    assert [document.row for document in documents("some/name", streaming=True)] == [1, 2, 3, 4, 5]
    with pytest.raises(ConfigError, match="has no column 'body'; it has text"):
        documents("some/name", streaming=True, text_column="body")


def test_max_documents_of_several_files(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_bytes(json_lines([f"{number}a", f"{number}b"]))
    source = reader(tmp_path, max_documents=3)
    assert [document.text for document in source] == ["0a", "0b", "1a"]
    assert source.counts.files_read == 2
