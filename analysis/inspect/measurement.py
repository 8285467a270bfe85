"""Measurement of one model on windows of text: activations, angles, massive activations, loss, gradients.

There is one forward and one backward pass per window, and only sums are kept. Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.inspect.angular import AngularProbe
from analysis.inspect.architecture import Architecture
from analysis.inspect.massive import Largest, MassiveProbe
from analysis.inspect.streams import between_blocks, streams
from analysis.inspect.windows import Windows
from analysis.measure.activations import ActivationProbe
from analysis.measure.gradients import is_norm_scale, layer_of, squared_norm
from analysis.measure.scales import effective_scale


@dataclass(frozen=True)
class Measurement:
    """Measurements of one model at one step.

    Attributes:
        activations: Rows of activations.jsonl, without `step`.
        gradients: Rows of gradients.jsonl, without `step`; norms are None where gradients were not asked for.
        largest: The largest elements of the stream at each depth.
        depths: Of the rows of `angles`.
        angles: Angular distances between depths.
        loss: Nats per predicted token.
        bits_per_byte: None where the bytes are not known.
        num_predicted: Tokens that the loss is the mean of.
    """

    activations: list[dict[str, Any]]
    gradients: list[dict[str, Any]]
    largest: list[Largest]
    depths: list[float]
    angles: list[list[float]]
    loss: float
    bits_per_byte: float | None
    num_predicted: int


def measure_model(
    model: nn.Module,
    architecture: Architecture,
    windows: Windows,
    *,
    with_gradients: bool = True,
    tick: Callable[[], None] = lambda: None,
) -> Measurement:
    """Measure a causal language model, window by window.

    Args:
        model: Of transformers, in evaluation mode.
        architecture: Recognized from it.
        windows: Tokens, (windows, T).
        with_gradients: Also run backward; the gradients are those of the mean loss over all windows' tokens.
        tick: Called after each window.
    """
    activations = ActivationProbe(architecture.sites())
    massive = MassiveProbe(streams(architecture))
    angles = AngularProbe(between_blocks(architecture))
    gradients = GradientSums(model)
    device = _input_device(model)
    losses = []
    for window in windows.tokens:
        tokens = window.unsqueeze(0).to(device)
        with torch.set_grad_enabled(with_gradients), activations.watching(), massive.watching(), angles.watching():
            loss = next_token_loss(model, tokens)
        losses.append(loss.item())
        if with_gradients:
            (loss / len(windows.tokens)).backward()
            gradients.take()
        tick()
    mean = sum(losses) / len(losses)
    predicted = windows.tokens[:, 1:].numel()
    return Measurement(
        activations=activations.rows(),
        gradients=parameter_rows(model, architecture, gradients.norms() if with_gradients else {}),
        largest=massive.largest(),
        depths=[stream.depth for stream in angles.watched],
        angles=angles.distances().tolist(),
        loss=mean,
        bits_per_byte=None if not windows.num_bytes else mean * predicted / math.log(2) / windows.num_bytes,
        num_predicted=predicted,
    )


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next token in nats, (), fp32.

    Args:
        model: Gives `.logits` (1, T, V).
        tokens: (1, T).
    """
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return F.cross_entropy(logits[0, :-1].float(), tokens[0, 1:].to(logits.device))


def is_causal(model: nn.Module) -> bool:
    """Return whether predictions are independent of later tokens; two forwards of four tokens."""
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=_input_device(model))
    with torch.no_grad():
        logits = torch.cat([model(input_ids=row.unsqueeze(0), use_cache=False).logits for row in tokens])[:, :-1]
    return bool((logits[0] - logits[1]).abs().max() <= 1e-2 * logits.abs().max())


def _input_device(model: nn.Module) -> torch.device:
    """Return where token ids go; accelerate moves them on where weights are offloaded."""
    device: torch.device = model.get_input_embeddings().weight.device  # type: ignore[operator, union-attr]
    return torch.device("cpu") if device.type == "meta" else device


class GradientSums:
    """Gradients summed over windows in fp32, also where the weights are bf16."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self._sums: dict[str, Tensor] = {}

    def take(self) -> None:
        """Add the gradients of a backward, and take those in low precision off the parameters."""
        for name, parameter in self._parameters.items():
            if parameter.grad is None or parameter.dtype in (torch.float32, torch.float64):
                continue
            if name in self._sums:
                self._sums[name] += parameter.grad
            else:
                self._sums[name] = parameter.grad.float()
            parameter.grad = None

    def norms(self) -> dict[str, float]:
        """Return the norm of each parameter's gradient, and free them; 0 for one that had no part in the loss."""
        norms: dict[str, float] = {}
        for name, parameter in self._parameters.items():
            gradient = self._sums.pop(name, parameter.grad)
            norms[name] = 0.0 if gradient is None else math.sqrt(squared_norm(gradient).item())
            parameter.grad = None
        return norms


def parameter_rows(
    model: nn.Module, architecture: Architecture, gradient_norms: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return a row per parameter: gradient norm, parameter norm, and the scale of a norm as it acts."""
    roles = norm_roles(architecture)
    norms = {f"{name}.weight": module for name, module in model.named_modules() if is_norm_scale(module)}
    rows = []
    for name, parameter in model.named_parameters():
        row = {
            "layer": layer_of(name),
            "parameter": name,
            "numel": parameter.numel(),
            "norm": gradient_norms.get(name),
            "parameter_norm": None if parameter.is_meta else math.sqrt(squared_norm(parameter).item()),
            "update_ratio": None,
        }
        if name in norms:
            row |= {"norm_role": roles.get(name), **_scale_metrics(norms[name])}
        rows.append(row)
    return rows


def _scale_metrics(norm: nn.Module) -> dict[str, float]:
    scale = effective_scale(norm)
    return {"scale_min": scale.min().item(), "scale_mean": scale.mean().item(), "scale_max": scale.max().item()}


def norm_roles(architecture: Architecture) -> dict[str, str]:
    """Return what the scale of each norm in the blocks does, like "attention.output_norm", by parameter name."""
    roles: dict[str, str] = {}
    for layer in architecture.layers:
        for branch, part in (("attention", layer.attention), ("mlp", layer.mlp)):
            for kind in ("input_norm", "output_norm", "stream_norm"):
                name = getattr(part, kind, None)
                if name is not None:  # a norm that both branches share keeps the attention's role
                    roles.setdefault(f"{layer.name}.{name}.weight", f"{branch}.{kind}")
    return roles
