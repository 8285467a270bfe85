"""Copies through small buffers are equal and independent, whatever the shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from train.checkpoint.host_copy import copies_in_host_memory, copies_through


def several_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "several pieces": torch.randn(3, 37),
        "bf16": torch.randn(50).bfloat16(),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 4),
        "counter": torch.arange(5),
        "mask": torch.rand(19) > 0.5,
        "transposed": torch.randn(8, 6).T,
        "part of a flat tensor": torch.randn(100)[13:77],
    }


@pytest.mark.parametrize("size", [16, 48, 64, 4096])
def test_copies_equal_their_sources(size: int) -> None:
    tensors = several_tensors()
    copies = copies_through([torch.empty(size, dtype=torch.uint8) for _ in range(2)], tensors)
    assert list(copies) == list(tensors)
    for key, tensor in tensors.items():
        assert torch.equal(copies[key], tensor), key
        assert copies[key].dtype == tensor.dtype


def test_copies_do_not_change_with_their_sources() -> None:
    tensors = several_tensors()
    copies = copies_in_host_memory(tensors)
    before = {key: copy.clone() for key, copy in copies.items()}
    for tensor in tensors.values():
        tensor.zero_()
    assert all(torch.equal(copies[key], before[key]) for key in copies)


@pytest.mark.gpu
def test_a_gpus_tensors_arrive_complete() -> None:
    tensors = {key: tensor.cuda() for key, tensor in several_tensors().items()}
    tensors["large"] = torch.randn(50_000_000, device="cuda")  # three buffers
    copies = copies_in_host_memory(tensors)
    assert all(torch.equal(copies[key], tensor.cpu()) for key, tensor in tensors.items())
