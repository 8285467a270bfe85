"""Factors of the learning rate: steps and state are those of plain torch with a rate for each parameter group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.ranks import Ranks
from tests.train.engine.test_engine import GLOBAL_BATCH, build, global_batch, here, take_step
from train.config.facts.optimizers import OPTIMIZERS
from train.config.run import EngineConfig, OptimConfig
from train.engine.engine import BatchPlan, Engine, wrap
from train.tasks.task import ParameterGroup

# eps far above rounding, so that AdamW's update is a smooth function of the gradient.
OPTIMS = {
    "adamw": OptimConfig(lr=1e-2, eps=1e-3, gradient_clipping=0.1),
    "sgd": OptimConfig(lr=1e-2, optimizer="sgd", gradient_clipping=0.1),
}
# Of the steps, as a schedule changes them; so large that a weight's rounding in fp32 is small beside its change.
RATES = {"adamw": (1e-2, 3e-2, 5e-3), "sgd": (0.3, 0.9, 0.15)}
# Worst case measured: 3.5e-6 after one step, 6.9e-6 after three. With one rate for all groups it is 0.95.
WEIGHT = 2e-5
STAGES = [
    pytest.param(stage, size, marks=() if size == 2 else pytest.mark.slow) for stage in (0, 1, 2, 3) for size in (1, 2)
]
Fragments = list[tuple[str, int, dict[str, Tensor]]]


def groups_of(model: nn.Module) -> list[ParameterGroup]:
    """Pretrained layers and biases, a new layer and its bias; weights of both kinds differ in the factor alone."""
    named = dict(model.named_parameters())
    roles = {
        "pretrained": (("0.weight", "2.weight"), 0.1, 1.0),
        "pretrained biases": (("0.bias", "2.bias"), 0.0, 2.0),
        "new": (("4.weight",), 0.1, 10.0),
        "new biases": (("4.bias",), 0.0, 20.0),
    }
    return [
        ParameterGroup(role, {name: named[name] for name in names}, decay, factor)
        for role, (names, decay, factor) in roles.items()
    ]


def start(settings: Mapping[str, Any], optim: OptimConfig) -> Engine:
    model, world = build()[0], here()
    plan = BatchPlan(GLOBAL_BATCH // world.size, 1)
    return wrap(model, groups_of(model), engine=EngineConfig(**settings), optim=optim, world=world, plan=plan)


def state_of(engine: Engine) -> Fragments:
    return [
        (fragment.name, fragment.start, {kind: tensor.clone() for kind, tensor in fragment.tensors.items()})
        for fragment in engine.owned_fragments()
    ]


def trained(settings: Mapping[str, Any], optim: OptimConfig, first: int, last: int, state: Any = None) -> Fragments:
    """Take the steps from `first` to `last`, after restoring `state`; return this rank's share of what results."""
    engine = start(settings, optim)
    if state is not None:
        engine.load(Reader(state), updates=first - 1)
    for step in range(first, last + 1):
        assert take_step(engine, step, 1, lr=RATES[optim.optimizer][step - 1])["applied"]
    found = state_of(engine)
    engine.close()
    return found


class Reader:
    """Whole tensors by kind and name."""

    def __init__(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._state = state

    def read(self, kind: str, name: str, start: int, numel: int) -> Tensor:
        return self._state[kind][name].reshape(-1)[start : start + numel]


def joined(shares: list[Fragments]) -> dict[str, dict[str, Tensor]]:
    """Join the shares of all ranks into whole tensors by kind and name."""
    fragments = sorted((f for share in shares for f in share), key=lambda fragment: fragment[:2])
    kinds = fragments[0][2].keys()
    names = dict.fromkeys(name for name, *_ in fragments)
    return {
        kind: {name: torch.cat([tensors[kind] for n, _, tensors in fragments if n == name]) for name in names}
        for kind in kinds
    }


def gradient_of(model: nn.Module, step: int) -> None:
    inputs, weights = global_batch(step)
    model.zero_grad()
    ((model(inputs).square().mean(dim=1) * weights).sum() / weights.sum()).backward()


def plain(optim: OptimConfig, steps: int) -> dict[str, Tensor]:
    """Return the weights after some steps in plain torch, with the rate of each group set by hand."""
    model = build()[0]
    groups = groups_of(model)
    described = [{"params": list(g.parameters.values()), "weight_decay": g.weight_decay} for g in groups]
    if optim.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(described, betas=optim.betas, eps=optim.eps)
    else:
        optimizer = torch.optim.SGD(described, momentum=0.9)
    for step in range(1, steps + 1):
        gradient_of(model, step)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        for torch_group, group in zip(optimizer.param_groups, groups, strict=True):
            torch_group["lr"] = RATES[optim.optimizer][step - 1] * group.lr_factor
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def largest_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest deviation of a weight, relative to the largest change of its tensor since the start."""
    initial = {name: parameter.detach() for name, parameter in build()[0].named_parameters()}
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - weight.reshape(-1)).abs().max() / (weight - initial[name]).abs().max())
        for name, weight in expected.items()
    )


@pytest.mark.parametrize("name", OPTIMS)
@pytest.mark.parametrize(("stage", "size"), STAGES)
def test_one_step_is_the_closed_form_at_each_groups_rate(ranks: Ranks, stage: int, size: int, name: str) -> None:
    model = build()[0]
    gradient_of(model, 1)
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    assert norm > 0.1  # so that it was clipped
    expected: dict[str, Tensor] = {}
    for group in groups_of(model):
        rate = RATES[name][0] * group.lr_factor
        for parameter_name, parameter in group.parameters.items():
            weight, gradient = parameter.detach(), parameter.grad
            assert gradient is not None
            if name == "sgd":  # w - lr (g + wd w): the momentum starts as the gradient
                expected[parameter_name] = weight - rate * (gradient + group.weight_decay * weight)
            else:  # (1 - lr wd) w - lr g / (|g| + eps): the moments of one gradient are g and g^2
                update = gradient / (gradient.abs() + OPTIMS[name].eps)
                expected[parameter_name] = (1 - rate * group.weight_decay) * weight - rate * update
    settings = {"zero_stage": stage, "precision": "fp32"}
    found = joined(ranks(size, trained, settings, OPTIMS[name], 1, 1))["weight"]
    assert largest_error(found, expected) < WEIGHT


@pytest.mark.parametrize("name", OPTIMS)
@pytest.mark.parametrize(("stage", "size"), STAGES)
def test_steps_equal_plain_torch_at_every_stage(ranks: Ranks, stage: int, size: int, name: str) -> None:
    settings = {"zero_stage": stage, "precision": "fp32"}
    found = joined(ranks(size, trained, settings, OPTIMS[name], 1, 3))["weight"]
    assert largest_error(found, plain(OPTIMS[name], 3)) < WEIGHT


@pytest.mark.parametrize("name", OPTIMS)
@pytest.mark.parametrize(
    ("first", "second"), [((0, 1), (3, 2)), ((3, 2), (1, 2)), ((1, 2), (2, 1)), ((2, 2), (0, 1)), ((1, 1), (1, 2))]
)
def test_state_moves_to_another_stage_and_world_size(
    ranks: Ranks, first: tuple[int, int], second: tuple[int, int], name: str
) -> None:
    """The groups are flattened by each stage; each weight keeps its own state, and its rate after the move."""
    before, after = ({"zero_stage": stage, "precision": "fp32"} for stage, _ in (first, second))
    state = joined(ranks(first[1], trained, before, OPTIMS[name], 1, 2))
    assert state.keys() == {"weight", *OPTIMIZERS[name].state}
    found = joined(ranks(second[1], trained, after, OPTIMS[name], 3, 3, state))["weight"]
    assert largest_error(found, plain(OPTIMS[name], 3)) < WEIGHT


def rates_in_bf16(settings: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Take a step; return by parameter the change over the buffer of SGD, and the largest deviation from that."""
    engine = start(settings, OPTIMS["sgd"])
    before = state_of(engine)
    take_step(engine, 1, 1, lr=0.3)
    found = []
    for (name, _, old), (_, _, new) in zip(before, state_of(engine), strict=True):
        change, buffer = (old["weight"] - new["weight"]).double(), new["momentum_buffer"].double()
        rate = float(change @ buffer / buffer.square().sum())
        found.append((name, rate, float((change - rate * buffer).abs().max() / change.abs().max())))
    engine.close()
    return found


@pytest.mark.parametrize(("stage", "gradients"), [(0, "bf16"), (1, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_the_masters_of_a_bf16_network_move_at_the_rates_of_their_groups(
    ranks: Ranks, stage: int, gradients: str
) -> None:
    """DeepSpeed has a class of its own for stages 0 and 1. Worst case measured: rate 2.2e-6, deviation 9.5e-6."""
    factors = {name: group.lr_factor for group in groups_of(build()[0]) for name in group.parameters}
    settings = {"zero_stage": stage, "precision": "bf16", "gradient_dtype": gradients}
    found = [entry for share in ranks(2, rates_in_bf16, settings) for entry in share]
    assert {name for name, *_ in found} == factors.keys()
    for name, rate, deviation in found:
        assert rate == pytest.approx(0.3 * factors[name], rel=1e-4)
        assert deviation < 1e-4
