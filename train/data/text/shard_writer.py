"""Tokenization of documents into shards, in this process or in several."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from train.data.split import SPLITS, Split
from train.data.text.shards import Encoded, ShardRecord, damaged_file, shard_folder, write_shard
from train.data.text.tokenizer import DOCUMENTS_AT_A_TIME, encode


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
    """Turns a job into a shard; small, as every process gets a copy with each job.

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


class ShardWriter:
    """Turns jobs into shards, in this process or in several, and gives their records in the order of the jobs."""

    def __init__(self, folder: Path, encoder: Encoder, workers: int):
        self._folder = folder
        self._encoder = encoder
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._begun: deque[tuple[Job, Future[ShardRecord]]] = deque()
        self._number = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, job: Job) -> None:
        """Begin a shard, unless it is there already, and every byte of it is what was written.

        Raises:
            OSError: As in `finished`.
        """
        place = shard_folder(self._folder, self._number)
        self._number += 1
        record = ShardRecord.read(place)
        if record is not None and job.is_in(record) and damaged_file(place, record) is None:
            self._begun.append((job, _done(record)))
        elif self._workers == 1:
            self._begun.append((job, _done(self._encoder.write(job, place))))
        else:
            with _processes_survive():
                self._begun.append((job, self._started().submit(self._encoder.write, job, place)))

    def finished(self, *, wait: bool) -> Iterator[tuple[Job, ShardRecord]]:
        """Yield the shards that are there or, as memory is bounded, have to be before another is begun.

        Raises:
            OSError: A shard cannot be written, or a process was killed.
        """
        while self._begun and (wait or self._begun[0][1].done() or len(self._begun) > self._workers):
            job, record = self._begun.popleft()
            with _processes_survive():
                result = record.result()
            yield job, result

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


@contextmanager
def _processes_survive() -> Iterator[None]:
    """Raise an OSError that says what to do if a process has been killed."""
    try:
        yield
    except BrokenProcessPool:
        raise OSError(
            "a process that tokenizes was killed, perhaps for its memory: lower task.data.num_workers; the same "
            "command goes on where this one ended"
        ) from None


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
