"""Text becomes windows: every token predicted once, nothing on both sides of the split, nothing done twice."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import write_corpus
from train.config.errors import ConfigError
from train.config.tasks.language_model import SourceConfig, TextDataConfig
from train.data.text import cache
from train.data.text.documents.files import standard_library
from train.data.text.store import TextData
from train.data.text.tokenizer import encode, end_of_text_id, load_tokenizer, token_byte_counts

VOCAB = 300


def settings(folder: Path, path: str = "corpus/*.txt", **changes: object) -> TextDataConfig:
    source = SourceConfig(path=str(folder / path))
    given: dict[str, object] = {
        "sources": (source,),
        "tokenizer": "byte-bpe",
        "sequence_length": 16,
        "validation_fraction": 0.2,
        "cache_dir": str(folder / "cache"),
        "num_workers": 1,
    }
    return TextDataConfig(**(given | changes))  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus")
    return tmp_path


def windows(data: TextData, split: str) -> np.ndarray:
    count = len(data._windows[split])  # type: ignore[index]
    return data.read(split, np.arange(count))  # type: ignore[arg-type]


@pytest.mark.parametrize("words", ["plain", "naïve Größe", "層 🙂🙂 層", "a🙂b", " \n\t "])
def test_token_bytes_add_up_to_the_documents_bytes(folder: Path, words: str) -> None:
    data = cache.prepare(settings(folder), vocab_size=VOCAB)
    tokenizer = load_tokenizer(str(data.tokenizer_folder)).backend_tokenizer
    encoded = encode([words], tokenizer, counts_bytes=True)
    assert len(encoded["ids"][0]) == len(encoded["bytes"][0])
    assert encoded["bytes"][0].sum() == len(words.encode())
    assert (encoded["bytes"][0] >= 0).all()


def test_a_character_split_over_tokens_counts_once() -> None:
    assert token_byte_counts("a🙂b", np.array([1, 2, 2, 2, 2, 3])).tolist() == [1, 4, 0, 0, 0, 1]


def test_validation_bytes_are_those_of_the_text(folder: Path) -> None:
    data = cache.prepare(settings(folder), vocab_size=VOCAB)
    tokenizer = load_tokenizer(str(data.tokenizer_folder))
    tokens = windows(data, "validation")
    for window, size in zip(tokens, data.target_bytes(np.arange(len(tokens))), strict=True):
        pieces = tokenizer.backend_tokenizer.decode(window[1:].tolist(), skip_special_tokens=True)
        if "\ufffd" not in pieces:  # no character cut by the window
            assert size == len(pieces.encode())


def documents_of(data: TextData, split: str) -> set[str]:
    tokenizer = load_tokenizer(str(data.tokenizer_folder))
    stream = np.concatenate([windows(data, split)[0][:1], windows(data, split)[:, 1:].reshape(-1)])
    whole = tokenizer.decode(stream.tolist())
    assert isinstance(whole, str)
    return set(whole.split("<|endoftext|>")[1:-1])


def test_the_split_never_overlaps_though_documents_repeat(folder: Path) -> None:
    for number in range(20):  # every document of the first twenty a second time, under another name
        (folder / f"corpus/again-{number}.txt").write_bytes((folder / f"corpus/{number:03d}.txt").read_bytes())
    data = cache.prepare(settings(folder), vocab_size=VOCAB)
    training, validation = documents_of(data, "training"), documents_of(data, "validation")
    assert training
    assert validation
    assert not training & validation


def test_documents_of_the_validation_sources_are_dropped_from_training(folder: Path) -> None:
    held_out = (SourceConfig(path=str(folder / "corpus/00*.txt")),)
    data = cache.prepare(settings(folder, validation_fraction=None, validation_sources=held_out), vocab_size=VOCAB)
    assert data.facts["training_documents_dropped_as_in_validation"] == 10
    assert not documents_of(data, "training") & documents_of(data, "validation")


def test_the_number_of_workers_changes_nothing(folder: Path) -> None:
    one = cache.prepare(settings(folder), vocab_size=VOCAB)
    two = cache.prepare(settings(folder, num_workers=2, cache_dir=str(folder / "other")), vocab_size=VOCAB)
    assert one.fingerprint == two.fingerprint
    assert windows(one, "training").tolist() == windows(two, "training").tolist()


def test_the_cache_is_used_until_a_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.prepare(settings(folder), vocab_size=VOCAB)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "build_store", lambda *_, **__: pytest.fail("tokenized again"))
        again = cache.prepare(settings(folder, seed=3, validation_windows=2), vocab_size=VOCAB)
        longer = cache.prepare(settings(folder, sequence_length=32), vocab_size=VOCAB)
    assert again.fingerprint == first.fingerprint
    assert again.num_validation_samples == 2
    assert longer.num_training_samples == (longer.facts["training_tokens"] - 1) // 32
    changed = folder / "corpus/030.txt"
    changed.write_text(changed.read_text().replace("the", "tho", 1))
    assert cache.prepare(settings(folder), vocab_size=VOCAB).fingerprint != first.fingerprint


def _prepare_in_child(folder: str) -> str:
    return cache.prepare(settings(Path(folder)), vocab_size=VOCAB).fingerprint


def test_two_processes_preparing_at_once_agree(folder: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert len(set(pool.map(_prepare_in_child, [str(folder)] * 2))) == 1
    assert len(list((folder / "cache").glob("text-*/store.json"))) == 1


def test_documents_shorter_than_a_window_are_packed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n--\n".join(f"{number:x}" for number in range(600)))
    source = SourceConfig(path=str(tmp_path / "a.txt"), document_separator="--")
    facts = cache.prepare(settings(tmp_path, sources=(source,)), vocab_size=VOCAB).facts
    assert facts["training_documents"] + facts["validation_documents"] == 600
    assert facts["training_windows"] == (facts["training_tokens"] - 1) // 16 > 0


def test_the_embedded_corpus_is_on_every_machine() -> None:
    files = standard_library()
    assert sum(file.stat().st_size for file in files) > 5_000_000
    assert not any("test" in file.parts for file in files)


def test_a_large_corpus_is_to_be_prepared_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PREPARE_FIRST_BYTES", 1000)
    with pytest.raises(ConfigError, match="--prepare"):
        cache.prepare(settings(folder), vocab_size=VOCAB)
    assert cache.prepare(settings(folder), vocab_size=VOCAB, may_tokenize=True).num_training_samples > 0


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"path": "nothing/*.txt"}, ["sources[0].path", "matches no files"]),
        ({"path": "empty.txt"}, ["sources[0].path", "empty"]),
        ({"path": "rows.jsonl"}, ["text_column", "'text'", "body"]),
        ({"tokenizer": "./nowhere"}, ["task.data.tokenizer", "nowhere", "byte-bpe"]),
        ({"validation_fraction": 1e-9}, ["validation", "validation_fraction"]),
        ({"sequence_length": 100_000}, ["not enough text", "training", "100,001 are needed"]),
    ],
)
def test_wrong_data_is_named(folder: Path, changes: dict[str, object], fragments: list[str]) -> None:
    (folder / "empty.txt").write_text("")
    (folder / "rows.jsonl").write_text('{"body": "text"}\n')
    with pytest.raises(ConfigError) as error:
        cache.prepare(settings(folder, **changes), vocab_size=VOCAB)  # type: ignore[arg-type]
    for fragment in fragments:
        assert fragment in str(error.value)
    assert not list((folder / "cache").glob("text-*/windows-*"))


@pytest.mark.parametrize("name", ["gpt2", "olmo/allenai_dolma2.json"])
def test_real_tokenizers_load(name: str) -> None:
    path = Path(__file__).parents[5] / "shared/data/tokenizers" / name
    if not path.exists():
        pytest.skip("the optional data folder with tokenizers is not here")
    tokenizer = load_tokenizer(str(path))
    end = end_of_text_id(tokenizer, name)
    assert tokenizer.convert_ids_to_tokens(end) == "<|endoftext|>"
    ids = tokenizer("Around, not only before.", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "Around, not only before."
