"""Language-model head: logits, or the loss in chunks of tokens, without ever materializing all logits.

Shapes: B batch, T tokens, D model, V vocabulary, P vocabulary with padding, N = B * T, n tokens of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_periln import PeriLNConfig
from .facts_periln import loss_chunk_tokens

IGNORE_INDEX = -100  # label of tokens that the loss ignores


class ChunkLoss(NamedTuple):
    """The summed loss of some tokens and, if requested, its derivative with respect to their logits."""

    nll_sum: Tensor
    z_loss_sum: Tensor
    grad_logits: Tensor | None


def chunk_loss(logits: Tensor, labels: Tensor, z_loss_coefficient: float, needs_grad: bool) -> ChunkLoss:
    """Sum -log softmax(logits)[label] + z_loss_coefficient * logsumexp(logits)^2 over valid tokens, in fp32.

    Uses only elementwise operations and reductions, so that torch.compile fuses them into a few passes.

    Args:
        logits: (n, P) in the compute dtype, -inf in the columns of the padding; overwritten.
        labels: (n,); tokens with IGNORE_INDEX are ignored.
        z_loss_coefficient: Weight of the z-loss (PaLM, arXiv 2204.02311, section 5).
        needs_grad: Whether to return the derivative with respect to the logits too, in their dtype.
    """
    scores = logits.float()
    valid = (labels != IGNORE_INDEX).unsqueeze(1)  # (n, 1)
    target = labels.unsqueeze(1).clamp(min=0)  # (n, 1)
    log_normalizer = scores.logsumexp(dim=1, keepdim=True)  # (n, 1)
    nll = (log_normalizer - scores.gather(1, target)).masked_fill(~valid, 0.0)
    z_loss = (z_loss_coefficient * log_normalizer.square()).masked_fill(~valid, 0.0)
    if not needs_grad:
        return ChunkLoss(nll.sum(), z_loss.sum(), None)
    grad = scores.sub_(log_normalizer).exp_()  # in place: allocating memory is the main cost here
    if z_loss_coefficient:
        grad.mul_(1 + 2 * z_loss_coefficient * log_normalizer)
    grad = _minus_one_at(target, grad).masked_fill_(~valid, 0.0)
    return ChunkLoss(nll.sum(), z_loss.sum(), grad.to(logits.dtype))


def _minus_one_at(columns: Tensor, values: Tensor) -> Tensor:
    """Subtract one from an element of each row: `columns` (n, 1) of `values` (n, P), which may be overwritten."""
    if torch.compiler.is_compiling():  # a comparison fuses; a scatter would first write all of `values` to memory
        is_column = torch.arange(values.shape[1], device=values.device) == columns
        return values - is_column.to(values.dtype)
    return values.scatter_add_(1, columns, torch.full_like(columns, -1.0, dtype=values.dtype))


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients of the head in one pass over chunks of tokens, like Liger Kernel's fused linear loss.

    The [tokens, V] logits exist one chunk at a time; each chunk's gradients are computed together with its loss, and
    backward only scales them.
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
        for chunk in _chunks(labels, vocab_size):
            hidden = hidden_states[chunk]
            logits = hidden @ weight.T  # with the padding: tensor cores want rows of whole 16 bytes
            logits[:, vocab_size:] = -math.inf  # whose gradient is exactly zero
            part = loss_of(logits, labels[chunk], z, needs_hidden or needs_weight)
            nll_sum += part.nll_sum
            z_loss_sum += part.z_loss_sum
            if grad_hidden is not None:
                grad_hidden[chunk] = part.grad_logits @ weight
            if grad_weight is not None:
                _accumulate(grad_weight, part.grad_logits, hidden)
        ctx.mark_non_differentiable(z_loss_sum)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return nll_sum + z_loss_sum, z_loss_sum

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scale = grad_output.view(1)  # a scalar would be rounded to bf16 first: a bias of up to 0.2 %
        grads = (None if grad is None else (grad * scale).to(grad.dtype) for grad in ctx.saved_tensors)
        return (*grads, None, None, None, None)


def _chunks(labels: Tensor, vocab_size: int) -> list[slice]:
    """Split the tokens into chunks of a power of two whose logits stay within LOSS_CHUNK_ELEMENTS."""
    size = loss_chunk_tokens(vocab_size, labels.device.type)
    return [slice(start, start + size) for start in range(0, len(labels), size)]


def _accumulate(grad_weight: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
    """Add grad_logits^T hidden to an fp32 sum."""
    if grad_logits.dtype == hidden.dtype == grad_weight.dtype:
        grad_weight.addmm_(grad_logits.T, hidden)
    elif _sums_in_fp32(hidden.device, hidden.dtype):
        torch.addmm(grad_weight, grad_logits.T, hidden, out_dtype=torch.float32, out=grad_weight)
    else:
        grad_weight.add_(grad_logits.T @ hidden)


@cache
def _sums_in_fp32(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch adds products of this dtype to an fp32 matrix in one kernel, without rounding them.

    Only on CUDA, and earlier releases ask for a sum in the products' dtype, so it is tried.
    """
    if device.type != "cuda":
        return False
    total, factor = torch.zeros(16, 16, device=device), torch.ones(16, 16, device=device, dtype=dtype)
    try:
        torch.addmm(total, factor, factor, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return True


class HeadLoss(NamedTuple):
    """The objective in fp32, summed over tokens and including the z-loss, and the z-loss alone."""

    loss_sum: Tensor
    z_loss_sum: Tensor


def loss_of_logits(logits: Tensor, labels: Tensor, z_loss_coefficient: float) -> HeadLoss:
    """Return the same loss from logits that exist as a whole, for callers who want them, and for heads of others.

    Args:
        logits: (B, T, V).
        labels: (B, T); tokens with IGNORE_INDEX are ignored.
        z_loss_coefficient: Weight of the z-loss.
    """
    scores, labels = logits.flatten(0, -2).float(), labels.flatten()  # (N, V), (N,)
    nll_sum = F.cross_entropy(scores, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    if not z_loss_coefficient:
        return HeadLoss(nll_sum, torch.zeros_like(nll_sum))
    log_normalizer = scores.logsumexp(dim=1).masked_fill(labels == IGNORE_INDEX, 0.0)
    z_loss_sum = z_loss_coefficient * log_normalizer.square().sum()
    return HeadLoss(nll_sum + z_loss_sum, z_loss_sum.detach())


class LanguageModelHead(nn.Linear):
    """Hidden states to logits, or straight to the loss.

    The loss lives in this module's forward because ZeRO-3 gathers `weight` only around it. Called like any nn.Linear,
    as PEFT does to add to its output, it returns a column for each row of `weight`.
    """

    def __init__(self, config: PeriLNConfig) -> None:
        super().__init__(config.hidden_size, config.padded_vocab_size, bias=False)
        self.config = config  # whose vocab_size changes when the embeddings are resized
        self.chunk_loss = chunk_loss  # compile_blocks replaces it with a compiled one

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, labels: Tensor | None = None, *, columns: int | None = None
    ) -> Tensor | HeadLoss:
        """Return the logits of (B, T, D), or the summed loss.

        Args:
            hidden_states: (B, T, D).
            labels: The label (B, T) of each token; then the summed loss is returned.
            columns: Number of first columns of the logits to return; None: all, (B, T, P).
        """
        if labels is None:
            return F.linear(hidden_states, self.weight[:columns])
        hidden_states, labels = hidden_states.flatten(0, -2), labels.flatten()  # (N, D), (N,)
        weight, vocab_size, z = self.weight, self.config.vocab_size, self.config.z_loss_coefficient
        if not torch.is_grad_enabled():  # invisible to an autograd.Function: detach to skip the gradients
            hidden_states, weight = hidden_states.detach(), weight.detach()
        return HeadLoss(*_ChunkedLoss.apply(hidden_states, weight, labels, vocab_size, z, self.chunk_loss))

    def replace_weight(self, weight: Tensor) -> None:
        """Use another matrix (P, D), a parameter, which may have another number of rows."""
        self.weight, self.out_features = weight, len(weight)
