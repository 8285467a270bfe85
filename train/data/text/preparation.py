"""Preparation of a corpus: documents are read in order and tokenized, shard by shard, by a process per core.

    sources -> documents -> training | validation, by content -> shards of tokens

One process reads; what a shard holds follows from the documents alone. So any number of processes writes the same
store, and a preparation that was killed goes on with the first shard that is missing.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from train.config.errors import ConfigError
from train.config.tasks.language_model import TextDataConfig
from train.data.split import SPLITS, Split
from train.data.text import corpus
from train.data.text.corpus import NamedReader, Splitter
from train.data.text.documents import files
from train.data.text.shards import Encoded, ShardRecord, shard_folder, write_shard
from train.data.text.tokenizer import BYTE_BPE, DOCUMENTS_AT_A_TIME, encode, end_of_text_id, load, train_byte_bpe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

SHARD_BYTES = 32_000_000  # of text; each process holds a shard or two
IN_PROCESS_BYTES = 64_000_000  # below this size, starting processes costs more than it saves
_BYTES_PER_TOKEN = 4  # of English text and tokenizers of some 50,000 tokens; for an estimate of the disk needed
_COMPRESSED = 3  # how much larger text is than its archive, for the same
_TOLD_EVERY = 30  # seconds, where there is no terminal


def build_store(config: TextDataConfig, folder: Path, *, vocab_size: int) -> None:
    """Tokenize the sources into a store, going on where an interrupted call stopped.

    Args:
        config: Sources and tokenizer.
        folder: The store; nothing else may write to it.
        vocab_size: Vocabulary size of the model; a tokenizer trained here has that size.

    Raises:
        ConfigError: A source or the tokenizer cannot be used.
        OSError: The store cannot be written.
    """
    readers = corpus.open_readers(config)
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("tokenizing %s into %s", ", ".join(source.path for source in config.sources), folder)
    split_of = corpus.splitter(config, readers)
    tokenizer, sample = _tokenizer(config, folder, readers, split_of, vocab_size)
    encoder = Encoder(
        tokenizer=str(folder / "tokenizer" / "tokenizer.json"),
        end=end_of_text_id(tokenizer, config.tokenizer),
        dtype="uint16" if len(tokenizer) <= 2**16 else "uint32",
    )
    _require_disk(folder, readers, encoder)
    records = _write_shards(config, folder, readers, split_of, encoder)
    facts = corpus.facts(config, readers) | _token_facts(readers, records)
    for number, named in enumerate(readers):  # some documents may have been read ahead of a limit
        of_source = [record for record in records if record.source == number]
        facts["sources"][named.path]["documents"] = sum(record.documents for record in of_source)
        facts["sources"][named.path]["bytes"] = sum(record.read_bytes for record in of_source)
    if sample:
        facts["tokenizer_sample"] = sample
    facts |= {"eos_token_id": encoder.end, "tokenizer_size": len(tokenizer)}
    facts |= {"dtype": encoder.dtype, "shards": len(records)}
    (folder / "store.json.partial").write_text(json.dumps(facts, indent=1))
    (folder / "store.json.partial").rename(folder / "store.json")


# --------------------------------------------------------------------------------------------------------- tokenizer


def _tokenizer(
    config: TextDataConfig,
    folder: Path,
    readers: Sequence[NamedReader],
    split_of: Splitter,
    vocab_size: int,
) -> tuple[PreTrainedTokenizerFast, dict[str, Any]]:
    """Return the tokenizer, from the store if it is there already, and what it was trained on."""
    from transformers import PreTrainedTokenizerFast

    place, note = folder / "tokenizer", folder / "tokenizer_sample.json"
    if place.exists():
        loaded = PreTrainedTokenizerFast.from_pretrained(place)
        return loaded, json.loads(note.read_text()) if note.exists() else {}
    sample: dict[str, Any] = {}
    if config.tokenizer == BYTE_BPE:
        texts, sample = corpus.training_sample(readers, split_of)
        tokenizer = train_byte_bpe(texts, vocab_size=vocab_size)
        note.write_text(json.dumps(sample))
    else:
        tokenizer = load(config.tokenizer, vocab_size=vocab_size)
        end_of_text_id(tokenizer, config.tokenizer)  # may set it
    partial = folder / "tokenizer.partial"
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save_pretrained(partial)
    partial.rename(place)
    return tokenizer, sample


# ------------------------------------------------------------------------------------------------------------ shards


def _require_disk(folder: Path, readers: Sequence[NamedReader], encoder: Encoder) -> None:
    """Say how much disk the tokens will need, where it is much.

    Raises:
        ConfigError: There is clearly less.
    """
    text = _size_of_text(readers) or _COMPRESSED * files.size_on_disk([named.reader.source for named in readers])
    needed = text // _BYTES_PER_TOKEN * np.dtype(encoder.dtype).itemsize
    free = shutil.disk_usage(folder).free
    said = f"{folder.parent} will need about {needed / 1e9:.1f} GB for the tokens, and has {free / 1e9:.1f} GB"
    if needed > 2 * free:
        raise ConfigError([f"task.data.cache_dir: {said}; choose a folder on a larger disk"])
    if text > IN_PROCESS_BYTES:
        logger.info("%s", said)


class Job(NamedTuple):
    """The documents of a shard.

    Args:
        source: Number of their source.
        texts: The documents.
        keys: Their content keys.
        splits: Where each belongs; None: nowhere.
    """

    source: int
    texts: list[str]
    keys: list[bytes]
    splits: list[Split | None]

    @property
    def digest(self) -> str:
        """A hash of the content keys."""
        return hashlib.blake2b(b"".join(self.keys), digest_size=16).hexdigest()

    def first(self, count: int) -> Job:
        """Return a job of the first documents only."""
        return Job(self.source, self.texts[:count], self.keys[:count], self.splits[:count])

    def is_in(self, record: ShardRecord) -> bool:
        """Return whether a shard holds exactly these documents."""
        return (self.source, len(self.texts), self.digest) == (record.source, record.documents, record.keys)


class Encoder(NamedTuple):
    """What a process needs to turn a job into a shard.

    Args:
        tokenizer: Path of a tokenizer.json.
        end: Token that ends a document.
        dtype: Name of the type of the token ids.
    """

    tokenizer: str
    end: int
    dtype: str

    def write(self, job: Job, folder: Path) -> ShardRecord:
        """Tokenize a job and write its shard."""
        return write_shard(
            folder,
            self._encoded(job, self._tokenizer()),
            dtype=np.dtype(self.dtype),
            source=job.source,
            documents=len(job.texts),
            read_bytes=sum(len(text.encode()) for text in job.texts),
            keys=job.digest,
        )

    def up_to(self, job: Job, tokens: int) -> Job:
        """Return the job without what follows the document that reaches a number of tokens."""
        tokenizer = self._tokenizer()
        for index, text in enumerate(job.texts):
            tokens -= len(encode([text], tokenizer, counts_bytes=False)["ids"][0]) + 1
            if tokens <= 0:
                return job.first(index + 1)
        return job

    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_file(self.tokenizer)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def _encoded(self, job: Job, tokenizer: Tokenizer) -> Iterator[Encoded]:
        for start in range(0, len(job.texts), DOCUMENTS_AT_A_TIME):
            part = slice(start, start + DOCUMENTS_AT_A_TIME)
            for split in SPLITS:
                texts = [text for text, of in zip(job.texts[part], job.splits[part], strict=True) if of == split]
                encoded = encode(texts, tokenizer, counts_bytes=split == "validation")
                sizes = encoded.get("bytes", [None] * len(texts))
                for text, ids, of_tokens in zip(texts, encoded["ids"], sizes, strict=True):
                    token_bytes = None if of_tokens is None else np.append(of_tokens, 0)  # end-of-text is no text
                    tokens = np.append(np.asarray(ids, np.int64), self.end)
                    yield Encoded(split, tokens, len(text.encode()), token_bytes)


def _write_shards(
    config: TextDataConfig,
    folder: Path,
    readers: Sequence[NamedReader],
    split_of: Splitter,
    encoder: Encoder,
) -> list[ShardRecord]:
    """Write the missing shards; return the records of all, in order."""
    records: list[ShardRecord] = []
    progress = _Progress(_size_of_text(readers))
    with _Shards(folder, encoder, _number_of_workers(config)) as shards:
        for source, named in enumerate(readers):
            left = named.reader.source.max_tokens
            for job, record in _written(_jobs(source, named, split_of), shards):
                progress.advance(record)
                tokens = sum(record.tokens.values())
                if left is None or tokens < left:
                    records.append(record)
                    left = None if left is None else left - tokens
                    continue
                records.append(encoder.write(encoder.up_to(job, left), shard_folder(folder, len(records))))
                shards.forget_from(len(records))
                break
        progress.close()
    _discard_from(folder, len(records))
    return records


def _written(jobs: Iterator[Job], shards: _Shards) -> Iterator[tuple[Job, ShardRecord]]:
    """Yield the jobs with the records of their shards, in order; some are begun ahead."""
    for job in jobs:
        shards.add(job)
        yield from shards.finished(wait=False)
    yield from shards.finished(wait=True)


def _size_of_text(readers: Sequence[NamedReader]) -> int | None:
    """Return about how much text there is, None where compressed files or names do not tell."""
    parts = [part for named in readers for part in named.reader.parts]
    if any(part.compression or part.format in ("named", "parquet", "saved") for part in parts):
        return None
    return files.size_on_disk([named.reader.source for named in readers])


def _number_of_workers(config: TextDataConfig) -> int:
    if config.num_workers is not None:
        return config.num_workers
    size = files.size_on_disk([*config.sources, *config.validation_sources])
    return len(os.sched_getaffinity(0)) if size > IN_PROCESS_BYTES else 1


def _jobs(source: int, named: NamedReader, split_of: Splitter) -> Iterator[Job]:
    """Yield the documents of a source in jobs of about SHARD_BYTES; each source begins a new one."""
    job, size = Job(source, [], [], []), 0
    for document in named.reader:
        key = corpus.content_key(document.text)
        job.texts.append(document.text)
        job.keys.append(key)
        job.splits.append(split_of(named, key))
        size += len(document.text)
        if size >= SHARD_BYTES:
            yield job
            job, size = Job(source, [], [], []), 0
    if job.texts:
        yield job


class _Shards:
    """Turns jobs into shards, in this process or in several, and gives their records in the order of the jobs."""

    def __init__(self, folder: Path, encoder: Encoder, workers: int):
        self._folder = folder
        self._encoder = encoder
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._begun: deque[tuple[Job, Future[ShardRecord]]] = deque()
        self._number = 0

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, job: Job) -> None:
        """Begin a shard, unless it is there already."""
        place = shard_folder(self._folder, self._number)
        self._number += 1
        record = ShardRecord.read(place)
        if record is not None and job.is_in(record):
            self._begun.append((job, _done(record)))
        elif self._workers == 1:
            self._begun.append((job, _done(self._encoder.write(job, place))))
        else:
            self._begun.append((job, self._started().submit(self._encoder.write, job, place)))

    def finished(self, *, wait: bool) -> Iterator[tuple[Job, ShardRecord]]:
        """Yield the shards that are there or, as memory is bounded, have to be before another is begun."""
        while self._begun and (wait or self._begun[0][1].done() or len(self._begun) > self._workers):
            job, record = self._begun.popleft()
            yield job, record.result()

    def forget_from(self, number: int) -> None:
        """Give up the shards that were begun ahead; the next one has this number."""
        for _ in self.finished(wait=True):
            pass
        self._number = number

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(),)
            )
        return self._pool


def _done(record: ShardRecord) -> Future[ShardRecord]:
    future: Future[ShardRecord] = Future()
    future.set_result(record)
    return future


def _start_worker(parent: int) -> None:
    """Make this process end with its parent, however that ends, and leave signals from the terminal to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process per core is enough
    kill_with_parent = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(kill_with_parent, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _discard_from(folder: Path, number: int) -> None:
    """Remove shards of an earlier, longer state of the sources."""
    while (place := shard_folder(folder, number)).exists():
        shutil.rmtree(place)
        number += 1


class _Progress:
    """What is done: a bar on a terminal, else a line now and then.

    Args:
        total: Bytes of text in all; None where they are not known, as in compressed files.
    """

    def __init__(self, total: int | None):
        from tqdm import tqdm

        settings: dict[str, Any] = {"unit": "B", "unit_scale": True, "leave": False}
        self._bar = tqdm(desc="tokenizing", total=total, disable=not sys.stderr.isatty(), **settings)
        self._total = total
        self._began = self._told = time.monotonic()
        self._bytes = self._tokens = 0

    def advance(self, record: ShardRecord) -> None:
        self._bytes += record.read_bytes
        self._tokens += sum(record.tokens.values())
        self._bar.update(record.read_bytes)
        now = time.monotonic()
        if self._bar.disable and now - self._told > _TOLD_EVERY:
            self._told = now
            rate = self._bytes / (now - self._began)
            left = f", {(self._total - self._bytes) / rate / 60:.0f} minutes left" if self._total else ""
            logger.info(
                "%.1f MB of text, %s tokens, %.1f MB/s%s", self._bytes / 1e6, f"{self._tokens:,}", rate / 1e6, left
            )

    def close(self) -> None:
        self._bar.close()


def _token_facts(readers: Sequence[NamedReader], records: Sequence[ShardRecord]) -> dict[str, Any]:
    """Return the counts of documents and tokens, by split and by source."""
    total: dict[str, Any] = {}
    for split in SPLITS:
        total[f"{split}_documents"] = sum(record.split_documents[split] for record in records)
        total[f"{split}_bytes"] = sum(record.text_bytes[split] for record in records)
        total[f"{split}_tokens"] = sum(record.tokens[split] for record in records)
    tokens = {
        named.path: sum(sum(record.tokens.values()) for record in records if record.source == number)
        for number, named in enumerate(readers)
    }
    held_back = sum(record.documents - sum(record.split_documents.values()) for record in records)
    return total | {"tokens_by_source": tokens, "training_documents_dropped_as_in_validation": held_back}
