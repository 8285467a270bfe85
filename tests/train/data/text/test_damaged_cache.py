"""A damaged or half-written cache is rebuilt from what is intact, with one line that says so, or is named."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.faults.damaged import Harm, a_list, cut, empty, flip, harmed, nested, no_json, replaced
from tests.tiny import write_corpus
from train.config.errors import ConfigError
from train.config.facts.sealed import read_sealed, sealed
from train.data.text import cache, preparation, shard_writer
from train.data.text.shards import ShardRecord
from train.data.text.store import TextData

from .test_store import content, store_in
from .test_text import VOCAB, settings


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and its store of many shards."""
    folder = tmp_path_factory.mktemp("prepared")
    write_corpus(folder / "corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "SHARD_BYTES", 6000)
        cache.prepare(settings(folder), vocab_size=VOCAB)
    return folder


@pytest.fixture
def store(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the store."""
    monkeypatch.setattr(preparation, "SHARD_BYTES", 6000)
    shutil.copytree(prepared / "cache", tmp_path / "cache")
    return store_in(tmp_path / "cache")


def reopened(prepared: Path, store: Path) -> TextData:
    return cache.prepare(settings(prepared, cache_dir=str(store.parent)), vocab_size=VOCAB)


JSON_HARMS: tuple[Harm | None, ...] = (None, cut, empty, no_json, a_list, nested, flip)
BINARY_HARMS: tuple[Harm | None, ...] = (None, cut, empty)
DAMAGES: list[tuple[str, Harm | None]] = [
    *(("store.json", harm) for harm in JSON_HARMS if harm is not None),
    ("store.json", replaced(b'"shards": ', b'"shards": "x", "was": ')),
    *(("shards/000001/shard.json", harm) for harm in JSON_HARMS),
    *(("shards/000001/training.tokens", harm) for harm in BINARY_HARMS),
    *(("shards/000001/validation.bytes", harm) for harm in BINARY_HARMS),
    *(("shards/000001/training.ends", harm) for harm in BINARY_HARMS),
    ("shards/000001", None),
    ("shards", None),
    *(("tokenizer/tokenizer.json", harm) for harm in JSON_HARMS),
    ("tokenizer", None),
    ("tokenizer_files.json", cut),
    *(("windows-16/facts.json", harm) for harm in JSON_HARMS),
    *(("windows-16/training.hashes.npy", harm) for harm in (*BINARY_HARMS, no_json, flip)),
    *(("windows-16/validation.bytes.npy", harm) for harm in (*BINARY_HARMS, no_json, flip)),
]


@pytest.mark.parametrize(
    ("name", "harm"), DAMAGES, ids=[f"{name} {getattr(harm, '__name__', 'gone')}" for name, harm in DAMAGES]
)
def test_what_is_damaged_is_made_again(
    prepared: Path, store: Path, caplog: pytest.LogCaptureFixture, name: str, harm: Harm | None
) -> None:
    whole = content(store)
    harmed(store / name, harm)
    with caplog.at_level(logging.WARNING):
        data = reopened(prepared, store)
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(store) in line
    assert "made again" in line or "prepared again" in line
    assert content(store) == whole
    for split in ("training", "validation"):
        data.read(split, np.arange(data.facts[f"{split}_windows"]))


def test_only_damaged_shards_are_tokenized_again(prepared: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose size is right: what is kept is compared with its checksums."""
    written: list[str] = []
    write = shard_writer.write_shard

    def noting(place: Path, *arguments: object, **named: object) -> ShardRecord:
        written.append(place.name)
        return write(place, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_writer, "write_shard", noting)
    whole = content(store)
    harmed(store / "shards/000001/training.tokens", cut)
    harmed(store / "shards/000003/training.tokens", flip)
    reopened(prepared, store)
    assert written == ["000001", "000003"]
    assert content(store) == whole


def test_an_index_is_never_made_of_damaged_tokens(
    prepared: Path, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its hashes would hide the damage for good."""
    whole = content(store)
    harmed(store / "shards/000001/training.tokens", flip)
    harmed(store / "windows-16/facts.json", cut)
    fingerprint = reopened(prepared, store).fingerprint
    assert content(store) == whole
    assert fingerprint == read_sealed(store / "windows-16/facts.json")["fingerprint"]
    assert "000001/training.tokens is not what was written" in caplog.text


LEFTOVERS: dict[str, Callable[[Path], object]] = {
    "index without facts": lambda store: (store / "windows-16/facts.json").unlink(),
    "empty index": lambda store: (shutil.rmtree(store / "windows-16"), (store / "windows-16").mkdir()),
    "half an index": lambda store: shutil.move(store / "windows-16", store / "windows-16.partial"),
    "killed before the end": lambda store: (
        (store / "store.json").rename(store / "store.json.partial"),
        (store / "shards/000002").rename(store / "shards/000002.partial"),
        (store / "shards/000099.partial").mkdir(),
        (store / "tokenizer.partial").mkdir(),
    ),
}


@pytest.mark.parametrize("name", LEFTOVERS)
def test_leftovers_of_a_kill_are_no_obstacle(prepared: Path, store: Path, name: str) -> None:
    whole = content(store)
    LEFTOVERS[name](store)
    reopened(prepared, store)
    assert content(store) == whole


def test_a_store_without_checksums_is_accepted(
    prepared: Path, store: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an older version wrote it; what differs from the tokens is named all the same."""
    (store / "tokenizer_files.json").unlink()
    for path in [store / "store.json", store / "windows-16/facts.json", *store.glob("shards/*/shard.json")]:
        facts = read_sealed(path)
        facts.pop("proof", None)
        path.write_text(json.dumps(facts))
    monkeypatch.setattr(cache, "build_store", lambda *_, **__: pytest.fail("tokenized again"))
    reopened(prepared, store)
    assert not caplog.records


def test_other_tokens_are_named_by_their_index(prepared: Path, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A record that is whole, of a shard with other tokens."""
    path = store / "windows-16/facts.json"
    facts = read_sealed(path)
    facts["proof"]["tokens"] = "0" * 32
    path.write_text(json.dumps(sealed(facts)))
    reopened(prepared, store)
    assert "it was made from other tokens" in caplog.text


def test_a_large_corpus_is_not_prepared_again_unasked(
    prepared: Path, store: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmed(store / "store.json", cut)
    monkeypatch.setattr(cache, "PREPARE_FIRST_BYTES", 1000)
    with pytest.raises(ConfigError, match="--prepare"):
        reopened(prepared, store)
    assert "store.json is not JSON" in caplog.text
