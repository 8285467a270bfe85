"""The speed of preparing text beside its floor, the tokenizer alone, on the same documents and threads."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from train.config.tasks.language_model import EMBEDDED_CORPUS, SourceConfig, TextDataConfig

PREPARATION_ARM = "preparation"
VOCAB_SIZE = 4096
FLOOR, READ, PREPARED = "tokenizer alone", "reading alone", "prepared"


def measure_preparation(folder: Path) -> dict[str, float]:
    """Return MB of text per second of CPU time, summed over threads: the tokenizer alone, reading alone, the whole."""
    from train.data.text.corpus import open_readers, splitter, training_sample
    from train.data.text.documents.reader import DocumentReader
    from train.data.text.preparation import build_store
    from train.data.text.tokenizer import DOCUMENTS_AT_A_TIME, load_tokenizer, train_byte_bpe

    source = SourceConfig(path=EMBEDDED_CORPUS)
    config = TextDataConfig(sources=(source,), tokenizer="byte-bpe", sequence_length=256, num_workers=1)
    readers = open_readers(config)
    texts, _ = training_sample(readers, splitter(config, readers))
    tokenizer = train_byte_bpe(texts, vocab_size=VOCAB_SIZE)
    tokenizer.save_pretrained(folder / "bpe")
    load_tokenizer(str(folder / "bpe"))  # imports what a start imports once

    began = time.process_time()
    documents = [document.text for document in DocumentReader(source, path="source")]
    read = time.process_time() - began
    size = sum(len(text.encode()) for text in documents) / 1e6

    began = time.process_time()
    for start in range(0, len(documents), DOCUMENTS_AT_A_TIME):
        batch = documents[start : start + DOCUMENTS_AT_A_TIME]
        tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)
    alone = time.process_time() - began

    given = TextDataConfig(
        sources=(source,), tokenizer=str(folder / "bpe"), sequence_length=256, num_workers=1, cache_dir=str(folder)
    )
    began = time.process_time()
    build_store(given, folder / f"store-{time.time_ns()}", vocab_size=VOCAB_SIZE)
    return {FLOOR: size / alone, READ: size / read, PREPARED: size / (time.process_time() - began)}


def preparation_table(rounds: list[dict[str, float]]) -> str:
    """Return the speeds as Markdown: medians over the rounds, and the ratio to the floor within a round."""
    lines = ["| text | MB per second of CPU time | of the tokenizer alone |", "|---|---|---|"]
    for name in (FLOOR, READ, PREPARED):
        speed = statistics.median(row[name] for row in rounds)
        ratio = statistics.median(row[name] / row[FLOOR] for row in rounds)
        lines.append(f"| {name} | {speed:.2f} | {ratio:.3f} |")
    return "\n".join(lines)
