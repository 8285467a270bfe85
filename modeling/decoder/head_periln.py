"""Language-model head: logits, or the loss in chunks of tokens without the logits ever existing as a whole.

Shapes: B batch, T tokens, D model, V vocabulary, N = B * T, n tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_periln import PeriLNConfig
from .facts_periln import loss_chunk_tokens

IGNORE_INDEX = -100  # a label that takes no part in the loss


class ChunkLoss(NamedTuple):
    """The loss of some tokens, summed, and its derivative by their logits where it was asked for."""

    nll_sum: Tensor
    z_loss_sum: Tensor
    grad_logits: Tensor | None


def chunk_loss(logits: Tensor, labels: Tensor, z_loss_coefficient: float, needs_grad: bool) -> ChunkLoss:
    """Sum -log softmax(logits)[label] + z_loss_coefficient * logsumexp(logits)^2 over valid tokens, in fp32.

    Elementwise work and reductions only, so that torch.compile makes few passes of it.

    Args:
        logits: (n, V) in the compute dtype; overwritten.
        labels: (n,); IGNORE_INDEX marks a token that takes no part.
        z_loss_coefficient: Weight of the z-loss (PaLM, arXiv 2204.02311, section 5).
        needs_grad: Also give the derivative by the logits, in their dtype.
    """
    scores = logits.float()
    valid = (labels != IGNORE_INDEX).unsqueeze(1)  # (n, 1)
    target = labels.unsqueeze(1).clamp(min=0)  # (n, 1)
    log_normalizer = scores.logsumexp(dim=1, keepdim=True)  # (n, 1)
    nll = (log_normalizer - scores.gather(1, target)).masked_fill(~valid, 0.0)
    z_loss = (z_loss_coefficient * log_normalizer.square()).masked_fill(~valid, 0.0)
    if not needs_grad:
        return ChunkLoss(nll.sum(), z_loss.sum(), None)
    grad = scores.sub_(log_normalizer).exp_()  # in place: fresh memory is what costs most here
    if z_loss_coefficient:
        grad.mul_(1 + 2 * z_loss_coefficient * log_normalizer)
    grad.scatter_add_(1, target, torch.full_like(nll, -1.0)).masked_fill_(~valid, 0.0)
    return ChunkLoss(nll.sum(), z_loss.sum(), grad.to(logits.dtype))


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients of the head in one pass over chunks of tokens, as Liger Kernel's fused linear loss.

    The [tokens, V] logits exist one chunk at a time; the gradients are computed beside the loss, when each chunk is
    at hand, and backward only scales them.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden_states: Tensor, weight: Tensor, labels: Tensor, vocab_size: int, z: float, loss_of: Callable
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_states) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        nll_sum = hidden_states.new_zeros((), dtype=torch.float32)
        z_loss_sum = nll_sum.clone()
        rows = weight[:vocab_size]  # the padding of the vocabulary takes no part
        for chunk in _chunks(labels, vocab_size):
            hidden = hidden_states[chunk]
            part = loss_of(hidden @ rows.T, labels[chunk], z, needs_hidden or needs_weight)
            nll_sum += part.nll_sum
            z_loss_sum += part.z_loss_sum
            if grad_hidden is not None:
                grad_hidden[chunk] = part.grad_logits @ rows
            if grad_weight is not None:
                _accumulate(grad_weight[:vocab_size], part.grad_logits, hidden)
        ctx.mark_non_differentiable(z_loss_sum)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return nll_sum + z_loss_sum, z_loss_sum

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scale = grad_output.view(1)  # not a scalar, which would be rounded to bf16 first: 0.2 % off, all the same way
        grads = (None if grad is None else (grad * scale).to(grad.dtype) for grad in ctx.saved_tensors)
        return (*grads, None, None, None, None)


def _chunks(labels: Tensor, vocab_size: int) -> list[slice]:
    """Cut the tokens into chunks of a power of two, whose logits keep to LOSS_CHUNK_ELEMENTS."""
    size = loss_chunk_tokens(vocab_size, labels.device.type)
    return [slice(start, start + size) for start in range(0, len(labels), size)]


def _accumulate(grad_weight: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
    """Add grad_logits^T hidden to an fp32 sum."""
    if grad_logits.dtype == hidden.dtype == grad_weight.dtype:
        grad_weight.addmm_(grad_logits.T, hidden)
    else:
        grad_weight.add_(grad_logits.T @ hidden)


class HeadLoss(NamedTuple):
    """The objective, summed over tokens in fp32 with its z-loss, and the z-loss's share."""

    loss_sum: Tensor
    z_loss_sum: Tensor


class LanguageModelHead(nn.Linear):
    """Hidden states to logits, or straight to the loss.

    The loss lives in this module's forward because ZeRO-3 gathers `weight` only around it.
    """

    def __init__(self, config: PeriLNConfig) -> None:
        super().__init__(config.hidden_size, config.padded_vocab_size, bias=False)
        self.vocab_size = config.vocab_size
        self.z_loss_coefficient = config.z_loss_coefficient
        self.chunk_loss = chunk_loss  # compile_blocks puts a compiled one here

    def forward(self, hidden_states: Tensor, labels: Tensor | None = None) -> Tensor | HeadLoss:  # type: ignore[override]
        """Return the logits (B, T, V) of (B, T, D); or, given the label (B, T) of each token, the summed loss."""
        if labels is None:
            return F.linear(hidden_states, self.weight[: self.vocab_size])
        hidden_states, labels = hidden_states.flatten(0, -2), labels.flatten()  # (N, D), (N,)
        weight = self.weight
        if not torch.is_grad_enabled():  # an autograd.Function cannot see it: spare the gradients
            hidden_states, weight = hidden_states.detach(), weight.detach()
        sums = _ChunkedLoss.apply(
            hidden_states, weight, labels, self.vocab_size, self.z_loss_coefficient, self.chunk_loss
        )
        return HeadLoss(*sums)
