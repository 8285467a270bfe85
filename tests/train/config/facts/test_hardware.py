"""Peaks by the names that drivers give to GPUs."""

from __future__ import annotations

import pytest

from train.config.facts.hardware import peak_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA T4", None),
    ],
)
def test_a_peak_is_found_by_the_most_specific_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
