"""The token store: what is read is what was prepared, by however many processes, after however many interruptions."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ranks import Ranks
from tests.tiny import tiny_file, tiny_run, write_corpus
from train import loop
from train.__main__ import main
from train.checkpoint.checkpoint import Progress
from train.config.errors import ConfigError
from train.config.tasks.language_model import SourceConfig
from train.data.damage import DamagedDataError
from train.data.text import cache, preparation, shard_writer
from train.data.text.shard_writer import Encoder, Job, ShardWriter
from train.data.text.shards import Encoded, ShardRecord, TokenSequence, shard_folder, write_shard
from train.data.text.store import TextData
from train.data.text.windows import Windows, _hashed
from train.loop import Run
from train.rank import train_rank
from train.tasks import build_task

from .test_text import VOCAB, settings

DTYPE = np.dtype(np.uint16)


def sequence_of(folder: Path, shards: list[list[int]], split: str = "training") -> tuple[TokenSequence, np.ndarray]:
    """A store of shards of documents of these lengths, whose tokens count up; and all tokens."""
    records, first = [], 0
    for number, lengths in enumerate(shards):
        documents = [np.arange(first := first + length)[first - length :] for length in lengths]
        encoded = [Encoded(split, ids, 0, 10 * ids if split == "validation" else None) for ids in documents]  # type: ignore[arg-type]
        place = shard_folder(folder, number)
        records.append(
            write_shard(place, encoded, dtype=DTYPE, source=0, documents=len(lengths), read_bytes=0, keys="")
        )
        assert ShardRecord.read(place) == records[-1]
    return TokenSequence(folder, records, split, DTYPE), np.arange(first)  # type: ignore[arg-type]


SHARDS = [[[5, 0, 40, 1]], [[33]], [[16, 1]], [[1] * 100], [[3, 9], [], [1, 1], [20]], [[], [7]], [[2], [2], [30, 4]]]


@pytest.mark.parametrize("shards", SHARDS)
def test_windows_predict_every_token_but_the_first_exactly_once(tmp_path: Path, shards: list[list[int]]) -> None:
    sequence, stream = sequence_of(tmp_path, shards, "validation")
    windows = Windows(sequence, 4)
    found = np.stack([windows.read(index) for index in range(len(windows))])
    assert len(windows) == (len(stream) - 1) // 4
    assert found[:, 1:].reshape(-1).tolist() == stream[1 : 1 + 4 * len(windows)].tolist()
    assert found[1:, 0].tolist() == found[:-1, -1].tolist()
    target_bytes = [windows.target_bytes(index) for index in range(len(windows))]
    assert target_bytes == (found[:, 1:].sum(axis=1) * 10).tolist()
    assert sequence.document_ends().tolist() == np.cumsum([n for shard in shards for n in shard]).tolist()


def first_form(documents: list[np.ndarray], length: int, together: int) -> bytes:
    """The digest of the first form of the cache: a buffer of documents, hashed whenever it holds enough windows."""
    digest, buffer = hashlib.blake2b(digest_size=16), np.zeros(0, DTYPE)

    def flush() -> None:
        nonlocal buffer
        count = max(0, (len(buffer) - 1) // length)
        for start in range(0, count * length, length):
            digest.update(buffer[start : start + length + 1].tobytes())
        digest.update(np.zeros(count, np.int64).tobytes())
        buffer = buffer[count * length :]

    for document in documents:
        buffer = np.concatenate((buffer, document.astype(DTYPE)))
        if len(buffer) > together * length:
            flush()
    flush()
    return digest.digest()


@pytest.mark.parametrize("shards", [*SHARDS, [[9] * 7, [100], [1] * 9, [300, 2]]])
@pytest.mark.parametrize("together", [1, 3, 1024])
def test_the_fingerprint_is_that_of_the_first_form(
    tmp_path: Path, shards: list[list[int]], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.data.text.windows._TOGETHER", together)
    sequence, stream = sequence_of(tmp_path, shards)
    documents = np.split(stream, sequence.document_ends()[:-1])
    hashes, _, digest = _hashed(Windows(sequence, 4), counts_bytes=False)
    assert digest == first_form(documents, 4, together)
    assert len(set(hashes.tolist())) == len(hashes)


# ---------------------------------------------------------------------------------------------- the same store always


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of many shards."""
    monkeypatch.setattr(preparation, "SHARD_BYTES", 3000)
    write_corpus(tmp_path / "corpus")
    return tmp_path


def content(store: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def store_in(cache_folder: Path) -> Path:
    (store,) = cache_folder.glob("text-*/")
    return store


def test_any_number_of_workers_writes_the_same_store(folder: Path) -> None:
    stores = []
    for workers in (1, 2):
        place = folder / f"cache-{workers}"
        cache.prepare(settings(folder, num_workers=workers, cache_dir=str(place)), vocab_size=VOCAB)
        stores.append(content(store_in(place)))
    assert len([name for name in stores[0] if name.endswith("shard.json")]) > 5
    assert stores[0] == stores[1]


def test_an_interrupted_preparation_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.prepare(settings(folder, cache_dir=str(folder / "whole")), vocab_size=VOCAB)
    written: list[Path] = []
    write = shard_writer.write_shard

    def stopping(place: Path, *arguments: object, **named: object) -> ShardRecord:
        written.append(place)
        if len(written) == 4:
            raise KeyboardInterrupt
        return write(place, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_writer, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        cache.prepare(settings(folder), vocab_size=VOCAB)
    cache.prepare(settings(folder), vocab_size=VOCAB)
    assert written[3] == written[4], "the shard that was interrupted comes first"
    assert len(set(written)) == len(written) - 1, "no other is written twice"
    assert content(store_in(folder / "cache")) == content(store_in(folder / "whole"))


class Killed(Encoder):
    """Its process does not survive the first job."""

    def write(self, job: Job, folder: Path) -> ShardRecord:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_killed_process_is_reported_with_what_to_do(tmp_path: Path) -> None:
    job = Job(0, ["text"], [b"key"], ["training"])

    def write_all() -> None:
        with ShardWriter(tmp_path, Killed("", 0, "uint16"), workers=2) as writer:
            writer.add(job)
            list(writer.finished(wait=True))

    with pytest.raises(OSError, match=r"lower task\.data\.num_workers; the same command goes on"):
        write_all()


def test_a_full_disk_ends_preparation_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_space(*_: object, **__: object) -> ShardRecord:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_writer, "write_shard", no_space)
    assert main([str(tiny_file(tmp_path)), f"task.data.cache_dir={tmp_path}/cache", "--prepare"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "the data could not be prepared: [Errno 28] No space left on device"
    )


def test_max_tokens_ends_a_source_with_the_shard_that_reaches_it(folder: Path) -> None:
    whole = cache.prepare(settings(folder, tokenizer=str(bpe(folder))), vocab_size=VOCAB)
    source = SourceConfig(path=str(folder / "corpus/*.txt"), max_tokens=2000)
    counts = []
    for workers in (1, 2):
        place = str(folder / f"limited-{workers}")
        limited = settings(folder, sources=(source,), tokenizer=str(bpe(folder)), num_workers=workers, cache_dir=place)
        facts = cache.prepare(limited, vocab_size=VOCAB).facts
        counts.append(facts["training_tokens"] + facts["validation_tokens"])
    assert counts[0] == counts[1]
    assert 2000 <= counts[0] < whole.facts["training_tokens"] / 2


def bpe(folder: Path) -> Path:
    """A tokenizer of this corpus."""
    data = cache.prepare(settings(folder, cache_dir=str(folder / "bpe")), vocab_size=VOCAB)
    return data.tokenizer_folder


# ------------------------------------------------------------------------------------------------------------ damage


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 4]))


def test_a_flipped_bit_is_named_before_its_window_is_used(folder: Path) -> None:
    data = cache.prepare(settings(folder), vocab_size=VOCAB)
    tokens = shard_folder(store_in(folder / "cache"), 2) / "training.tokens"
    flip(tokens, 40)  # token 20 of the shard
    hit = (int(data._windows["training"].sequence.starts[2]) + 20) // 16
    for opened in (data, cache.prepare(settings(folder), vocab_size=VOCAB)):  # while it is used, and before
        data.read("training", np.arange(hit - 1))
        with pytest.raises(DamagedDataError, match=rf"000002: training window {hit} .*--prepare"):
            opened.read("training", np.array([hit]))


def steps_before_damage(folder: Path, flipped_at: int) -> tuple[str, list[int]]:
    """Train while every token of the store changes after a step (0: before the first); the message, and the steps."""
    config = tiny_run(folder, "steps=8", f"task.data.cache_dir={folder / 'cache'}")
    build_task(config).open_data()
    tokens = shard_folder(store_in(folder / "cache"), 0) / "training.tokens"

    def advancing(run: Run, step: int, *others: Any) -> Progress:
        if step == flipped_at:
            flip_all(tokens)
        return advance(run, step, *others)

    if flipped_at == 0:
        flip_all(tokens)
    advance, loop.advance = loop.advance, advancing
    try:
        train_rank(config)
    except DamagedDataError as error:
        metrics = config.folder / "metrics.jsonl"
        rows = metrics.read_text().splitlines() if metrics.exists() else []
        return str(error), [json.loads(row)["step"] for row in rows]
    finally:
        loop.advance = advance
    return "", []


def flip_all(path: Path) -> None:
    with path.open("r+b") as file:
        content = bytes(byte ^ 1 for byte in file.read())
        file.seek(0)
        file.write(content)


@pytest.mark.parametrize("flipped_at", [0, 4])
def test_a_run_ends_before_it_trains_on_flipped_bits(ranks: Ranks, tmp_path: Path, flipped_at: int) -> None:
    ((message, steps),) = ranks(1, steps_before_damage, tmp_path, flipped_at)
    assert "training window" in message
    assert "--prepare" in message
    assert all(step <= flipped_at + 1 for step in steps)  # the batch of the next step had been read already


def test_a_disk_that_is_clearly_too_small_is_refused_before_anything_is_tokenized(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(preparation.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"task.data.cache_dir: .* will need about"):
        cache.prepare(settings(folder), vocab_size=VOCAB)
    assert not list((folder / "cache").glob("text-*/shards/*"))


def test_too_little_text_is_told_with_its_tokens(folder: Path) -> None:
    data: TextData = cache.prepare(settings(folder), vocab_size=VOCAB)
    tokens = data.facts["training_tokens"]
    with pytest.raises(ConfigError, match=f"there are {tokens:,} tokens, {tokens + 1:,} are needed"):
        cache.prepare(settings(folder, sequence_length=tokens), vocab_size=VOCAB)


# -------------------------------------------------------------------------------------------------------------- kills

PREPARE = """
import sys
from pathlib import Path
from tests.train.data.text.test_text import VOCAB, settings
from train.data.text import cache, preparation
if __name__ == "__main__":
    preparation.SHARD_BYTES = 20_000
    cache.prepare(settings(Path(sys.argv[1]), cache_dir=sys.argv[2], num_workers=2), vocab_size=VOCAB)
"""


def processes_of(marker: str) -> list[int]:
    """Processes whose parents or own words name this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker in (entry / "environ").read_bytes().decode(errors="replace"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("seed", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.nightly)])
def test_a_killed_preparation_leaves_no_process_and_ends_as_an_unbroken_one(tmp_path: Path, seed: int) -> None:
    write_corpus(tmp_path / "corpus", documents=1500)
    script = tmp_path / "prepare.py"
    script.write_text(PREPARE)
    marker = f"PREPARATION_{seed}_{os.getpid()}_{time.time_ns()}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4]), "MARKER": marker}

    def start(place: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, str(script), str(tmp_path), str(tmp_path / place)]
        return subprocess.Popen(words, env=environment, start_new_session=True)

    assert start("whole").wait() == 0
    shards = len(list(store_in(tmp_path / "whole").glob("shards/*")))
    process = start("cache")
    wanted = random.Random(seed).randrange(1, shards - 1)
    while len(list((tmp_path / "cache").glob("text-*/shards/*"))) < wanted:
        assert process.poll() is None, "it should not be done yet"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while processes_of(marker):
        assert time.monotonic() < deadline, "a worker outlived the preparation"
        time.sleep(0.1)
    assert start("cache").wait() == 0
    assert content(store_in(tmp_path / "cache")) == content(store_in(tmp_path / "whole"))
