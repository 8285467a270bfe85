"""Equations 1 to 4: closed forms, limits and invariances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modeling.segmentation.background_pooling_bap import (
    NO_BOX,
    Coverage,
    background_attention,
    background_queries,
    cover,
    pool_boxes,
)

STRIDE = 8


def boxes_of(*images: list[tuple[float, ...]]) -> tuple[Tensor, Tensor]:
    """Return boxes (B, K, 4) and classes (B, K), padded."""
    most = max(len(boxes) for boxes in images)
    boxes = torch.zeros(len(images), most, 4)
    classes = torch.full((len(images), most), NO_BOX)
    for at, of_image in enumerate(images):
        for number, box in enumerate(of_image):
            boxes[at, number], classes[at, number] = torch.tensor(box), 1
    return boxes, classes


def covered(*images: list[tuple[float, ...]], height: int = 6, width: int = 8, regions: int = 1) -> Coverage:
    return cover(*boxes_of(*images), height=height, width=width, stride=STRIDE, regions=regions)


def pooled(features: Tensor, coverage: Coverage, grid: int = 2) -> tuple[Tensor, Tensor]:
    """Return attention and the pooled features."""
    background = coverage.background()
    queries = background_queries(features, background, grid)
    attention = background_attention(features, background, queries)
    return attention, pool_boxes(features, attention, coverage)


BOX = (16.0, 8.0, 48.0, 40.0)  # cells 2 to 5 across, 1 to 4 down


def test_with_orthogonal_features_the_object_is_found_exactly_and_averaging_mixes_by_the_filling_rate() -> None:
    features = torch.zeros(1, 2, 6, 8)
    features[:, 0] = 3.0  # the background's direction, inside the box too
    features[:, :, 2:4, 3:5] = torch.tensor([0.0, 2.0])[:, None, None]  # 4 of the box's 16 cells
    coverage = covered([BOX])
    attention, regions = pooled(features, coverage)
    assert attention[0, 2:4, 3:5].abs().max() == 0
    assert attention[0, 1, 2] == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(regions[0, 0, 0], torch.tensor([0.0, 2.0]), atol=1e-6, rtol=0)
    average = pool_boxes(features, torch.zeros_like(attention), coverage)
    torch.testing.assert_close(average[0, 0, 0], torch.tensor([3 * 0.75, 2 * 0.25]))


def test_without_attention_it_is_the_mean_over_the_box_weighted_by_the_covered_area() -> None:
    features = torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    fine = features.repeat_interleave(STRIDE, 2).repeat_interleave(STRIDE, 3)  # each pixel has its cell's features
    x0, y0, x1, y1 = box = (13, 5, 45, 31)
    expected = fine[0, :, y0:y1, x0:x1].mean(dim=(1, 2))
    got = pool_boxes(features, torch.zeros(1, 6, 8), covered([box]))
    torch.testing.assert_close(got[0, 0, 0], expected)


def test_sub_regions_share_a_box_without_overlap() -> None:
    one, four = (covered([(13.0, 5.0, 45.0, 31.0)], regions=regions) for regions in (1, 2))
    torch.testing.assert_close(four.rows.sum(dim=2), one.rows[:, :, 0])
    torch.testing.assert_close(four.columns.sum(dim=2), one.columns[:, :, 0])
    assert pool_boxes(torch.ones(1, 3, 6, 8), torch.zeros(1, 6, 8), four).shape == (1, 1, 4, 3)


def test_queries_do_not_depend_on_what_is_inside_boxes() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 3, 6, 8, generator=generator)
    background = covered([BOX]).background()
    changed = torch.where(background[:, None] > 0, features, torch.randn(1, 3, 6, 8, generator=generator))
    assert not torch.equal(features, changed)
    one, other = (background_queries(f, background, 3) for f in (features, changed))
    assert torch.equal(one.features, other.features)


def test_a_query_is_the_mean_of_its_cells_and_cells_without_background_are_dropped() -> None:
    features = torch.randn(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))  # no multiple of the grid
    background = covered([(0, 0, 40, 24)], height=5, width=7).background()  # rows 0 to 2, columns 0 to 4
    queries = background_queries(features, background, 2)
    top, left = 3, 4  # rows and columns of the first cell: 5 * 1 / 2 and 7 * 1 / 2, rounded up
    assert queries.valid.tolist() == [[False, True, True, True]]
    torch.testing.assert_close(queries.features[0, 3], features[0, :, top:, left:].mean(dim=(1, 2)))
    beside = features[0, :, :top, left:][:, :, 1:].mean(dim=(1, 2))  # column 4 belongs to the box
    torch.testing.assert_close(queries.features[0, 1], beside)


def test_attention_is_one_outside_between_zero_and_one_inside_and_blind_to_the_scale_of_features() -> None:
    features = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    coverage = covered([BOX], [(0.0, 0.0, 9.0, 9.0), BOX])
    attention, regions = pooled(features, coverage)
    assert attention[coverage.background() > 0].eq(1).all()
    assert attention.min() >= 0
    assert attention.max() <= 1
    scaled_attention, scaled = pooled(4 * features, coverage)
    torch.testing.assert_close(scaled_attention, attention)
    torch.testing.assert_close(scaled, 4 * regions)


def test_boxes_in_another_order_are_pooled_in_that_order() -> None:
    features = torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    boxes = [BOX, (0.0, 0.0, 30.0, 20.0), (40.0, 20.0, 64.0, 48.0)]  # two of them overlap
    regions = pooled(features, covered(boxes))[1]
    torch.testing.assert_close(pooled(features, covered(boxes[::-1]))[1], regions.flip(1))


@pytest.mark.parametrize(
    "boxes",
    [
        [(0.0, 0.0, 64.0, 48.0)],  # all of the image: no query, plain averaging
        [(20.0, 20.0, 21.0, 21.0)],  # one pixel
        [(63.0, 47.0, 64.0, 48.0)],  # the last pixel
        [],
    ],
)
def test_degenerate_boxes_give_finite_values_and_gradients(boxes: list[tuple[float, ...]]) -> None:
    features = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    attention, regions = pooled(features, covered(boxes, [BOX]))
    regions.sum().backward()
    assert attention.isfinite().all()
    assert regions.isfinite().all()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    if boxes == [(0.0, 0.0, 64.0, 48.0)]:
        torch.testing.assert_close(regions[0, 0, 0], features[0].mean(dim=(1, 2)))


def test_a_box_that_is_all_background_has_finite_features() -> None:
    features = torch.ones(1, 3, 6, 8, requires_grad=True)  # everything looks like the background
    attention, regions = pooled(features, covered([BOX]))
    regions.sum().backward()
    assert attention.eq(1).all() or attention.min() > 1 - 1e-6
    assert regions.isfinite().all()
    assert features.grad is not None
    assert features.grad.isfinite().all()
