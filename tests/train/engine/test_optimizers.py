"""Both sides of each optimizer's record, and parameter groups by role."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from tests.tiny import tiny_run
from train.config.facts.optimizers import LARGEST_GRADIENT_NORM, LARGEST_MOMENTUM
from train.config.facts.optimizers import OPTIMIZERS as FACTS
from train.config.run import OptimConfig
from train.engine.optimizers import OPTIMIZERS, build_optimizer
from train.tasks.task import ParameterGroup


def test_facts_torch_side_and_setting_have_the_same_names() -> None:
    assert OPTIMIZERS.keys() == FACTS.keys() == set(get_args(get_type_hints(OptimConfig)["optimizer"]))
    assert all(optimizer.facts is FACTS[name] for name, optimizer in OPTIMIZERS.items())


def test_the_facts_name_settings() -> None:
    named = {key for facts in FACTS.values() for key in facts.settings}
    assert named <= {field.name for field in dataclasses.fields(OptimConfig)}


@pytest.mark.parametrize("name", FACTS)
def test_state_is_what_the_facts_name(name: str) -> None:
    """As torch makes it in a step: names, and fp32 tensors of the weight's shape but for counts of steps."""
    weight = torch.nn.Parameter(torch.ones(3, 4))
    optim = OptimConfig(lr=0.1, optimizer=name)  # type: ignore[arg-type]
    optimizer = build_optimizer([ParameterGroup("matrix", {"w": weight}, 0.1)], optim=optim)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    made, ours = optimizer.state[weight], OPTIMIZERS[name].new_state(weight, 1)
    assert ours.keys() == made.keys()
    assert {key for key, tensor in made.items() if tensor.shape == weight.shape} == set(FACTS[name].state)
    assert all(ours[key].dtype == tensor.dtype == torch.float32 for key, tensor in made.items())
    assert sum(made[key].nbytes for key in FACTS[name].state) == FACTS[name].state_bytes * weight.numel()


@pytest.mark.parametrize("name", FACTS)
def test_the_update_follows_from_the_state_after_the_step(name: str) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(50, dtype=torch.float64))
    optim = OptimConfig(lr=0.01, optimizer=name)  # type: ignore[arg-type]
    optimizer = build_optimizer([ParameterGroup("matrix", {"w": weight}, 0.1)], optim=optim)
    for updates in range(1, 9):
        before = weight.detach().clone()
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        state = {"weight": weight.detach()} | {key: optimizer.state[weight][key] for key in FACTS[name].state}
        squared = OPTIMIZERS[name].squared_update(state, lr=0.01, weight_decay=0.1, updates=updates, optim=optim)
        expected = (weight.detach() - before).square().sum()
        assert squared.item() == pytest.approx(expected.item(), rel=1e-9)  # measured: 5e-15


def test_momentum_starts_with_a_buffer_of_zeros_as_without_one() -> None:
    """torch starts the buffer as the gradient; ours, created before the first step, is then the same bit for bit."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 50)) for _ in range(2)]
    optimizers = [
        build_optimizer([ParameterGroup("matrix", {"w": weight}, 0.1)], optim=OptimConfig(lr=0.1, optimizer="sgd"))
        for weight in weights
    ]
    optimizers[0].state[weights[0]] = OPTIMIZERS["sgd"].new_state(weights[0], 0)
    for _ in range(3):
        gradient = torch.randn(50)
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
        buffers = [optimizer.state[w]["momentum_buffer"] for w, optimizer in zip(weights, optimizers, strict=True)]
        assert torch.equal(*buffers)
        assert torch.equal(*weights)


BETAS = [(0.0, 0.0), (0.9, 0.95), (0.999999, 0.0), (0.0, 0.999999), (0.999999, 0.999999)]
MOMENTA = [1e-6, 0.9, LARGEST_MOMENTUM]
EXTREMES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"betas": betas}) for name, facts in FACTS.items() if "betas" in facts.settings for betas in BETAS),
    *((name, {"momentum": m}) for name, facts in FACTS.items() if "momentum" in facts.settings for m in MOMENTA),
]


def test_every_optimizer_is_driven_to_its_extremes() -> None:
    assert {name for name, _ in EXTREMES} == FACTS.keys()


@pytest.mark.parametrize("norm", [1.0, LARGEST_GRADIENT_NORM])
@pytest.mark.parametrize(("name", "settings"), EXTREMES, ids=str)
def test_no_sequence_of_gradients_exceeds_the_largest_update(name: str, settings: dict[str, Any], norm: float) -> None:
    """The bound by which configurations are refused; without decay, at a small eps, with gradients that come and go."""
    generator = torch.Generator().manual_seed(0)
    lr, eps, steps, size = 1e-3, 1e-12, 60, 4000
    weight = torch.nn.Parameter(torch.zeros(size))
    optim = OptimConfig(lr=lr, optimizer=name, eps=eps, **settings)  # type: ignore[arg-type]
    optimizer = build_optimizer([ParameterGroup("matrix", {"w": weight}, 0.0)], optim=optim)
    scales = torch.tensor([0.0, 1e-45, 1e-38, 1e-30, 1e-22, 1e-10, 1.0])  # of single gradients; small squares vanish
    largest, bound = 0.0, FACTS[name].largest_update(lr, norm, eps)
    for _ in range(steps):
        before = weight.detach().clone()
        draws = torch.randint(len(scales), (size,), generator=generator)
        weight.grad = scales[draws] * norm * (2 * torch.rand(size, generator=generator) - 1).sign()
        optimizer.step()
        assert torch.isfinite(weight).all()
        largest = max(largest, float((weight.detach() - before).abs().max()))
    assert largest <= bound * 1.001  # fp32 rounding
    if (name, settings) == ("adamw", {"betas": (0.999999, 0.0)}):  # a first moment that stays, the second one vanishes
        assert largest > 1e-6 * bound


@pytest.mark.parametrize("decay", [0.0, 1e-3, 0.1, 0.9, 9.9])
@pytest.mark.parametrize("momentum", [0.5, 0.99, LARGEST_MOMENTUM])
def test_weights_of_sgd_stay_within_the_sum_of_largest_updates(momentum: float, decay: float) -> None:
    """With a gradient that always pushes on: without decay the last updates reach the bound, with it they oscillate."""
    lr, norm, steps, start = 0.1, 1.0, 10_000, 3.0
    weight = torch.nn.Parameter(torch.tensor([start]))
    optim = OptimConfig(lr=lr, optimizer="sgd", momentum=momentum)
    optimizer = build_optimizer([ParameterGroup("matrix", {"w": weight}, decay)], optim=optim)
    optimizer.state[weight] = OPTIMIZERS["sgd"].new_state(weight, 0)
    bound = FACTS["sgd"].largest_update(lr, norm, 1.0)
    largest = furthest = 0.0
    for step in range(1, steps + 1):
        before, buffer = weight.item(), optimizer.state[weight]["momentum_buffer"].item()
        weight.grad = torch.tensor([norm if buffer >= 0 else -norm])
        optimizer.step()
        largest, furthest = max(largest, abs(weight.item() - before)), max(furthest, abs(weight.item()))
        assert furthest <= start + step * bound
    if decay == 0.0:
        assert largest == pytest.approx(lr * norm / (1 - momentum), rel=1e-3)
        assert (largest > 0.99 * bound) == (momentum == LARGEST_MOMENTUM)


def test_every_parameter_is_in_one_group_with_its_own_decay(tmp_path: Path) -> None:
    from train.tasks import build_task

    config = tiny_run(
        tmp_path,
        "optim.weight_decay=0.3",
        "optim.embedding_weight_decay=0.2",
        "optim.output_norm_weight_decay=0.1",
    )
    task = build_task(config)
    model = task.build_model()
    decay = {name: g.weight_decay for g in task.parameter_groups(model) for name in g.parameters}
    assert decay.keys() == dict(model.named_parameters()).keys()
    assert sum(len(g.parameters) for g in task.parameter_groups(model)) == len(decay)
    assert decay["model.embed_tokens.weight"] == 0.2
    assert decay["lm_head.weight"] == 0.3
    assert decay["model.layers.0.mlp.output_norm.weight"] == 0.1
    assert decay["model.layers.0.mlp.input_norm.weight"] == 0.0
    assert decay["model.layers.1.attention.branch.q_proj.weight"] == 0.3
