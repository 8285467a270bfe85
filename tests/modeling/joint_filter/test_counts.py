"""Counted in closed form and counted on the built filter: the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling.joint_filter.configuration_dkn import DKNConfig
from modeling.joint_filter.facts_counts_dkn import count_parameters, training_flops
from modeling.joint_filter.facts_dkn import FilterShape
from modeling.joint_filter.modeling_dkn import DKNModel

VARIANTS: list[dict[str, Any]] = [
    {"architecture": architecture, **variant}
    for architecture in ("fdkn", "dkn")
    for variant in (
        {},
        {"kernel_size": 5},
        {"guidance": False},
        {"guidance_channels": 2, "target_channels": 3},
        {"residual": False, "sampling": "compat"},
    )
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_parameters_and_buffers_are_those_of_the_model(variant: dict[str, Any]) -> None:
    model = DKNModel(DKNConfig(**variant))
    counts = count_parameters(FilterShape(**variant))
    assert counts.kernels == sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    assert counts.buffers == sum(buffer.numel() for buffer in model.buffers())


@pytest.mark.parametrize("size", [(16, 16), (21, 30)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_operations_are_those_that_torch_counts(variant: dict[str, Any], size: tuple[int, int]) -> None:
    height, width = size
    shape = FilterShape(**variant)
    model = DKNModel(DKNConfig(**variant)).train()
    guidance, target = (torch.rand(2, n, height, width) for n in (shape.guidance_channels, shape.target_channels))
    with FlopCounterMode(display=False) as counter:
        model(guidance, target).output.sum().backward()
    assert counter.get_total_flops() == 2 * training_flops(shape, height=height, width=width)
