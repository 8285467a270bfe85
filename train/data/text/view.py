"""A view of prepared text: its amounts, and the windows of a step, decoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from train.config.tasks.language_model import LanguageModelConfig
from train.data import summary
from train.data.order import combined_hash, content_hashes
from train.data.text import cache
from train.data.text.tokenizer import load
from train.data.text.validation import facts_of, labelled, without_labels

_WINDOWS = 4  # that are decoded
_CHARACTERS = 2000  # of a window that are shown


class TextView:
    """The text of a language model, prepared if it is not cached.

    Raises:
        ConfigError: Sources or tokenizer are invalid, or the corpus must be prepared first.
    """

    def __init__(self, config: LanguageModelConfig):
        size = config.model.vocab_size
        self._config = config.data
        self._data = cache.prepare(without_labels(config.data), vocab_size=size)
        self._validation = labelled(config.data, self._data, vocab_size=size)
        with TemporaryDirectory() as folder:
            self._data.save_tokenizer(Path(folder))
            self._tokenizer = load(folder, vocab_size=size)
        self.num_training_samples = self._data.num_training_samples

    def overview(self) -> Iterator[str]:
        """Yield splits, sources, tokenizer, fingerprint and place of the data."""
        yield from summary.lines(facts_of(self._data, self._validation))
        end = self._tokenizer.convert_ids_to_tokens(self._data.eos_token_id)
        yield f"tokenizer: {self._config.tokenizer}, {len(self._tokenizer):,} tokens; {end} ends a document"
        yield f"windows of {self._config.sequence_length} tokens, fingerprint {self._data.fingerprint}"
        yield f"prepared in {Path(self._config.cache_dir).expanduser().resolve()}"

    def samples(self, ids: np.ndarray) -> Iterator[str]:
        """Yield the hash of the samples, as in metrics.jsonl, their ids, and the text of the first windows."""
        windows = self._data.read("training", ids)
        yield f"samples_hash {combined_hash(content_hashes({'tokens': torch.from_numpy(windows)}))}"
        yield f"windows {', '.join(map(str, ids))}"
        for index, window in zip(ids[:_WINDOWS], windows, strict=False):
            start = int(index) * self._config.sequence_length
            yield ""
            yield f"window {index}: tokens {start:,} to {start + len(window) - 1:,} of the training text"
            yield from self._decoded(window)

    def _decoded(self, window: np.ndarray) -> Iterator[str]:
        """Yield the text of a window, with a line where a document ends."""
        end = self._data.eos_token_id
        stops = np.flatnonzero(window == end)
        left = _CHARACTERS
        for start, stop in zip([0, *(stops + 1)], [*stops, len(window)], strict=True):
            if start:
                yield f"  --- {self._tokenizer.convert_ids_to_tokens(end)}"
            text = str(self._tokenizer.decode(window[start:stop].tolist()))
            yield from (f"  | {line}" for line in text[:left].splitlines())
            left -= len(text)
            if left < 0:
                yield "  ..."
                return
