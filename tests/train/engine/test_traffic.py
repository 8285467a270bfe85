"""Cost that DeepSpeed adds to a micro-batch: bytes per parameter, counted, and no wait for the device."""

from __future__ import annotations

import contextlib
import io
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from tests.ranks import Ranks
from tests.train.engine.test_engine import OPTIM, here
from tests.train.engine.traffic import Traffic
from train.config.run import EngineConfig
from train.engine.engine import BatchPlan, wrap
from train.tasks.task import ParameterGroup

WIDTH = 512  # a matrix above stage 3's threshold for parameters that stay whole
MICRO_BATCHES = 3


class Cost(NamedTuple):
    """What the engine costs in a step of several micro-batches."""

    micro: float  # bytes per parameter, of a micro-batch that is not the last
    last: float  # of the last, which ends with the reduction over ranks
    waits_in_passes: int
    waits_in_update: int


def counted(settings: dict[str, Any]) -> Cost:
    """The costs of the second step of a single matrix."""
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, WIDTH, bias=False)
    engine = wrap(
        model,
        [ParameterGroup("matrix", dict(model.named_parameters()), 0.1)],
        engine=EngineConfig(**settings),
        optim=OPTIM,
        world=here(),
        plan=BatchPlan(4, MICRO_BATCHES),
    )
    elements = WIDTH**2
    inputs = torch.randn(4, WIDTH, dtype=torch.bfloat16 if engine.precision == "bf16" else torch.float32)

    def step() -> tuple[list[Traffic], Traffic]:
        passes, update = [Traffic(at_least=elements // 2) for _ in range(MICRO_BATCHES)], Traffic()
        for traffic in passes:
            with traffic:
                engine.backward(engine.model(inputs).float().square().sum(), total_weight=torch.ones(()))
        with update:
            engine.step(lr=1e-3)
        return passes, update

    step()  # the first creates buffers
    passes, update = step()
    engine.close()
    micro, last = (traffic.bytes.total() / elements for traffic in (passes[1], passes[-1]))
    return Cost(micro, last, sum(traffic.waits.total() for traffic in passes), update.waits.total())


# One rank. In bf16 a micro-batch must read each gradient (2) and read and write its fp32 sum (8). An update waits at
# least once, to learn whether the gradient is finite: it must not reach the weights otherwise.
EXPECTED = {
    (0, "fp32"): Cost(12, 12, 0, 1),  # the sum is autograd's
    (1, "bf16"): Cost(10, 10, 0, 2),  # finite? above the limit?
    (2, "bf16"): Cost(46, 46, 0, 3),  # copied to DeepSpeed's buckets, divided, and reduced in every micro-batch
    (3, "bf16"): Cost(46, 46, 0, 1),
}


@pytest.mark.parametrize(("stage", "precision"), list(EXPECTED))
def test_a_micro_batch_moves_no_more_bytes_than_counted_and_waits_for_nothing(
    ranks: Ranks, stage: int, precision: str
) -> None:
    assert ranks(1, counted, {"zero_stage": stage, "precision": precision})[0] == EXPECTED[stage, precision]


def printed_at_the_start() -> str:
    model = nn.Linear(8, 8)
    group = ParameterGroup("all", dict(model.named_parameters()), 0.0)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        engine = wrap(
            model,
            [group],
            engine=EngineConfig(zero_stage=1, precision="bf16"),
            optim=OPTIM,
            world=here(),
            plan=BatchPlan(1, 1),
        )
    engine.close()
    return printed.getvalue()


def test_the_start_prints_nothing(ranks: Ranks) -> None:
    assert ranks(1, printed_at_the_start)[0] == ""
