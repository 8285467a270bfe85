"""Noise-aware loss for training on two sets of pseudo labels.

Oh, Kim and Ham, Background-aware pooling and noise-aware loss for weakly-supervised semantic segmentation, CVPR 2021,
equations 10 to 14, for each image by itself: its loss then does not depend on which images share its batch, and the sum
over any number of ranks is exact.

Shapes: B images, C classes with the background, H height, W width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .facts_bap import VOID


class NoiseAwareLoss(NamedTuple):
    """The loss of each image, and what it consists of.

    Args:
        loss: (B,), agreeing + lambda * disagreeing.
        agreeing: (B,), mean cross-entropy where both labels agree (equation 10); 0 where they never do.
        disagreeing: (B,), confidence-weighted mean elsewhere (equation 13); 0 where they always agree.
        share: (B,), of the pixels that count, the part on which the labels disagree.
    """

    loss: Tensor
    agreeing: Tensor
    disagreeing: Tensor
    share: Tensor


def confidence(cosines: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Return how far the network itself supports a label: sigma of equations 11 and 12, (B, H, W) from 0 to 1.

    Args:
        cosines: (B, C, H, W), between the features and each class of the classifier.
        labels: (B, H, W); what VOID pixels get has no meaning.
        gamma: At least 1; the larger, the closer to 0 or 1.
    """
    correlation = 1 + cosines  # D of equation 11
    chosen = correlation.gather(1, _index(labels))[:, 0]
    tiny = torch.finfo(cosines.dtype).tiny
    return (chosen / correlation.amax(dim=1).clamp(min=tiny)).clamp(min=0, max=1).pow(gamma)


def noise_aware_loss(
    logits: Tensor,
    cosines: Tensor,
    crf: Tensor,
    retrieved: Tensor,
    *,
    gamma: float,
    weight: float,
    detach_confidence: bool = False,
) -> NoiseAwareLoss:
    """Return equation 14 for each image.

    Args:
        logits: (B, C, H, W).
        cosines: (B, C, H, W), see `confidence`.
        crf: (B, H, W), the labels of the CRF; VOID pixels do not count.
        retrieved: (B, H, W), the labels by retrieval.
        gamma: Exponent of the confidence.
        weight: lambda, of the disagreeing pixels. Both terms are means of their own, so it acts on the share of an
            image, however few pixels disagree.
        detach_confidence: Take the confidence as a constant, without gradients of its own.
    """
    counts = crf != VOID
    agree = (counts & (crf == retrieved)).to(logits.dtype)
    differ = (counts & (crf != retrieved)).to(logits.dtype)
    losses = F.cross_entropy(logits, crf.long(), ignore_index=VOID, reduction="none")  # (B, H, W)
    sigma = confidence(cosines, crf, gamma)
    sigma = (sigma.detach() if detach_confidence else sigma) * differ
    agreeing, disagreeing = _mean(losses, agree), _mean(losses, sigma)
    share = differ.sum(dim=(1, 2)) / counts.sum(dim=(1, 2)).clamp(min=1)
    return NoiseAwareLoss(agreeing + weight * disagreeing, agreeing, disagreeing, share)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of each image, 0 where all weights are 0."""
    total = weights.sum(dim=(1, 2))
    return (values * weights).sum(dim=(1, 2)) / total.clamp(min=torch.finfo(total.dtype).tiny)


def _index(labels: Tensor) -> Tensor:
    """Return labels as an index for gather, (B, 1, H, W); VOID points to class 0."""
    return labels.long().masked_fill(labels == VOID, 0)[:, None]
