"""Settings of an inspection. No torch: the command line is parsed before it is imported."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_LENGTH = 512  # tokens of a window
# what transformers calls the data types; "auto" keeps that of the file
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "as-saved": "auto"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure; the names are those of the command line."""

    device: str = "auto"
    dtype: str | None = None
    tokenizer: str | None = None
    trust_remote_code: bool = False
    sequence_length: int | None = None
    windows: int = 8
    gradients: bool = True
