"""Facts about an export as a native architecture of transformers, for the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NativeExport:
    """An architecture of transformers that computes what the training code computes.

    Attributes:
        architecture: Name for people, such as "Llama".
        class_name: Class of transformers that loads the folder, such as "LlamaForCausalLM".
        differences: Largest absolute difference of the logits from those of the training code, by data type ("fp32",
            "bf16").
        verified: Whether the differences were measured on these weights, in this export.
    """

    architecture: str
    class_name: str
    differences: Mapping[str, float]
    verified: bool
