"""Preparation of a corpus: documents are read in order and tokenized, shard by shard, by a process per core.

    sources -> documents -> training | validation, by content -> shards of tokens

One process reads; what a shard holds follows from the documents alone. So any number of processes writes the same
store, and a preparation that was killed goes on with the first shard that is missing.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train.config.errors import ConfigError
from train.config.facts.sealed import DamagedFileError, sealed
from train.config.tasks.language_model import TextDataConfig
from train.data.split import SPLITS
from train.data.text import corpus
from train.data.text.corpus import NamedReader, Splitter
from train.data.text.documents import files
from train.data.text.progress import Progress
from train.data.text.shard_writer import Encoder, Job, ShardWriter
from train.data.text.shards import ShardRecord, shard_folder
from train.data.text.tokenizer import (
    BYTE_BPE,
    TOKENIZER,
    end_of_text_id,
    load,
    publish_tokenizer,
    published_sample,
    train_byte_bpe,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

SHARD_BYTES = 32_000_000  # of text; each process holds a shard or two
IN_PROCESS_BYTES = 64_000_000  # below this size, starting processes costs more than it saves
_BYTES_PER_TOKEN = 4  # of English text and tokenizers of some 50,000 tokens; for an estimate of the disk needed
_COMPRESSED = 3  # how much larger text is than its archive, for the same


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
        tokenizer=str(folder / TOKENIZER / "tokenizer.json"),
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
    _discard_leftovers(folder)
    (folder / "store.json.partial").write_text(json.dumps(sealed(facts), indent=1))
    (folder / "store.json.partial").rename(folder / "store.json")


# --------------------------------------------------------------------------------------------------------- tokenizer


def _tokenizer(
    config: TextDataConfig,
    folder: Path,
    readers: Sequence[NamedReader],
    split_of: Splitter,
    vocab_size: int,
) -> tuple[PreTrainedTokenizerFast, dict[str, Any]]:
    """Return the tokenizer, from the store if it is there intact, and what it was trained on.

    With another one, the shards are written again.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        sample = published_sample(folder)
        return PreTrainedTokenizerFast.from_pretrained(folder / TOKENIZER), sample
    except DamagedFileError:
        shutil.rmtree(folder / "shards", ignore_errors=True)
    sample: dict[str, Any] = {}
    if config.tokenizer == BYTE_BPE:
        texts, sample = corpus.training_sample(readers, split_of)
        tokenizer = train_byte_bpe(texts, vocab_size=vocab_size)
    else:
        tokenizer = load(config.tokenizer, vocab_size=vocab_size)
        end_of_text_id(tokenizer, config.tokenizer)  # may set it
    publish_tokenizer(folder, tokenizer, sample)
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


def _write_shards(
    config: TextDataConfig,
    folder: Path,
    readers: Sequence[NamedReader],
    split_of: Splitter,
    encoder: Encoder,
) -> list[ShardRecord]:
    """Write the missing shards; return the records of all, in order."""
    records: list[ShardRecord] = []
    progress = Progress(_size_of_text(readers))
    with ShardWriter(folder, encoder, _number_of_workers(config)) as shards:
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


def _written(jobs: Iterator[Job], shards: ShardWriter) -> Iterator[tuple[Job, ShardRecord]]:
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


def _discard_from(folder: Path, number: int) -> None:
    """Remove shards of an earlier, longer state of the sources."""
    while (place := shard_folder(folder, number)).exists():
        shutil.rmtree(place)
        number += 1


def _discard_leftovers(folder: Path) -> None:
    """Remove what a killed preparation began."""
    for path in [*folder.glob("*.partial"), *(folder / "shards").glob("*.partial")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


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
