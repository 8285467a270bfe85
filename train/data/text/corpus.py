"""Where text comes from: the embedded corpus, files, folders and `datasets` names, as one data set of documents."""

from __future__ import annotations

import bz2
import glob
import gzip
import hashlib
import lzma
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from train.config.errors import ConfigError
from train.config.tasks.language_model import SourceConfig

EMBEDDED = "python-stdlib"
_LEFT_OUT = {"test", "tests", "idle_test", "encodings", "site-packages", "__pycache__", "lib2to3", "lib-dynload"}
_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_TABLES = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def standard_library() -> list[Path]:
    """Return the source files of the running Python's standard library, without tests and encoding tables.

    About 10 MB of code and English that every machine has: the default corpus needs no download. It differs between
    Python versions, so no number measured on it holds across machines.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = (path for suffix in ("*.py", "*.txt") for path in root.rglob(suffix))
    return sorted(path for path in found if not _LEFT_OUT & set(path.relative_to(root).parts) and path.stat().st_size)


def local_files(source: SourceConfig) -> list[Path]:
    """Return the files that a source names, sorted; empty where it names none on this machine."""
    if source.path == EMBEDDED:
        return standard_library()
    path = Path(source.path).expanduser()
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    return sorted(Path(file) for file in glob.glob(str(path), recursive=True) if Path(file).is_file())


def identity(source: SourceConfig) -> str:
    """Return what tells a source's state on this machine at a glance: names, sizes and times of its files."""
    digest = hashlib.blake2b(repr(source).encode(), digest_size=16)
    if source.path == EMBEDDED:
        digest.update(sys.version.encode())
    for file in local_files(source):
        stat = file.stat()
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def size_on_disk(sources: Sequence[SourceConfig]) -> int:
    """Return the bytes of all local files of some sources."""
    return sum(file.stat().st_size for source in sources for file in local_files(source))


def open_source(source: SourceConfig, *, path: str, cache_dir: Path) -> datasets.Dataset:
    """Return a source as a data set with one column, `text`.

    Args:
        source: what to read.
        path: the source's place in the configuration, for messages.
        cache_dir: where `datasets` may put what it makes.

    Raises:
        ConfigError: It does not exist, is empty, or lacks the column.
    """
    saved = Path(source.path).expanduser() / "state.json"
    files = local_files(source)
    if source.path != EMBEDDED and (saved.exists() or not files):
        table = _saved_or_named(source, path=path, cache_dir=cache_dir)
    elif (files and files[0].suffix in _TABLES) or (
        files and "".join(files[0].suffixes[-2:]) in (".jsonl.gz", ".jsonl.xz")
    ):
        kind = _TABLES.get(files[0].suffix, "json")
        names = [str(file) for file in files]
        table = _described(
            lambda: datasets.load_dataset(kind, data_files=names, split="train", cache_dir=str(cache_dir)), path, source
        )
    else:
        return _from_text_files(source, files, path=path, cache_dir=cache_dir)
    column = source.text_column or "text"
    if column not in table.column_names:
        raise ConfigError(
            [f"{path}.text_column: {source.path} has no column {column!r}; it has {', '.join(table.column_names)}"]
        )
    if not len(table):
        raise ConfigError([f"{path}.path: {source.path} is empty"])
    table = table.select_columns([column])
    if column == "text":  # `datasets` refuses to rename a column to the name it has
        return table
    return table.rename_column(column, "text")


def _saved_or_named(source: SourceConfig, *, path: str, cache_dir: Path) -> datasets.Dataset:
    folder = Path(source.path).expanduser()
    if folder.is_dir() and ((folder / "state.json").exists() or (folder / "dataset_dict.json").exists()):
        loaded = datasets.load_from_disk(str(folder))
        return loaded[source.split or "train"] if isinstance(loaded, datasets.DatasetDict) else loaded
    looks_like_a_file = folder.suffix in {*_TABLES, *_OPENERS, ".txt", ".md"} or source.path.startswith(("/", ".", "~"))
    if looks_like_a_file or folder.is_dir() or glob.has_magic(source.path):
        raise ConfigError([f"{path}.path: {source.path} does not exist, or holds no file"])
    split = source.split or "train"
    return _described(
        lambda: datasets.load_dataset(source.path, source.name, split=split, cache_dir=str(cache_dir)), path, source
    )


def _described(load: Callable[[], Any], path: str, source: SourceConfig) -> Any:
    try:
        return load()
    except Exception as error:  # `datasets` raises whatever its readers and the network raise
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ConfigError(
            [f"{path}.path: {source.path} is no file or folder here, nor a data set that can be loaded ({reason})"]
        ) from error


def _from_text_files(source: SourceConfig, files: list[Path], *, path: str, cache_dir: Path) -> datasets.Dataset:
    try:
        empty = not any(True for _ in documents(files[:1], source.document_separator)) if len(files) == 1 else False
    except (UnicodeDecodeError, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
        raise ConfigError([f"{path}.path: {files[0]} is not UTF-8 text ({error})"]) from error
    if empty:
        raise ConfigError([f"{path}.path: {source.path} is empty"])
    features = datasets.Features({"text": datasets.Value("large_string")})
    return datasets.Dataset.from_generator(
        _rows,
        gen_kwargs={"files": [str(file) for file in files], "separator": source.document_separator},
        features=features,
        cache_dir=str(cache_dir),
    )


def _rows(files: list[str], separator: str | None) -> Iterator[dict[str, str]]:
    for text in documents([Path(file) for file in files], separator):
        yield {"text": text}


def documents(files: Sequence[Path], separator: str | None) -> Iterator[str]:
    """Yield the documents of text files, plain or compressed; a file is one, or many with lines between them."""
    for file in files:
        opener = _OPENERS.get(file.suffix, open)
        with opener(file, "rt", encoding="utf-8", errors="strict" if separator else "replace", newline="\n") as lines:
            if separator is None:
                whole = lines.read()
                if whole:
                    yield whole
                continue
            gathered: list[str] = []
            for line in lines:
                if line.rstrip("\n") != separator:
                    gathered.append(line)
                    continue
                if gathered:
                    yield "".join(gathered)
                gathered = []
            if gathered:
                yield "".join(gathered)


def content_keys(texts: Sequence[str]) -> np.ndarray:
    """Return a 64-bit hash per document, uint64 (n,): equal documents get equal keys."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8")


def facts() -> dict[str, str]:
    """Return what a corpus record says of the machine: the embedded corpus is that of this Python."""
    return {"python": platform.python_version()}
