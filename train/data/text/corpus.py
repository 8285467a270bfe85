"""The corpus of a run: its sources, which of their documents are held out for validation, and what is said of them."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import datasets

from train.config.errors import ConfigError
from train.config.tasks.language_model import DEFAULT_VALIDATION_FRACTION, SourceConfig, TextDataConfig
from train.data.split import Split
from train.data.text.documents import files
from train.data.text.documents.reader import DocumentReader, Sample

BPE_TRAINING_BYTES = 8_000_000  # more text barely changes the merges and takes longer


class NamedReader(NamedTuple):
    """A source, with its path in the configuration."""

    path: str
    reader: DocumentReader

    @property
    def is_for_training(self) -> bool:
        """Whether it is one of task.data.sources."""
        return self.path.startswith("task.data.sources")


Splitter = Callable[[NamedReader, bytes], Split | None]  # a document's source and content key -> where it belongs


def named_sources(config: TextDataConfig) -> list[tuple[str, SourceConfig]]:
    """Return every source with its path in the configuration."""
    groups = (("sources", config.sources), ("validation_sources", config.validation_sources))
    return [(f"task.data.{name}[{i}]", source) for name, group in groups for i, source in enumerate(group)]


def open_reader(
    config: TextDataConfig, path: str, source: SourceConfig, *, sample: Sample | None = None
) -> NamedReader:
    """Return the reader of a source.

    Raises:
        ConfigError: It cannot be read.
    """
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    reader = DocumentReader(source, path=path, on_bad_document=config.on_bad_document, sample=sample)
    return NamedReader(path, reader)


def open_readers(config: TextDataConfig) -> list[NamedReader]:
    """Return a reader for each source, in their order.

    Raises:
        ConfigError: With every source that cannot be read.
    """
    readers: list[NamedReader] = []
    faults: list[str] = []
    for path, source in named_sources(config):
        try:
            readers.append(open_reader(config, path, source))
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults)
    return readers


# ------------------------------------------------------------------------------------------------------------- splits


def content_key(text: str) -> bytes:
    """Return a 64-bit hash of a document: equal documents have equal keys."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def splitter(config: TextDataConfig, readers: Sequence[NamedReader]) -> Splitter:
    """Return the function that tells where a document belongs, by its content: equal ones are never in both splits.

    With validation sources, training documents that they contain too belong nowhere; so these are read first.
    """
    if config.validation_sources:
        held_out = {
            content_key(document.text) for named in readers if not named.is_for_training for document in named.reader
        }

        def by_source(named: NamedReader, key: bytes) -> Split | None:
            if not named.is_for_training:
                return "validation"
            return None if key in held_out else "training"

        return by_source
    limit = int((config.validation_fraction or DEFAULT_VALIDATION_FRACTION) * 2**64)
    return lambda _, key: "validation" if int.from_bytes(key, "little") < limit else "training"


# ------------------------------------------------------------------------------------------------ a tokenizer's sample


def training_sample(readers: Sequence[NamedReader], split_of: Splitter) -> tuple[list[str], dict[str, int]]:
    """Return evenly spaced training documents of about BPE_TRAINING_BYTES in all, and their number and size.

    Reads the training sources twice: once for their size.
    """
    sources = [named for named in readers if named.is_for_training]
    size = 0
    for named in sources:
        for _ in named.reader:
            pass
        size += named.reader.counts.bytes + 8 * named.reader.counts.documents  # as in Arrow, with offsets
    stride = max(1, size // BPE_TRAINING_BYTES)
    texts = [text for index, text in enumerate(_training_texts(sources, split_of)) if index % stride == 0]
    return texts, {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}


def _training_texts(sources: Sequence[NamedReader], split_of: Splitter) -> Iterator[str]:
    for named in sources:
        for document in named.reader:
            if split_of(named, content_key(document.text)) == "training":
                yield document.text


# ------------------------------------------------------------------------------------------------------- what is said


def facts(config: TextDataConfig, readers: Sequence[NamedReader]) -> dict[str, Any]:
    """Return what was read, for the record of the run."""
    found: dict[str, Any] = {
        "python": platform.python_version(),  # the embedded corpus depends on it
        "sources": {named.path: named.reader.facts() for named in readers},
    }
    if repeated := _repeated(config):
        found["read_repeatedly"] = repeated
    return found


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
