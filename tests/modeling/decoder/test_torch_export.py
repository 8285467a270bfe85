"""torch.export: one program for any batch and length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.export import Dim

from .tiny_decoder import tiny_decoder, tiny_tokens

pytestmark = pytest.mark.slow  # 10 s and more each


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"norm_placement": ("post", "pre", "peri"), "qk_norm": "head", "tie_word_embeddings": True},
        {"norm_placement": "keel", "gpas": True, "attention_gate": "element"},
    ],
    ids=str,
)
def test_an_exported_program_computes_the_same(overrides: dict[str, Any]) -> None:
    model = tiny_decoder(**overrides)
    shapes: dict[str, Any] = {"input_ids": {0: Dim("batch", max=16), 1: Dim("tokens", min=2, max=64)}}
    inputs = {"input_ids": tiny_tokens(), "use_cache": False}
    with torch.no_grad():
        program = torch.export.export(model, (), inputs, dynamic_shapes=shapes | {"use_cache": None}, strict=False)
        for batch, length in ((2, 17), (1, 5), (7, 40)):
            tokens = tiny_tokens(batch, length)
            found = program.module()(input_ids=tokens, use_cache=False).logits
            torch.testing.assert_close(found, model(tokens).logits, atol=1e-5, rtol=0)  # measured: 0
