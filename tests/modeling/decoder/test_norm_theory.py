"""Effect of an output norm on the gradient of the projection before it, against closed forms (all in fp64).

With o = gamma * a / rms(a) and g = dL/do, the gradient by a is J^T g, J = diag(gamma) (I - a a^T / |a|^2) / rms(a). So
J a = 0, J goes as 1 / |a|, and |J^T g| <= max|gamma| sqrt(D) |g| / |a|. For LayerNorm read a less its mean.

Shapes: B batch, T tokens, N = B * T, D model, F width of what the projection reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.decoder.facts_placements_periln import LayerPlacement
from modeling.decoder.mlp_periln import GatedMLP
from modeling.decoder.modeling_periln import PeriLNForCausalLM
from modeling.decoder.norms_periln import ScaleNorm
from modeling.decoder.residual_periln import Residual

from .tiny_decoder import tiny_config, tiny_decoder, tiny_tokens

# The matrices that a sub-layer's output is linear in: the norm behind them takes away their length.
SCALE_FREE = ("v_proj.weight", "o_proj.weight", "up_proj.weight", "down_proj.weight")

norm_kinds = pytest.mark.parametrize("norm_kind", ["rmsnorm", "layernorm"])


def loss_of(model: PeriLNForCausalLM) -> Tensor:
    """The mean loss in fp64: the head's own is in fp32."""
    tokens = tiny_tokens()
    return F.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())


def loss_and_gradients(model: PeriLNForCausalLM) -> tuple[float, dict[str, Tensor]]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = loss_of(model)
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def scale_free(model: PeriLNForCausalLM) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if name.endswith(SCALE_FREE)}


def alignments(model: PeriLNForCausalLM) -> list[float]:
    """|<dL/dW, W>| / (|dL/dW| |W|) of each matrix."""
    _, gradients = loss_and_gradients(model)
    return [
        F.cosine_similarity(gradients[name].flatten(), weight.flatten(), dim=0).abs().item()
        for name, weight in scale_free(model).items()
    ]


@norm_kinds
@pytest.mark.parametrize("placement", ["peri", "output"])
def test_the_gradient_before_an_output_norm_is_orthogonal_to_the_weights(placement: str, norm_kind: str) -> None:
    found = alignments(tiny_decoder(norm_placement=placement, norm_kind=norm_kind, norm_eps=0.0).double())
    assert len(found) == 12
    assert max(found) < 1e-14  # measured: 2.2e-17


@norm_kinds
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_the_gradient_before_no_output_norm_is_not_orthogonal(placement: str, norm_kind: str) -> None:
    found = alignments(tiny_decoder(norm_placement=placement, norm_kind=norm_kind, norm_eps=0.0).double())
    assert min(found) > 1e-5  # measured: 5.8e-5, the others 1.1e-3 to 7.4e-2


class Change(NamedTuple):
    """What W -> c W does, each relative to what it was, and the worst over the other parameters."""

    loss: float
    gradient: float  # | c dL/d(cW) - dL/dW | / | dL/dW |
    other_gradients: float


def changes_under_scaling(model: PeriLNForCausalLM, factor: float) -> Iterator[Change]:
    """Scale one matrix after the other, and back."""
    before, gradients_before = loss_and_gradients(model)
    for scaled, weight in scale_free(model).items():
        weight_before = weight.detach().clone()
        weight.data.mul_(factor)
        loss, gradients = loss_and_gradients(model)
        weight.data.copy_(weight_before)
        gradients[scaled] *= factor
        distances = {
            name: ((gradients[name] - was).norm() / was.norm()).item() for name, was in gradients_before.items()
        }
        yield Change(abs(loss / before - 1), distances.pop(scaled), max(distances.values()))


@norm_kinds
@pytest.mark.parametrize("placement", ["peri", "output"])
@pytest.mark.parametrize("factor", [0.03, 70.0])
def test_scaling_a_projection_before_an_output_norm_divides_its_gradient_and_changes_nothing_else(
    factor: float, placement: str, norm_kind: str
) -> None:
    model = tiny_decoder(norm_placement=placement, norm_kind=norm_kind, norm_eps=0.0).double()
    changes = list(changes_under_scaling(model, factor))
    assert len(changes) == 12
    assert max(change.loss for change in changes) < 1e-14  # measured: 2.2e-16
    assert max(change.gradient for change in changes) < 1e-12  # measured: 4.3e-15
    assert max(change.other_gradients for change in changes) < 1e-12  # measured: 9.6e-15


@norm_kinds
@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("factor", [0.03, 70.0])
def test_scaling_a_projection_before_no_output_norm_changes_everything(
    factor: float, placement: str, norm_kind: str
) -> None:
    model = tiny_decoder(norm_placement=placement, norm_kind=norm_kind, norm_eps=0.0).double()
    changes = list(changes_under_scaling(model, factor))
    assert min(change.loss for change in changes) > 1e-4  # measured: 1.0e-3
    assert min(change.gradient for change in changes) > 0.1  # measured: 0.96
    assert min(change.other_gradients for change in changes) > 0.1  # measured: 0.97


class Watched:
    """A sub-layer's last projection W and the norm behind it, with what passed them in a forward."""

    h: Tensor  # (B, T, F), read by the projection
    a: Tensor  # (B, T, D), read by the norm: the branch's output; with post the stream's sum
    o: Tensor  # (B, T, D), written by the norm

    def __init__(self, residual: Residual) -> None:
        self.norm: ScaleNorm = residual.stream_norm if residual.placement == "post" else residual.output_norm
        name = "down_proj" if isinstance(residual.branch, GatedMLP) else "o_proj"
        self.projection = residual.branch.get_submodule(name)
        self.projection.register_forward_pre_hook(self._keep_read)
        self.norm.register_forward_hook(self._keep_normed)

    def _keep_read(self, _: nn.Module, args: tuple[Tensor]) -> None:
        self.h = args[0].detach()

    def _keep_normed(self, _: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        self.a, self.o = args[0].detach(), output

    def gradient(self, g: Tensor) -> Tensor:
        """dL/dW (D, F) when dL/do is g."""
        return torch.autograd.grad(self.o, self.projection.get_parameter("weight"), g, retain_graph=True)[0]

    def token_gradients(self, g: Tensor) -> Tensor:
        """dL/dW from each token alone (N, D, F), by autograd."""
        num_tokens = g.shape[:2].numel()
        chosen = torch.eye(num_tokens, dtype=g.dtype).view(num_tokens, *g.shape[:2], 1)
        return torch.stack([self.gradient(g * one) for one in chosen])

    def bound(self, g: Tensor) -> Tensor:
        """max|gamma| sqrt(D) |h| |g| / |a| of each token (N,)."""
        a = self.a - self.a.mean(dim=-1, keepdim=True) if self.norm.kind == "layernorm" else self.a
        limit = self.norm.weight.abs().max() * math.sqrt(a.shape[-1])
        return (limit * self.h.norm(dim=-1) * g.norm(dim=-1) / a.norm(dim=-1)).flatten().detach()


def as_trained(placement: str, norm_kind: str, *, norm_eps: float) -> PeriLNForCausalLM:
    """A decoder with scales of both signs, projections of uneven size, and a massive activation in each layer."""
    model = tiny_decoder(norm_placement=placement, norm_kind=norm_kind, norm_eps=norm_eps).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.mul_(torch.randn_like(parameter))
            elif name.endswith("o_proj.weight"):
                parameter.mul_(0.01)
            elif name.endswith("up_proj.weight"):
                parameter[0].mul_(1e3)
    return model


@norm_kinds
@pytest.mark.parametrize("placement", ["peri", "output", "post"])
@pytest.mark.parametrize("norm_eps", [0.0, 1e-6])
def test_the_gradient_of_every_token_keeps_its_bound(norm_eps: float, placement: str, norm_kind: str) -> None:
    model = as_trained(placement, norm_kind, norm_eps=norm_eps)
    watched = [Watched(residual) for residual in model.modules() if isinstance(residual, Residual)]
    upstream = torch.autograd.grad(loss_of(model), [one.o for one in watched], retain_graph=True)
    assert len(watched) == 6
    for one, g in zip(watched, upstream, strict=True):
        gradients = one.token_gradients(g)
        torch.testing.assert_close(gradients.sum(dim=0), one.gradient(g), rtol=1e-10, atol=1e-15)
        ratio = gradients.flatten(1).norm(dim=1) / one.bound(g)
        assert ratio.max() <= 1 + 1e-12  # measured: at most 0.68
        assert ratio.max() > 0.2  # measured: at least 0.29, so the bound is near


@norm_kinds
@pytest.mark.parametrize("placement", ["peri", "output", "post"])
def test_the_bound_is_reached_across_the_output_on_the_largest_scales(placement: str, norm_kind: str) -> None:
    model = as_trained(placement, norm_kind, norm_eps=0.0)
    watched = [Watched(residual) for residual in model.modules() if isinstance(residual, Residual)]
    for one in watched:
        one.norm.weight.data[::4] = -9.0  # the others: below 6
    model(tiny_tokens())
    for one in watched:
        a = one.a[..., ::4]
        taken, _ = torch.linalg.qr(torch.stack([a, torch.ones_like(a)], dim=-1))  # (B, T, D/4, 2)
        direction = torch.randn_like(a).unsqueeze(-1)
        g = torch.zeros_like(one.a)
        g[..., ::4] = (direction - taken @ (taken.mT @ direction)).squeeze(-1)
        ratio = one.token_gradients(g).flatten(1).norm(dim=1) / one.bound(g)
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-12)  # measured: 1.1e-15


def mlp_sublayer(placement: LayerPlacement, *, neurons: slice, factor: float) -> Residual:
    """A sub-layer whose MLP has some of its activations h multiplied."""
    torch.manual_seed(0)
    config = tiny_config(norm_placement=placement, norm_eps=0.0)
    residual = Residual(config, 0, "mlp", GatedMLP(config, 0)).double()
    with torch.no_grad():
        for parameter in residual.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
        residual.branch.get_parameter("up_proj.weight")[neurons] *= factor  # h is linear in it
    return residual


def gradient_and_activation_norms(residual: Residual) -> tuple[Tensor, Tensor, Tensor]:
    """|dL/dW2| and |h| of each token (N,) at the same x and dL/d(stream), and the norms of the latter."""
    x, g = torch.randn(2, 8, 48, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    read: list[Tensor] = []
    residual.branch.get_submodule("down_proj").register_forward_pre_hook(lambda _, args: read.append(args[0].detach()))
    stream = residual(x)
    weight = residual.branch.get_parameter("down_proj.weight")
    gradients = [
        torch.autograd.grad(o, weight, g_o, retain_graph=True)[0].norm() for o, g_o in zip(stream, g, strict=True)
    ]
    return torch.stack(gradients), read[0].norm(dim=-1), g.norm(dim=-1)


@pytest.mark.parametrize(("placement", "growth"), [("peri", 1.0), ("output", 1.0), ("pre", 1e4)])
def test_activations_that_grow_do_not_reach_the_gradient_through_an_output_norm(
    placement: LayerPlacement, growth: float
) -> None:
    everything = slice(None)
    before, _, _ = gradient_and_activation_norms(mlp_sublayer(placement, neurons=everything, factor=1.0))
    after, _, _ = gradient_and_activation_norms(mlp_sublayer(placement, neurons=everything, factor=1e4))
    torch.testing.assert_close(after / before, torch.full_like(before, growth), rtol=1e-12, atol=0)  # measured: 8e-16


@pytest.mark.parametrize("placement", ["peri", "output"])
def test_an_output_norm_keeps_the_gradient_of_one_massive_activation_below_a_limit(placement: LayerPlacement) -> None:
    """As h_k takes over, |h| / |a| -> 1 / |k-th column of W2|, and the bound with it."""
    residual = mlp_sublayer(placement, neurons=slice(1), factor=1e8)
    gradients, _, g = gradient_and_activation_norms(residual)
    column = residual.branch.get_parameter("down_proj.weight")[:, 0].detach()
    ratio = gradients / (math.sqrt(48) * g / column.norm())
    assert ratio.max() < 1 + 1e-6  # measured: 0.99999; from 0.98 on
    more, _, _ = gradient_and_activation_norms(mlp_sublayer(placement, neurons=slice(1), factor=1e10))
    torch.testing.assert_close(more, gradients, rtol=1e-5, atol=0)  # measured: 5.3e-7


def test_without_output_norm_the_gradient_grows_with_one_massive_activation() -> None:
    before, h_before, _ = gradient_and_activation_norms(mlp_sublayer("pre", neurons=slice(1), factor=1.0))
    after, h_after, _ = gradient_and_activation_norms(mlp_sublayer("pre", neurons=slice(1), factor=1e6))
    torch.testing.assert_close(after / before, h_after / h_before, rtol=1e-12, atol=0)
    assert (after / before).min() > 100  # measured: 944 where h_k was near zero, to 136,000
