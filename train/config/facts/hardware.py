"""GPU cards: peak speed, memory and links, for MFU and for `launch plan`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Card(NamedTuple):
    """A GPU.

    Attributes:
        name: Part of the name that its driver reports, except where a size is added to it.
        peak_flops: Dense bf16 peak in FLOP/s, from the vendor's data sheet.
        memory_gib: Total memory in GiB, as nvidia-smi reports it: less than the "80 GB" of the data sheet's name.
        link: GB/s (1e9 bytes) of a GPU to the others of its node, in each direction, from the data sheet.
        link_name: What that link is.
    """

    name: str
    peak_flops: float
    memory_gib: float
    link: float
    link_name: str


# Where one name contains another, the longer one comes first. Memory of H100 and H200 was read on such machines; that
# of the others is recalled from nvidia-smi's output.
CARDS = (
    Card("H100 PCIe", 756e12, 79.6, 64, "PCIe 5"),
    Card("H100 NVL", 835e12, 93.6, 64, "PCIe 5"),  # NVLink joins pairs only
    Card("H100", 989e12, 79.6, 450, "NVLink"),
    Card("H200", 989e12, 140.4, 450, "NVLink"),
    Card("H800", 989e12, 79.6, 200, "NVLink"),
    Card("A100 40GB", 312e12, 40.0, 300, "NVLink"),
    Card("A100", 312e12, 80.0, 300, "NVLink"),
    Card("A800", 312e12, 80.0, 200, "NVLink"),
    Card("B200", 2250e12, 179.1, 900, "NVLink"),
    Card("L40S", 362e12, 45.0, 32, "PCIe 4"),
    Card("A10", 125e12, 22.5, 32, "PCIe 4"),
    Card("RTX 4090", 165e12, 24.0, 32, "PCIe 4"),
)
NODE_NETWORK = 50.0  # GB/s of a node to the others: one port of 400 Gb/s; an 8-GPU H100 server may have eight
LINK_EFFICIENCY = 0.8  # assumed share of a data sheet's rate that large collectives reach


def card_named(name: str) -> Card | None:
    """Return the card that a user names, in upper or lower case; None if it is not listed."""
    return next((card for card in CARDS if card.name.lower() == " ".join(name.lower().split())), None)


def card_lines() -> Iterator[str]:
    """Yield the cards as lines of a table."""
    yield f"{'card':12}{'TFLOP/s (bf16)':>16}{'GiB':>9}{'GB/s in a node':>17}"
    for card in CARDS:
        link = f"  {card.link_name}"
        yield f"{card.name:12}{card.peak_flops / 1e12:>16g}{card.memory_gib:>9.1f}{card.link:>17g}{link}"


def peak_flops(device_name: str) -> float | None:
    """Return the dense bf16 peak in FLOP/s of a GPU, by the name its driver reports; None if it is not listed."""
    return next((card.peak_flops for card in CARDS if card.name in device_name), None)
