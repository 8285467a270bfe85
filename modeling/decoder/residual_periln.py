"""Sub-layers on the residual stream: the placements' equations, one under the other."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .configuration_periln import NormPlacement, PeriLNConfig
from .norms_periln import ScaleNorm


class Residual(nn.Module):
    """One sub-layer on the residual stream, with its norms where the placement says.

    Equations 1-3 of Peri-LN (arXiv 2502.02732), and OLMo 2's output-only placement (arXiv 2501.00656). Norms that a
    placement lacks do not exist.
    """

    def __init__(self, config: PeriLNConfig, placement: NormPlacement, branch: nn.Module) -> None:
        super().__init__()
        self.placement: NormPlacement = placement
        self.branch = branch
        if placement in ("pre", "peri"):
            self.input_norm = ScaleNorm(config, config.hidden_size)
        if placement in ("peri", "output"):
            self.output_norm = ScaleNorm(config, config.hidden_size, frozen=config.frozen_norm_scales != "none")
        if placement == "post":
            self.stream_norm = ScaleNorm(config, config.hidden_size)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Add the branch's output to the stream; keyword arguments are the branch's."""

        def f(x: Tensor) -> Tensor:
            output = self.branch(x, **kwargs)
            return output[0] if isinstance(output, tuple) else output  # attention also returns its weights

        match self.placement:
            case "pre":
                return x + f(self.input_norm(x))
            case "post":
                return self.stream_norm(x + f(x))
            case "peri":
                return x + self.output_norm(f(self.input_norm(x)))
            case "output":
                return x + self.output_norm(f(x))


class ResidualProjection(nn.Linear):
    """The matrix with which a sub-layer writes to the residual stream; `depth_scaled` initialization shrinks it."""
