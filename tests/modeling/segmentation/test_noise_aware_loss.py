"""Equations 10 to 14 against a loop over pixels, and their limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modeling.segmentation.facts_bap import VOID
from modeling.segmentation.noise_aware_loss_bap import confidence, noise_aware_loss

TAU = 20.0


def drawn(images: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(images, 4, 5, 6, generator=generator, dtype=torch.float64) * 2 - 1
    crf = torch.randint(0, 4, (images, 5, 6), generator=generator)
    retrieved = torch.where(torch.rand(images, 5, 6, generator=generator) < 0.3, (crf + 1) % 4, crf)
    crf[:, 0, :2] = VOID
    return cosines, crf, retrieved


def by_pixels(cosines: Tensor, crf: Tensor, retrieved: Tensor, gamma: float, weight: float) -> float:
    """Return the loss of one image from the equations as they are written."""
    agree, differ, sigmas = [], [], []
    for y in range(crf.shape[0]):
        for x in range(crf.shape[1]):
            c = int(crf[y, x])
            if c == VOID:
                continue
            scores = [float(v) for v in cosines[:, y, x]]
            normalizer = sum(math.exp(TAU * v) for v in scores)
            loss = -math.log(math.exp(TAU * scores[c]) / normalizer)
            if c == int(retrieved[y, x]):
                agree.append(loss)
            else:
                sigma = ((1 + scores[c]) / max(1 + v for v in scores)) ** gamma
                differ.append(sigma * loss)
                sigmas.append(sigma)
    return sum(agree) / len(agree) + weight * sum(differ) / sum(sigmas)


def test_it_equals_the_equations_pixel_by_pixel_for_each_image_alone() -> None:
    cosines, crf, retrieved = drawn()
    loss = noise_aware_loss(TAU * cosines, cosines, crf, retrieved, gamma=7, weight=0.1).loss
    for at in range(2):
        assert loss[at].item() == pytest.approx(by_pixels(cosines[at], crf[at], retrieved[at], 7, 0.1), rel=1e-12)
    alone = noise_aware_loss(TAU * cosines[:1], cosines[:1], crf[:1], retrieved[:1], gamma=7, weight=0.1).loss
    assert torch.equal(alone, loss[:1])


def test_without_weight_it_is_cross_entropy_where_labels_agree() -> None:
    cosines, crf, retrieved = drawn(1)
    agreed = torch.where(crf == retrieved, crf, VOID)
    expected = F.cross_entropy(TAU * cosines, agreed, ignore_index=VOID)
    loss = noise_aware_loss(TAU * cosines, cosines, crf, retrieved, gamma=7, weight=0).loss
    torch.testing.assert_close(loss[0], expected)


@pytest.mark.parametrize("kind", ["agree everywhere", "agree nowhere", "void everywhere", "least confidence"])
def test_degenerate_images_give_finite_losses_and_gradients(kind: str) -> None:
    cosines, crf, retrieved = drawn(1)
    if kind == "agree everywhere":
        retrieved = crf.clone()
    elif kind == "agree nowhere":
        retrieved = (crf + 1) % 4
    elif kind == "void everywhere":
        crf = torch.full_like(crf, VOID)
    else:
        cosines.scatter_(1, crf.clamp(max=3)[:, None], -1.0)  # of the label: 1 + cosine is 0
    cosines.requires_grad_()
    parts = noise_aware_loss(TAU * cosines, cosines, crf, retrieved, gamma=7, weight=0.1)
    parts.loss.sum().backward()
    assert parts.loss.isfinite().all()
    assert cosines.grad is not None
    assert cosines.grad.isfinite().all()
    if kind == "agree everywhere":
        assert (parts.disagreeing.item(), parts.share.item()) == (0, 0)
    if kind == "void everywhere":
        assert parts.loss.item() == 0
        assert not cosines.grad.any()


def test_confidence_is_one_at_the_best_class_falls_with_gamma_and_rises_with_the_cosine() -> None:
    cosines, crf, _ = drawn(1)
    best = cosines.argmax(dim=1)
    assert confidence(cosines, best, 7).eq(1).all()
    one, hard = confidence(cosines, crf, 1), confidence(cosines, crf, 1e6)
    chosen = (crf == best) & (crf != VOID)
    assert hard[chosen].eq(1).all()
    assert hard[~chosen & (crf != VOID)].max() < 1e-6
    labels = crf.masked_fill(crf == VOID, 0)
    raised = cosines.scatter_add(1, labels[:, None], torch.full_like(labels[:, None], 0.01, dtype=cosines.dtype))
    assert (confidence(raised, labels, 7) >= confidence(cosines, labels, 7)).all()
    assert one.min() >= 0
    assert one.max() <= 1


def test_void_pixels_do_not_count() -> None:
    cosines, crf, retrieved = drawn(1)
    changed = cosines.clone()
    changed[:, :, 0, :2] = 0.5
    one, other = (noise_aware_loss(TAU * c, c, crf, retrieved, gamma=7, weight=1.0) for c in (cosines, changed))
    assert torch.equal(one.loss, other.loss)


def test_gradients_go_through_the_confidence_unless_it_is_detached() -> None:
    cosines, crf, retrieved = drawn(1)
    gradients = []
    for detach in (False, True):
        given = cosines.clone().requires_grad_()
        loss = noise_aware_loss(
            (TAU * given).detach(), given, crf, retrieved, gamma=7, weight=1.0, detach_confidence=detach
        ).loss.sum()
        gradients.append(torch.autograd.grad(loss, given)[0] if loss.requires_grad else torch.zeros_like(given))
    assert gradients[0].any()
    assert not gradients[1].any()


# ----------------------------------------------------------------------------------------------- noise it is made for


def noisy_world(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features (B, D, H, W) of unit length, the truth, and two labels (B, H, W) with errors of their own.

    The CRF's labels let objects spread over their boundary in six of ten pixels; the others follow noisy features.
    """
    generator = torch.Generator().manual_seed(seed)
    truth = torch.zeros(8, 16, 16, dtype=torch.long)
    for image in range(8):
        top, left = torch.randint(2, 5, (2,), generator=generator).tolist()
        height, width = torch.randint(6, 10, (2,), generator=generator).tolist()
        truth[image, top : top + height, left : left + width] = 1 + image % 3
    means = torch.eye(8)[:4]
    clean = means[truth].movedim(-1, 1)
    features = F.normalize(clean + 0.35 * torch.randn(clean.shape, generator=generator), dim=1)
    grown = F.max_pool2d(truth[:, None].float(), 5, 1, 2)[:, 0].long()
    crf = torch.where((grown != truth) & (torch.rand(truth.shape, generator=generator) < 0.6), grown, truth)
    pixels = features.movedim(1, -1)
    prototypes = torch.stack([pixels[crf == c].mean(dim=0) for c in range(4)])
    return features, truth, crf, cosines_of(F.normalize(prototypes, dim=1), features).argmax(dim=1)


def cosines_of(classes: Tensor, features: Tensor) -> Tensor:
    """Return the cosines (B, C, H, W) of unit vectors (C, D) and (B, D, H, W)."""
    return torch.einsum("cd,bdhw->bchw", classes, features)


def fitted(features: Tensor, crf: Tensor, retrieved: Tensor, *, weight: float) -> Tensor:
    """Return the classes (C, D) that a cosine classifier learns."""
    torch.manual_seed(0)
    classes = torch.randn(4, features.shape[1], requires_grad=True)
    optimizer = torch.optim.SGD([classes], lr=2.0, momentum=0.9)
    for _ in range(60):
        cosines = cosines_of(F.normalize(classes, dim=1), features)
        loss = noise_aware_loss(TAU * cosines, cosines, crf, retrieved, gamma=7, weight=weight).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return F.normalize(classes.detach(), dim=1)


def mean_iou(classes: Tensor, features: Tensor, truth: Tensor) -> float:
    found = cosines_of(classes, features).argmax(dim=1)
    each = [((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum() for c in range(4)]
    return torch.stack(each).mean().item()


def test_it_withstands_labels_that_spread_over_boundaries_better_than_any_part_of_it() -> None:
    """Both labels must err, as here: pixels on which they disagree then hold what neither has alone."""
    found: dict[str, list[float]] = {"crf": [], "retrieved": [], "agreeing": [], "noise aware": []}
    for seed in range(5):
        features, _, crf, retrieved = noisy_world(seed)
        unseen, truth, _, _ = noisy_world(100 + seed)
        learned = {
            "crf": fitted(features, crf, crf, weight=0),
            "retrieved": fitted(features, retrieved, retrieved, weight=0),
            "agreeing": fitted(features, crf, retrieved, weight=0),
            "noise aware": fitted(features, crf, retrieved, weight=0.1),
        }
        for name, classes in learned.items():
            found[name].append(mean_iou(classes, unseen, truth))
    means = {name: sum(values) / len(values) for name, values in found.items()}
    assert max(means, key=lambda name: means[name]) == "noise aware", means
