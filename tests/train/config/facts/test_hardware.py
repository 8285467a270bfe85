"""Peaks by the names that drivers give to GPUs."""

from __future__ import annotations

import pytest

from train.config.facts.hardware import CARDS, card_named, peak_flops


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


def test_the_most_specific_name_comes_first() -> None:
    for position, card in enumerate(CARDS):
        assert not any(earlier.name in card.name for earlier in CARDS[:position])


@pytest.mark.parametrize("name", ["h100", "H100", "h100 pcie", "rtx  4090", "a100 40gb"])
def test_a_user_may_write_a_card_in_any_case(name: str) -> None:
    card = card_named(name)
    assert card is not None
    assert card.name.lower() == " ".join(name.lower().split())


def test_part_of_a_name_is_no_card() -> None:
    assert card_named("100") is None
