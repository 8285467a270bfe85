"""Sub-layers on the residual stream, with the equation of each norm placement.

Every placement is a special case of x' = n_stream(x + n_output(f(n_input(x)))) that omits some of the norms;
facts_periln.py lists the norms of each.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .configuration_periln import PeriLNConfig
from .facts_periln import PLACEMENTS, NormPlacement
from .norms_periln import ScaleNorm


class Residual(nn.Module):
    """One sub-layer on the residual stream, with the norms of its placement.

    Implements equations 1-3 of Peri-LN (arXiv 2502.02732), and OLMo 2's output-only placement (arXiv 2501.00656).
    Only the norms of the placement are created.
    """

    def __init__(self, config: PeriLNConfig, placement: NormPlacement, branch: nn.Module) -> None:
        super().__init__()
        self.placement: NormPlacement = placement
        self.branch = branch
        norms = PLACEMENTS[placement]
        if norms.input_norm:
            self.input_norm = ScaleNorm(config, config.hidden_size)
        if norms.output_norm:
            self.output_norm = ScaleNorm(config, config.hidden_size, frozen=config.frozen_norm_scales != "none")
        if norms.stream_norm:
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
