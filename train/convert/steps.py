"""Steps by which a tensor of our decoder becomes one of an architecture of transformers, and back.

Shapes: V vocabulary, P vocabulary with padding, D model, H heads, K head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Read = Callable[[str], Tensor]  # returns a tensor of our decoder by its name
_ROWS_AT_A_TIME = 8192


class Step(Protocol):
    """One invertible change of a tensor."""

    def to_native(self, tensor: Tensor, read: Read) -> Tensor:
        """Return the architecture's tensor; `read` gives others of ours."""
        ...

    def to_ours(self, tensor: Tensor) -> Tensor:
        """Return our tensor.

        Raises:
            ValueError: The tensor means something that our decoder lacks.
        """
        ...


@dataclass(frozen=True)
class Vocabulary:
    """Remove the rows of the padding: (P, D) to (V, D); back, they are zeros, as they never enter loss or logits."""

    vocab_size: int
    padded_vocab_size: int

    def to_native(self, tensor: Tensor, read: Read) -> Tensor:
        """Cut off the padding."""
        return tensor[: self.vocab_size]

    def to_ours(self, tensor: Tensor) -> Tensor:
        """Append rows of zeros."""
        return torch.cat((tensor, tensor.new_zeros(self.padded_vocab_size - self.vocab_size, tensor.shape[1])))


@dataclass(frozen=True)
class NormedRows:
    """Apply the norm after the embedding to the embedding itself: a look-up commutes with a norm of each row.

    Computed in fp64. There is no way back, and none is needed: the architecture lacks that norm.
    """

    scale: str  # name of the norm's scale
    norm_kind: str
    eps: float

    def to_native(self, tensor: Tensor, read: Read) -> Tensor:
        """Return (V, D) with every row normalized and scaled."""
        scale = read(self.scale).double()
        return torch.cat(
            [self._normed(rows.double(), scale).to(tensor.dtype) for rows in tensor.split(_ROWS_AT_A_TIME)]
        )

    def _normed(self, rows: Tensor, scale: Tensor) -> Tensor:
        if self.norm_kind == "layernorm":
            return torch.nn.functional.layer_norm(rows, scale.shape, scale, None, self.eps)
        return torch.nn.functional.rms_norm(rows, scale.shape, scale, self.eps)

    def to_ours(self, tensor: Tensor) -> Tensor:
        """Return the tensor, for a decoder whose embedding norm is off."""
        raise AssertionError("a folder is read with embedding_norm false")


@dataclass(frozen=True)
class Times:
    """Multiply by a constant."""

    factor: float

    def to_native(self, tensor: Tensor, read: Read) -> Tensor:
        """Multiply."""
        return (tensor.double() * self.factor).to(tensor.dtype)

    def to_ours(self, tensor: Tensor) -> Tensor:
        """Divide."""
        return (tensor.double() / self.factor).to(tensor.dtype)


@dataclass(frozen=True)
class MinusOne:
    """State a scale as its distance from one."""

    def to_native(self, tensor: Tensor, read: Read) -> Tensor:
        """Subtract one."""
        return tensor - 1

    def to_ours(self, tensor: Tensor) -> Tensor:
        """Add one."""
        return (tensor.double() + 1).float()  # in bf16, 1 + weight would lose the weight's low bits


@dataclass(frozen=True)
class Interleaved:
    """Order the rows of each head so that rotary positions turn neighbors: 0, K/2, 1, K/2 + 1, ...; (H K, D) both."""

    heads: int

    def to_native(self, tensor: Tensor, read: Read) -> Tensor:
        """Interleave the two halves of each head."""
        return tensor.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)

    def to_ours(self, tensor: Tensor) -> Tensor:
        """Gather the even rows of each head, then the odd ones."""
        return tensor.unflatten(0, (self.heads, -1, 2)).transpose(1, 2).reshape(tensor.shape)


@dataclass(frozen=True)
class ZeroBias:
    """A bias (D,) that our decoder lacks."""

    size: int

    def to_native(self, tensor: Tensor, read: Read) -> Tensor:
        """Return zeros, of the type of an empty tensor."""
        return tensor.new_zeros(self.size)

    def to_ours(self, tensor: Tensor) -> Tensor:
        """Return an empty tensor.

        Raises:
            ValueError: The bias is not zero.
        """
        if torch.count_nonzero(tensor):
            raise ValueError("is a bias that is not zero, and this decoder has none")
        return tensor.new_empty(0)
