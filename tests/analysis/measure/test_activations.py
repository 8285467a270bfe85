"""Any network is measured in the pass that trains it, each site once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from analysis.measure.activations import ActivationProbe, Site, sites_of_any
from analysis.measure.gradients import layer_of, norm_scales, squared_norm


class Block(nn.Module):
    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.checkpointed = checkpointed

    def inside(self, x: Tensor) -> tuple[Tensor, str]:
        return self.norm(self.linear(x)).tanh(), "beside"

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return checkpoint(self.inside, x, use_reentrant=False) if self.checkpointed else self.inside(x)  # type: ignore[return-value]


class Network(nn.Module):
    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(checkpointed) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)[0]
        return self.head(x)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_site_is_measured_once_though_checkpointing_passes_it_twice(checkpointed: bool) -> None:
    torch.manual_seed(0)
    network = Network(checkpointed)
    x = torch.randn(5, 8)
    probe = ActivationProbe([Site(index, "linear", block.linear) for index, block in enumerate(network.blocks)])  # type: ignore[arg-type]
    calls = []
    network.blocks[0].linear.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    with probe.watching():
        network(x).sum().backward()
    assert len(calls) == 1 + checkpointed
    rows = probe.rows()
    assert [row["numel"] for row in rows] == [40, 40, 40]
    expected = network.blocks[0].linear(x).var(correction=0).item()  # type: ignore[operator]
    assert rows[0]["variance"] == pytest.approx(expected, rel=1e-6)


def test_passes_add_up_until_asked_and_ranks_are_joined() -> None:
    layer = nn.Linear(8, 4)
    parts = torch.randn(3, 6, 8)
    probe, other = (ActivationProbe([Site(None, "layer", layer)]) for _ in range(2))
    with probe.watching():
        layer(parts[0])
        layer(parts[1])
    with other.watching():
        layer(parts[2])
    received: list[Tensor] = []
    other.rows(lambda mine: received.append(mine) or [mine])
    (row,) = probe.rows(lambda mine: [mine, *received])
    whole = layer(parts)
    assert row["numel"] == whole.numel()
    assert row["variance"] == pytest.approx(whole.var(correction=0).item(), rel=1e-6)
    assert probe.rows() == []


def test_outside_no_hook_is_left() -> None:
    network = Network()
    probe = ActivationProbe(sites_of_any(network))
    with probe.watching():
        assert any(module._forward_hooks for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    network(torch.randn(2, 8))
    assert probe.rows() == []


def test_inputs_tuples_and_keywords_are_measured() -> None:
    class Takes(nn.Module):
        def forward(self, *, mask: Any = None, hidden_states: Tensor) -> dict[str, Any]:
            return {"mask": torch.ones(3, dtype=torch.bool), "states": [None, hidden_states * 2]}

    module = Takes()
    probe = ActivationProbe([Site(0, "in", module, tensor="input"), Site(0, "out", module)])
    x = torch.randn(4, 8)
    with probe.watching():
        module(hidden_states=x)
    into, out = probe.rows()
    assert into["max_abs"] == x.abs().max().item()
    assert out["max_abs"] == 2 * x.abs().max().item()


def test_a_module_without_a_tensor_is_named() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> None:
            return None

    module = Silent()
    with ActivationProbe([Site(0, "out", module)]).watching(), pytest.raises(TypeError, match="NoneType"):
        module(torch.ones(2))


def test_any_network_has_sites_with_its_features_where_they_are() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    sites = sites_of_any(network)
    assert [(site.layer, site.name, site.feature_dim) for site in sites] == [(0, "0", 1), (1, "1", 1), (4, "4", -1)]
    probe = ActivationProbe(sites)
    x = torch.randn(2, 3, 3, 3)
    with probe.watching():
        network(x)
    rows = probe.rows()
    magnitudes = network[0](x).abs().movedim(1, -1).reshape(-1, 4)
    ratio = (magnitudes.amax(dim=1) / magnitudes.sort(dim=1).values[:, 1]).max().item()
    assert rows[0]["top1_over_median"] == pytest.approx(ratio, rel=1e-6)


def test_histograms_are_kept_where_asked() -> None:
    layer = nn.Linear(8, 4)
    probe = ActivationProbe([Site(2, "with", layer, histogram=True), Site(2, "without", layer)])
    with probe.watching():
        layer(torch.randn(6, 8))
        layer(torch.randn(6, 8))
    histograms = probe.histograms(lambda mine: [mine, mine])
    assert histograms.keys() == {(2, "with")}
    assert histograms[2, "with"].sum() == 2 * 2 * 24


def test_names_tell_layers_and_norm_scales() -> None:
    assert layer_of("model.layers.11.mlp.down_proj.weight") == 11
    assert layer_of("lm_head.weight") is None
    network = Network()
    network.blocks[1].norm.weight.requires_grad_(False)  # type: ignore[union-attr]
    assert norm_scales(network) == {f"blocks.{index}.norm.weight" for index in range(3)}


def test_squared_norm_is_summed_in_fp64() -> None:
    values = torch.full((1_000_001,), 1e-3)
    assert squared_norm(values).item() == pytest.approx(1.000001 * 1.0000000949949049, rel=1e-9)
