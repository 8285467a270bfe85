"""Sub-layers on the residual stream, with the equation of each norm placement.

facts_placements_periln.py lists the norms and constants of each.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_periln import PeriLNConfig
from .facts_placements_periln import PLACEMENTS, Branch, LayerPlacement, MatrixRole
from .norms_periln import ScaleNorm


class Residual(nn.Module):
    """One sub-layer on the residual stream, with the norms of its placement.

    Only the norms of the placement are created.

    Args:
        config: The configuration.
        layer: Number of the layer, from 0.
        name: Which sub-layer of the layer it is.
        branch: The sub-layer f.
    """

    def __init__(self, config: PeriLNConfig, layer: int, name: Branch, branch: nn.Module) -> None:
        super().__init__()
        placement = PLACEMENTS[config.layer_norm_placements[layer]]
        norms = placement.attention if name == "attention" else placement.mlp
        depth = (layer + 1, config.num_hidden_layers)
        self.placement: LayerPlacement = placement.name
        self.name: Branch = name
        self.branch = branch
        self.stream_factor = placement.stream_factor.value(*depth)
        self.input_factor = placement.input_factor.value(*depth)
        self.residual_factor = config.residual_factor
        size = config.hidden_size
        if norms.input_norm:
            self.input_norm = ScaleNorm(config, size, start=placement.input_scale.value(*depth))
        if norms.output_norm:
            frozen, start = config.frozen_norm_scales != "none", placement.output_scale.value(*depth)
            self.output_norm = ScaleNorm(config, size, frozen=frozen, start=start)
        if norms.stream_norm:
            self.stream_norm = ScaleNorm(config, size)

    def forward(self, x: Tensor, *, gpas_gate: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Add the branch's output to the stream.

        Args:
            x: The residual stream (B, T, D).
            gpas_gate: Gate of GPAS (1,), if the model has it.
            kwargs: Keyword arguments of the branch.
        """

        def f(x: Tensor) -> Tensor:
            output = self.branch(x, **kwargs)
            return output[0] if isinstance(output, tuple) else output  # attention also returns its weights

        def add(x: Tensor, y: Tensor) -> Tensor:
            return torch.add(x, y, alpha=self.residual_factor)  # one operation, and exactly x + y where it is 1

        def shrink(x: Tensor) -> Tensor:
            """Apply GPAS (arXiv 2506.22049, eq. 5), whose factor does not shrink the gradient of the stream."""
            return x if gpas_gate is None else x - F.silu(gpas_gate) * x.detach()

        # GPAS follows the addition; a norm after it would undo it, so there it precedes the addition.
        match self.placement:
            case "pre" | "lns_learned" | "sub":
                return shrink(add(x, f(self.input_norm(x))))
            case "post":
                return self.stream_norm(add(shrink(x), f(x)))
            case "peri" | "peri_depth_scaled":
                return shrink(add(x, self.output_norm(f(self.input_norm(x)))))
            case "output":
                return shrink(add(x, self.output_norm(f(x))))
            case "lns":
                return shrink(add(x, f(self.input_factor * self.input_norm(x))))
            case "deepnorm":
                return self.stream_norm(add(self.stream_factor * shrink(x), f(x)))
            case "keel":
                return self.stream_norm(add(self.stream_factor * shrink(x), f(self.input_norm(x))))
            case "hybrid" if self.name == "attention":
                return shrink(add(x, f(x)))
            case "hybrid":
                return shrink(add(h := self.stream_norm(x), f(h)))


class BranchMatrix(nn.Linear):
    """A matrix of a sub-layer, without bias, with the standard deviation of its initial weights."""

    def __init__(self, config: PeriLNConfig, layer: int, role: MatrixRole, columns: int, rows: int) -> None:
        super().__init__(columns, rows, bias=False)
        self.layer = layer
        self.initial_std = config.shape.initial_std(layer, role, rows=rows, columns=columns)


class GateMatrix(BranchMatrix):
    """A matrix that other models lack: it leaves torch's own random numbers to those that they share."""

    def reset_parameters(self) -> None:
        """Draw nothing when it is built."""

    @property
    def generator(self) -> torch.Generator | None:
        """Source of its initial weights, which depend on the seed and on the layer.

        The two are hashed: with their sum, layers of neighboring seeds would start from the same numbers.
        """
        if self.weight.is_meta:
            return None
        name = f"attention gate of layer {self.layer}, seed {torch.initial_seed()}"
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest())
        return torch.Generator(self.weight.device).manual_seed(seed)
