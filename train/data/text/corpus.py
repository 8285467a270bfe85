"""The corpus of a run: the documents of all sources in Arrow files, split into training and validation."""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa

from train.config.errors import ConfigError
from train.config.tasks.language_model import DEFAULT_VALIDATION_FRACTION, SourceConfig, TextDataConfig
from train.data.text.documents import files
from train.data.text.documents.document import Document
from train.data.text.documents.reader import DocumentReader, Sample
from train.data.text.tokenizer import DOCUMENTS_AT_A_TIME
from train.data.text.windows import batches

logger = logging.getLogger(__name__)

_ROWS, _BYTES = 1000, 64_000_000  # of a batch in an Arrow file

CountTokens = Callable[[list[str]], list[int]]


class Corpus(NamedTuple):
    """Documents by split, and facts about them.

    Args:
        training: Column `text`.
        validation: The same; equal documents are never in both.
        facts: For the record of the run.
        is_whole: Whether the sources were read to their end.
    """

    training: datasets.Dataset
    validation: datasets.Dataset
    facts: dict[str, Any]
    is_whole: bool


def named_sources(config: TextDataConfig) -> list[tuple[str, SourceConfig]]:
    """Return every source with its path in the configuration."""
    groups = (("sources", config.sources), ("validation_sources", config.validation_sources))
    return [(f"task.data.{name}[{i}]", source) for name, group in groups for i, source in enumerate(group)]


def read(config: TextDataConfig, work: Path, *, count: CountTokens | None, sample: Sample | None = None) -> Corpus:
    """Read all sources into Arrow files.

    Args:
        config: The sources.
        work: Folder for the files.
        count: Returns the number of tokens of each document; needed by sources with `max_tokens`.
        sample: Read no more than this of each source; None reads everything.

    Raises:
        ConfigError: With every source that cannot be read.
    """
    work.mkdir(parents=True, exist_ok=True)
    readers: dict[str, DocumentReader] = {}
    tables: dict[str, datasets.Dataset] = {}
    faults: list[str] = []
    for number, (path, source) in enumerate(named_sources(config)):
        try:
            readers[path] = reader = DocumentReader(
                source, path=path, on_bad_document=config.on_bad_document, sample=sample
            )
            tables[path] = stored(_up_to(reader, count), work / f"{number}.arrow", keep=not reader.is_large)
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults)
    training, validation, facts = _split(config, tables)
    facts["sources"] = {path: reader.facts() for path, reader in readers.items()}
    if repeated := _repeated(config):
        facts["read_repeatedly"] = repeated
    return Corpus(training, validation, facts, not any(reader.counts.files_cut for reader in readers.values()))


def stored(documents: Iterable[Document], file: Path, *, keep: bool = True) -> datasets.Dataset:
    """Write documents to an Arrow file with the column `text`; without `keep` they are read, but not written."""
    schema = pa.schema([("text", pa.large_string())])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        texts: list[str] = []
        size = 0
        for document in documents:
            if not keep:
                continue
            texts.append(document.text)
            size += len(document.text)
            if len(texts) == _ROWS or size > _BYTES:
                writer.write_batch(pa.record_batch([pa.array(texts, pa.large_string())], schema=schema))
                texts, size = [], 0
        if texts:
            writer.write_batch(pa.record_batch([pa.array(texts, pa.large_string())], schema=schema))
    return datasets.Dataset.from_file(str(file))


def _up_to(reader: DocumentReader, count: CountTokens | None) -> Iterator[Document]:
    """Yield the documents of a source until it has `max_tokens` tokens, with one for the end of each document."""
    most = reader.source.max_tokens
    if most is None or count is None:  # the rules exclude max_tokens with byte-bpe: the tokenizer could not be loaded
        yield from reader
        return
    tokens = 0
    for document in reader:
        yield document
        tokens += count([document.text])[0] + 1
        if tokens >= most:
            return


def _split(
    config: TextDataConfig, tables: dict[str, datasets.Dataset]
) -> tuple[datasets.Dataset, datasets.Dataset, dict[str, Any]]:
    """Return training and validation documents; equal documents are never in both."""
    documents = datasets.concatenate_datasets([t for path, t in tables.items() if path.startswith("task.data.sources")])
    keys = _content_keys(documents)
    separate = [table for path, table in tables.items() if path.startswith("task.data.validation_sources")]
    if separate:
        validation = datasets.concatenate_datasets(separate)
        held_out = np.isin(keys, _content_keys(validation))
        training = documents.select(np.flatnonzero(~held_out))
    else:
        fraction = config.validation_fraction or DEFAULT_VALIDATION_FRACTION
        held_out = keys < np.uint64(int(fraction * 2**64))
        training, validation = documents.select(np.flatnonzero(~held_out)), documents.select(np.flatnonzero(held_out))
    facts = {
        "python": platform.python_version(),  # the embedded corpus depends on it
        "corpus_hash": hashlib.blake2b(np.sort(keys).tobytes(), digest_size=8).hexdigest(),
        "training_documents": len(training),
        "validation_documents": len(validation),
        "training_documents_dropped_as_in_validation": int(held_out.sum()) if separate else 0,
    }
    return training, validation, facts


def _content_keys(table: datasets.Dataset) -> np.ndarray:
    """Return a 64-bit hash per document, uint64 (n,): equal documents have equal keys."""
    digests = b"".join(
        hashlib.blake2b(text.encode(), digest_size=8).digest()
        for batch in batches(table, DOCUMENTS_AT_A_TIME)
        for text in batch["text"]
    )
    return np.frombuffer(digests, "<u8")


def _repeated(config: TextDataConfig) -> list[str]:
    """Return the files that are read more than once, within the training or within the validation sources."""
    return [*files.repeated(config.sources), *files.repeated(config.validation_sources)][:20]


def report(facts: dict[str, Any]) -> Iterator[str]:
    """Yield what was read of the sources, a line each."""
    for path, source in facts.get("sources", {}).items():
        how = "read whole"
        if cut := source.get("files_cut"):
            how = f"{cut:,} of them only in part ({_size(source['bytes_read'])} read)"
        text = f"{_counted(source['documents'], 'document')}, {_size(source['bytes'])} of text"
        yield f"{path}: {_counted(source['files'], 'file')}, {how}: {text}"
        if guesses := source.get("recognized_by_content"):
            yield f"{path}: recognized by content, as the suffix says nothing: {guesses}"


def warnings(facts: dict[str, Any]) -> Iterator[str]:
    """Yield what a user may not have meant, a line each."""
    for path, source in facts.get("sources", {}).items():
        if blank := source.get("blank_documents"):
            yield f"{path}: {_counted(blank, 'document')} without text, empty or white space"
        if skipped := source.get("skipped"):
            yield f"{path}: {_counted(skipped, 'bad document')} left out; the first: {source['first_skipped'][0]}"
    if repeated := facts.get("read_repeatedly"):
        more = ", ..." if len(repeated) > 3 else ""
        yield f"task.data: read more than once, by several sources or links: {', '.join(repeated[:3])}{more}"
    if dropped := facts.get("training_documents_dropped_as_in_validation"):
        yield f"task.data: {_counted(dropped, 'training document')} left out, as in the validation sources"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1_000_000 else f"{num_bytes / 1e3:,.1f} kB"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
