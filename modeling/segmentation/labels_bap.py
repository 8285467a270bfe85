"""Pseudo labels of an image from its boxes, by a trained box classifier.

Oh, Kim and Ham, CVPR 2021, equations 5 to 9, with three details that the equations do not show: attention below a
threshold counts as 0, class activation is normalized in each box, and a softmax over background and classes comes
before the CRF.

Shapes: C classes with the background, D channels, K boxes, H height and W width of the image, h and w of the features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .dense_crf_bap import CRFSettings, mean_field

_CHUNK = 64  # channels that are enlarged to the image's size at a time


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """How labels are made; the defaults are the authors'.

    Args:
        attention_threshold: Background attention inside boxes below this part of its maximum counts as 0: it decides
            more than all else.
        crf: Of the CRF.
    """

    attention_threshold: float = 0.99
    crf: CRFSettings = field(default_factory=CRFSettings)


class Vanished(NamedTuple):
    """A box whose class got no pixel inside it from the CRF; its free pixels were filled with its class."""

    box: int
    why: Literal["no activation", "removed by the CRF"]


class Labels(NamedTuple):
    """What was made of an image.

    Args:
        attention: (H, W), A: how much a place looks like the background; 1 outside all boxes.
        activation: (C, H, W), the object unaries u_c; 0 for the background and outside the boxes of a class.
        unary: (C, H, W), what the CRF starts from.
        crf: (H, W) int64, Y_crf.
        retrieved: (H, W) int64, Y_ret.
        vanished: Boxes that the CRF left without a pixel.
    """

    attention: Tensor
    activation: Tensor
    unary: Tensor
    crf: Tensor
    retrieved: Tensor
    vanished: list[Vanished]


@torch.no_grad()
def label_image(
    features: Tensor,
    weight: Tensor,
    query: Tensor | None,
    image: Tensor,
    boxes: Tensor,
    classes: Tensor,
    settings: LabelSettings,
) -> Labels:
    """Label every pixel of an image.

    Args:
        features: (D, h, w).
        weight: (C, D), of the classifier.
        query: (Q, D), the mean background features; None: all of the image is background-free, or to be ignored, and
            the attention inside boxes is 0.
        image: (3, H, W), from 0 to 255.
        boxes: (K, 4) int64 as x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
        classes: (K,) int64, from 1.
        settings: How.
    """
    size = (image.shape[1], image.shape[2])
    inside = torch.stack([_filled(box, size, image) for box in boxes]) if len(boxes) else image.new_zeros(0, *size)
    directions = weight if query is None else torch.cat((weight, F.normalize(query, dim=1)))
    dots, lengths = _enlarged_dots(features, directions, size)
    attention = _attention(dots[len(weight) :], lengths, inside)
    activation, empty = _activation(dots[: len(weight)], attention, inside, classes)
    unary = _unary(attention, activation, inside, classes, settings.attention_threshold)
    allowed = _allowed(inside, classes, len(weight))
    crf = (_refined(unary, image, classes, settings.crf) * allowed).argmax(dim=0)
    crf, vanished = _fill_vanished(crf, inside, classes, empty)
    prototypes = _prototypes(features, weight, crf)
    cosines = _enlarged_dots(features, F.normalize(prototypes, dim=1), size)[0].relu() / lengths
    outside = ~inside.bool().any(dim=0)
    cosines[0] = torch.where(outside, 1.0, cosines[0])
    retrieved = (cosines * allowed).argmax(dim=0)
    return Labels(attention, activation, unary, crf, retrieved, vanished)


def _filled(box: Tensor, size: tuple[int, int], like: Tensor) -> Tensor:
    x0, y0, x1, y1 = box.tolist()
    filled = like.new_zeros(size)
    filled[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)] = 1
    return filled


def _allowed(inside: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Return where each class may be: the background everywhere, a class inside its boxes (C, H, W)."""
    of_class = F.one_hot(classes, num_classes).to(inside.dtype)  # (K, C)
    allowed = torch.einsum("kc,khw->chw", of_class, inside).clamp(max=1)
    allowed[0] = 1
    return allowed


def _enlarged_dots(features: Tensor, directions: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the products of the enlarged features with each direction (n, H, W), and their lengths (H, W).

    The features are enlarged to the image's size first, a few channels at a time: all of them are too large.
    """
    dots, squares = features.new_zeros(len(directions), *size), features.new_zeros(size)
    for part, of_directions in zip(features.split(_CHUNK), directions.split(_CHUNK, dim=1), strict=True):
        large = F.interpolate(part[None], size=size, mode="bilinear", align_corners=False)[0]
        dots += torch.einsum("nd,dhw->nhw", of_directions, large)
        squares += large.square().sum(dim=0)
    return dots, squares.sqrt().clamp(min=torch.finfo(features.dtype).tiny)


def _attention(dots: Tensor, lengths: Tensor, inside: Tensor) -> Tensor:
    """Return A at the image's size (equations 2 and 3): (H, W)."""
    cosines = (dots / lengths).relu().mean(dim=0).clamp(max=1.0) if len(dots) else torch.zeros_like(lengths)
    return torch.where(inside.bool().any(dim=0), cosines, 1.0)


def _activation(dots: Tensor, attention: Tensor, inside: Tensor, classes: Tensor) -> tuple[Tensor, list[int]]:
    """Return u_c (equations 5 and 6), normalized in each box, and the boxes without any activation.

    In such a box 1 - A stands in for it, or, where that is 0 too, the whole box.
    """
    activation, empty = torch.zeros_like(dots), []
    for number, (box, of_class) in enumerate(zip(inside, classes.tolist(), strict=True)):
        found = dots[of_class].relu() * box
        if not found.any():
            empty.append(number)
            found = (1 - attention) * box
            found = found if found.any() else box
        scaled = found / found.amax().clamp(min=torch.finfo(dots.dtype).tiny)
        activation[of_class] = torch.maximum(activation[of_class], scaled)
    return activation, empty


def _unary(attention: Tensor, activation: Tensor, inside: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Return the probabilities that the CRF starts from: background alone outside, a softmax inside (C, H, W)."""
    anywhere = inside.bool().any(dim=0)
    most = attention[anywhere].amax() if anywhere.any() else attention.new_ones(())
    most = torch.maximum(most, attention[~anywhere].amax()) if not anywhere.all() else most
    background = torch.where(attention < threshold * most, 0.0, attention)
    scores = torch.cat((background[None], activation[1:]))
    possible = _allowed(inside, classes, len(activation)).bool()
    return torch.where(possible, scores, -torch.inf).softmax(dim=0)


def _refined(unary: Tensor, image: Tensor, classes: Tensor, settings: CRFSettings) -> Tensor:
    """Return the marginals of the CRF (C, H, W); a class without a box is possible nowhere and takes no part."""
    possible = torch.cat((classes.new_zeros(1), classes)).unique()
    refined = torch.zeros_like(unary)
    refined[possible] = mean_field(unary[possible], image, settings)
    return refined


def _fill_vanished(crf: Tensor, inside: Tensor, classes: Tensor, empty: list[int]) -> tuple[Tensor, list[Vanished]]:
    crf, vanished = crf.clone(), []
    for number, (box, of_class) in enumerate(zip(inside.bool(), classes.tolist(), strict=True)):
        if box.any() and not (crf[box] == of_class).any():
            vanished.append(Vanished(number, "no activation" if number in empty else "removed by the CRF"))
            crf[box & (crf == 0)] = of_class
    return crf, vanished


def _prototypes(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Return the mean enlarged features of each class (equation 8); of one without a pixel its weights: (C, D)."""
    one_hot = F.one_hot(labels, len(weight)).movedim(-1, 0).to(features.dtype)  # (C, H, W)
    counts = one_hot.sum(dim=(1, 2))
    sums = [
        torch.einsum(
            "chw,dhw->cd",
            one_hot,
            F.interpolate(part[None], size=labels.shape, mode="bilinear", align_corners=False)[0],
        )
        for part in features.split(_CHUNK)
    ]
    return torch.where(counts[:, None] > 0, torch.cat(sums, dim=1) / counts.clamp(min=1)[:, None], weight)
