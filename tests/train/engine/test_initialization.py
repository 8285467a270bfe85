"""Weights drawn by several threads: the seed alone decides, the distribution is as asked, small tensors are torch's."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import initialization

from train.engine.initialization import drawn_in_parallel

LARGE = (1200, 1100)  # a block and a part of one
SMALL = (100, 90)


def drawn(seed: int, threads: int | None) -> list[Tensor]:
    torch.manual_seed(seed)
    if threads is None:
        return draws()
    with drawn_in_parallel(threads):
        return draws()


def draws() -> list[Tensor]:
    tensors = [torch.empty(shape) for shape in (LARGE, SMALL, LARGE)]
    tensors[0].normal_(0.0, 0.02)
    nn.init.normal_(tensors[1], std=0.02)
    nn.init.uniform_(tensors[2], -3.0, 1.0)
    return tensors


def test_the_numbers_follow_from_the_seed_whatever_the_number_of_threads() -> None:
    one, three, again, other = drawn(1, 1), drawn(1, 3), drawn(1, 3), drawn(2, 3)
    assert all(torch.equal(a, b) and torch.equal(b, c) for a, b, c in zip(one, three, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("fill", [nn.init.normal_, nn.init.kaiming_uniform_, initialization.normal_, Tensor.normal_])
def test_every_way_to_draw_a_large_tensor_is_drawn_in_blocks(fill: Callable[[Tensor], object]) -> None:
    """Else it would be torch's sequence."""

    def filled() -> Tensor:
        torch.manual_seed(0)
        fill(tensor := torch.empty(LARGE))
        return tensor

    with drawn_in_parallel(2):
        inside = filled()
    assert inside.isfinite().all()
    assert not torch.equal(inside, filled())


def test_a_network_of_small_tensors_starts_with_the_numbers_of_torch() -> None:
    def linear() -> Tensor:
        torch.manual_seed(0)
        return nn.Linear(64, 64).weight.detach()

    with drawn_in_parallel(2):
        inside = linear()
    assert torch.equal(inside, linear())


def test_blocks_are_distributed_as_asked_and_independent() -> None:
    normal, _, uniform = drawn(1, 2)
    numel = normal.numel()
    assert normal.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * numel))
    assert abs(normal.mean().item()) < 5 * 0.02 / math.sqrt(numel)
    assert uniform.min() >= -3
    assert uniform.max() <= 1
    assert uniform.mean().item() == pytest.approx(-1.0, abs=5 * 4 / math.sqrt(12 * numel))
    rest = normal.view(-1)[2**20 :]
    together = torch.corrcoef(torch.stack((normal.view(-1)[: len(rest)], rest)))[0, 1]
    assert abs(together.item()) < 5 / math.sqrt(len(rest))


def test_a_generator_that_is_given_is_used() -> None:
    with drawn_in_parallel(2):
        inside = torch.empty(LARGE).normal_(generator=torch.Generator().manual_seed(5))
    assert torch.equal(inside, torch.empty(LARGE).normal_(generator=torch.Generator().manual_seed(5)))
