"""The GPUs that a run is planned for, and the links between them."""

from __future__ import annotations

from typing import NamedTuple

from train.config.facts.hardware import LINK_EFFICIENCY, NODE_NETWORK, Card

GIGA = 1e9  # bytes: bandwidths are decimal


class Machine(NamedTuple):
    """GPUs in nodes. Bandwidths are what large collectives reach, in GB/s and one direction (`busbw` of nccl-tests)."""

    gpus: int
    card: Card
    memory_gib: float
    gpus_per_node: int = 8
    mfu: float | None = None  # of the configured setting; None: a guess
    node_bandwidth: float | None = None  # of a GPU within its node; None: from the card's data sheet
    network_bandwidth: float | None = None  # of a node to the others; None: one port of 400 Gb/s

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return -(-self.gpus // self.gpus_per_node)

    @property
    def bandwidth(self) -> float:
        """Bytes per second of a ring through all GPUs: its slowest link's. Each node has one way in and one out."""
        links = [self.in_node] if self.nodes == 1 else [self.in_node, self.between_nodes]
        return GIGA * min(links)

    @property
    def in_node(self) -> float:
        """GB/s of a GPU within its node."""
        return LINK_EFFICIENCY * self.card.link if self.node_bandwidth is None else self.node_bandwidth

    @property
    def between_nodes(self) -> float:
        """GB/s of a node to the others."""
        return LINK_EFFICIENCY * NODE_NETWORK if self.network_bandwidth is None else self.network_bandwidth

    def links_in_words(self) -> list[str]:
        """Return the links that a ring uses, each with its source."""
        assumed, card = f"{100 * LINK_EFFICIENCY:g} % of", self.card
        source = f"{assumed} {card.link_name}'s {card.link:g}" if self.node_bandwidth is None else "as given"
        words = [f"{self.in_node:>4g} GB/s per GPU within a node ({source})"]
        if self.nodes > 1:
            source = f"{assumed} one 400 Gb/s port" if self.network_bandwidth is None else "as given"
            words.append(f"{self.between_nodes:>4g} GB/s per node between nodes ({source})")
        return words
