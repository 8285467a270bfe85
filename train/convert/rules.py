"""The mapping between the tensors of our decoder and those of an architecture, both ways, from its record."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.facts_placements_periln import PLACEMENTS
from train.config.facts.native import Architecture
from train.convert.steps import Interleaved, MinusOne, NormedRows, Read, Step, Times, Vocabulary, ZeroBias

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
COMPUTING = (NormedRows, Times, MinusOne)  # steps that round; the others rename, cut or reorder


@dataclass(frozen=True)
class Rule:
    """A tensor of the architecture, and ours that it is made of.

    Attributes:
        native: Its name in the architecture.
        ours: Names of ours, joined by rows; none for a bias that we lack.
        steps: Changes on the way, in order.
    """

    native: str
    ours: tuple[str, ...]
    steps: tuple[Step, ...] = ()

    def to_native(self, read: Read) -> Tensor:
        """Return the architecture's tensor from ours, which `read` gives by name."""
        parts = [read(name) for name in self.ours] or [torch.empty(0)]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        for step in self.steps:
            tensor = step.to_native(tensor, read)
        return tensor.contiguous()

    def to_ours(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return our tensors by name from the architecture's.

        Raises:
            ValueError: It means something that our decoder lacks.
        """
        for step in reversed(self.steps):
            tensor = step.to_ours(tensor)
        return dict(zip(self.ours, tensor.chunk(len(self.ours)), strict=True)) if self.ours else {}

    @property
    def is_computed(self) -> bool:
        """Whether it rounds."""
        return any(isinstance(step, COMPUTING) for step in self.steps)


def rules(architecture: Architecture, shape: DecoderShape) -> list[Rule]:
    """Return a rule for every tensor of the architecture, for a decoder that it fits."""
    return [*_vocabulary(architecture, shape), *_layers(architecture, shape)]


def _vocabulary(architecture: Architecture, shape: DecoderShape) -> Iterator[Rule]:
    rows = Vocabulary(shape.vocab_size, shape.padded_vocab_size)
    norm = NormedRows("model.embedding_norm.weight", shape.norm_kind, shape.norm_eps)
    scaled = Times(1 / math.sqrt(shape.hidden_size))
    steps = (rows, *[norm] * shape.embedding_norm, *[scaled] * architecture.scaled_embedding)
    yield Rule(EMBEDDING, (EMBEDDING,), steps)
    if not architecture.is_tied(shape):
        yield Rule(HEAD, (EMBEDDING if shape.tie_word_embeddings else HEAD,), (rows,))
    yield from _norm(architecture, "model.norm", "model.norm.weight", shape.hidden_size)


def _layers(architecture: Architecture, shape: DecoderShape) -> Iterator[Rule]:
    for index, name in enumerate(shape.layer_norm_placements):
        layer = f"model.layers.{index}"
        factor = PLACEMENTS[name].input_factor.value(index + 1, shape.num_hidden_layers)
        added = 1.0 if architecture.residual_multiplier else shape.residual_factor
        on_matrix, on_norm = (1.0, added) if architecture.output_norms else (added, 1.0)
        for number, branch in enumerate(("attention", "mlp")):
            ours = f"{layer}.{branch}"
            if architecture.input_norms:
                norm = f"{layer}.{architecture.input_norms[number]}"
                yield from _norm(architecture, norm, f"{ours}.input_norm.weight", shape.hidden_size, factor)
            if architecture.output_norms:
                norm = f"{layer}.{architecture.output_norms[number]}"
                yield from _norm(architecture, norm, f"{ours}.output_norm.weight", shape.hidden_size, on_norm)
        yield from _attention(architecture, shape, layer, on_matrix)
        yield from _mlp(architecture, layer, on_matrix)


def _norm(architecture: Architecture, native: str, ours: str, size: int, factor: float = 1.0) -> Iterator[Rule]:
    yield Rule(f"{native}.weight", (ours,), (*_times(factor), *[MinusOne()] * architecture.scales_from_zero))
    if architecture.norm_biases:
        yield Rule(f"{native}.bias", (), (ZeroBias(size),))


def _attention(architecture: Architecture, shape: DecoderShape, layer: str, factor: float) -> Iterator[Rule]:
    branch = f"{layer}.attention.branch"
    heads = {"q": shape.num_attention_heads, "k": shape.num_key_value_heads}
    for name in ("q", "k", "v"):
        turned = architecture.neighbors_rotate and name in heads
        steps = (Interleaved(heads[name]),) if turned else ()
        yield Rule(f"{layer}.self_attn.{name}_proj.weight", (f"{branch}.{name}_proj.weight",), steps)
    yield Rule(f"{layer}.self_attn.o_proj.weight", (f"{branch}.o_proj.weight",), _times(factor))
    if architecture.qk_norm != "none":
        for name, native in zip(heads, architecture.query_key_norms, strict=True):
            copies = [f".{head}" for head in range(heads[name])] if architecture.norms_by_head else [""]
            for copy in copies:
                steps = (MinusOne(),) if architecture.scales_from_zero else ()
                yield Rule(f"{layer}.{native}{copy}.weight", (f"{branch}.{name}_norm.weight",), steps)


def _mlp(architecture: Architecture, layer: str, factor: float) -> Iterator[Rule]:
    ours = [f"{layer}.mlp.branch.{name}_proj.weight" for name in ("gate", "up")]
    if architecture.joined_mlp:
        yield Rule(f"{layer}.mlp.gate_up_proj.weight", tuple(ours))
    else:
        for name, our in zip(("gate", "up"), ours, strict=True):
            yield Rule(f"{layer}.mlp.{name}_proj.weight", (our,))
    yield Rule(f"{layer}.mlp.down_proj.weight", (f"{layer}.mlp.branch.down_proj.weight",), _times(factor))


def _times(factor: float) -> tuple[Step, ...]:
    return () if factor == 1 else (Times(factor),)
