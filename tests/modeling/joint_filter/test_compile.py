"""torch.compile changes nothing of a filter but the speed."""

from __future__ import annotations

import pytest
import torch

from .plain_filter import random_filter, random_pair

pytestmark = [
    # torch 2.13 warns of itself
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning"),
]


@pytest.mark.parametrize("architecture", ["fdkn", "dkn"])
@pytest.mark.parametrize(  # a first compilation takes 20 s and more
    "training", [pytest.param(True, marks=pytest.mark.slow), pytest.param(False, marks=pytest.mark.nightly)]
)
def test_a_compiled_filter_gives_equal_outputs_and_gradients(architecture: str, training: bool) -> None:
    """In double: both differ by rounding, which a deep random network and its offsets make 1e-4 of in fp32."""
    compiled, plain = (random_filter(architecture=architecture).double().train(training) for _ in range(2))
    compiled.compile(dynamic=False, fullgraph=True)
    guidance, target = (x.double() for x in random_pair(22, 25))
    found = []
    for model in (compiled, plain):
        given = target.clone().requires_grad_(training)  # iterated filtering learns through its own output
        with torch.set_grad_enabled(training):
            output = model(guidance, given).output
        gradients = torch.autograd.grad(output.square().sum(), [given, *model.parameters()]) if training else []
        found.append((output.detach(), gradients))
    (output, gradients), (plain_output, plain_gradients) = found
    torch.testing.assert_close(output, plain_output, atol=1e-10, rtol=0)
    for ours, theirs in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9 * max(1, theirs.abs().max().item()), rtol=0)
    statistics = zip(compiled.state_dict().items(), plain.state_dict().values(), strict=True)
    for (name, ours), theirs in statistics:
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10, msg=name)
