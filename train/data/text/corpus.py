"""Text sources (embedded corpus, files, folders and `datasets` names) as a data set of documents."""

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
from train.config.tasks.language_model import EMBEDDED_CORPUS, SourceConfig

_EXCLUDED = {"test", "tests", "idle_test", "encodings", "site-packages", "__pycache__", "lib2to3", "lib-dynload"}
_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_TABLES = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def standard_library() -> list[Path]:
    """Return the source files of the running Python's standard library, without tests and encoding tables.

    These are about 10 MB of code and English available on every machine, so the default corpus needs no download. They
    differ between Python versions, so results are not comparable across machines.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = (path for suffix in ("*.py", "*.txt") for path in root.rglob(suffix))
    return sorted(path for path in paths if not _EXCLUDED & set(path.relative_to(root).parts) and path.stat().st_size)


def local_files(source: SourceConfig) -> list[Path]:
    """Return the local files of a source, sorted; empty if there are none."""
    if source.path == EMBEDDED_CORPUS:
        return standard_library()
    path = Path(source.path).expanduser()
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    return sorted(Path(file) for file in glob.glob(str(path), recursive=True) if Path(file).is_file())


def identity(source: SourceConfig) -> str:
    """Return a quick fingerprint of a source on this machine, from names, sizes and times of its files."""
    digest = hashlib.blake2b(repr(source).encode(), digest_size=16)
    if source.path == EMBEDDED_CORPUS:
        digest.update(sys.version.encode())
    for file in local_files(source):
        stat = file.stat()
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def size_on_disk(sources: Sequence[SourceConfig]) -> int:
    """Return the total size of all local files of the sources, in bytes."""
    return sum(file.stat().st_size for source in sources for file in local_files(source))


def open_source(source: SourceConfig, *, path: str, cache_dir: Path) -> datasets.Dataset:
    """Return a source as a data set with one column, `text`.

    Args:
        source: The source.
        path: Path of the source in the configuration, for messages.
        cache_dir: Folder for files that `datasets` creates.

    Raises:
        ConfigError: The source does not exist, is empty, or lacks the column.
    """
    saved = Path(source.path).expanduser() / "state.json"
    files = local_files(source)
    if source.path != EMBEDDED_CORPUS and (saved.exists() or not files):
        table = _saved_or_named(source, path=path, cache_dir=cache_dir)
    elif (files and files[0].suffix in _TABLES) or (
        files and "".join(files[0].suffixes[-2:]) in (".jsonl.gz", ".jsonl.xz")
    ):
        kind = _TABLES.get(files[0].suffix, "json")
        names = [str(file) for file in files]
        table = _loaded(
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
    if column == "text":  # `datasets` does not allow renaming a column to its own name
        return table
    return table.rename_column(column, "text")


def _saved_or_named(source: SourceConfig, *, path: str, cache_dir: Path) -> datasets.Dataset:
    folder = Path(source.path).expanduser()
    if folder.is_dir() and ((folder / "state.json").exists() or (folder / "dataset_dict.json").exists()):
        loaded = datasets.load_from_disk(str(folder))
        return loaded[source.split or "train"] if isinstance(loaded, datasets.DatasetDict) else loaded
    looks_like_a_file = folder.suffix in {*_TABLES, *_OPENERS, ".txt", ".md"} or source.path.startswith(("/", ".", "~"))
    if looks_like_a_file or folder.is_dir() or glob.has_magic(source.path):
        raise ConfigError([f"{path}.path: {source.path} does not exist or contains no files"])
    split = source.split or "train"
    return _loaded(
        lambda: datasets.load_dataset(source.path, source.name, split=split, cache_dir=str(cache_dir)), path, source
    )


def _loaded(load: Callable[[], Any], path: str, source: SourceConfig) -> Any:
    try:
        return load()
    except Exception as error:  # `datasets` passes on any error of its readers and the network
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ConfigError(
            [f"{path}.path: {source.path} is neither a local file or folder nor a loadable data set ({reason})"]
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
    """Yield the documents of text files, plain or compressed: one per file, or several divided by separator lines."""
    for file in files:
        opener = _OPENERS.get(file.suffix, open)
        with opener(file, "rt", encoding="utf-8", errors="strict" if separator else "replace", newline="\n") as lines:
            if separator is None:
                text = lines.read()
                if text:
                    yield text
                continue
            document: list[str] = []
            for line in lines:
                if line.rstrip("\n") != separator:
                    document.append(line)
                    continue
                if document:
                    yield "".join(document)
                document = []
            if document:
                yield "".join(document)


def content_keys(texts: Sequence[str]) -> np.ndarray:
    """Return a 64-bit hash per document, uint64 (n,): equal documents have equal keys."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8")


def facts() -> dict[str, str]:
    """Return facts about the machine for the corpus record: the embedded corpus depends on the Python version."""
    return {"python": platform.python_version()}
