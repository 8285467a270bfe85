"""torch.compile, by blocks and as a whole, changes nothing but the speed."""

from typing import Any

import pytest
import torch

from modeling.decoder.facts_periln import LOSS_CHUNK_ELEMENTS
from modeling.decoder.modeling_periln import PeriLNForCausalLM

from .tiny_decoder import VOCAB_SIZE, loss_and_gradients, tiny_decoder

pytestmark = [
    pytest.mark.slow,  # the first compilation is: 20 s and more
    # torch 2.13 warns of itself
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning"),
]


def assert_equal_losses_and_gradients(compiled: PeriLNForCausalLM, plain: PeriLNForCausalLM) -> None:
    loss, gradients = loss_and_gradients(plain.train())
    compiled_loss, compiled_gradients = loss_and_gradients(compiled.train())
    torch.testing.assert_close(compiled_loss, loss, atol=0, rtol=1e-6)  # measured: 2e-7
    for name, gradient in gradients.items():  # the largest elements are between 0.7 and 22
        torch.testing.assert_close(compiled_gradients[name], gradient, atol=1e-4, rtol=0)  # measured: 2.6e-5


@pytest.mark.parametrize("placement", ["peri", ("post", "pre", "output")], ids=str)
def test_compiled_blocks_give_equal_losses_and_gradients(placement: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSS_CHUNK_ELEMENTS, "cpu", 8 * VOCAB_SIZE)  # four chunks
    compiled, plain = (tiny_decoder(norm_placement=placement, z_loss_coefficient=0.01) for _ in range(2))
    compiled.compile_blocks()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert_equal_losses_and_gradients(compiled, plain)


def test_a_model_compiled_as_a_whole_gives_equal_losses_and_gradients() -> None:
    compiled, plain = tiny_decoder(), tiny_decoder()
    compiled.compile(dynamic=False)
    assert_equal_losses_and_gradients(compiled, plain)


def test_compiled_blocks_share_their_code() -> None:
    """Six layers of one placement are compiled once, so that the first step does not wait for each."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = tiny_decoder(num_hidden_layers=6).train()
    model.compile_blocks()
    loss_and_gradients(model)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # a layer, and the loss
    assert not torch._dynamo.utils.counters["graph_break"]
