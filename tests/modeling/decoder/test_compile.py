"""torch.compile, by blocks and as a whole, changes nothing but the speed."""

from typing import Any

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from modeling.decoder.facts_periln import LOSS_CHUNK_ELEMENTS
from modeling.decoder.head_periln import chunk_loss
from modeling.decoder.modeling_periln import PeriLNForCausalLM

from .tiny_decoder import VOCAB_SIZE, loss_and_gradients, tiny_decoder

pytestmark = [
    pytest.mark.slow,  # the first compilation is: 20 s and more
    # torch 2.13 warns of itself
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning"),
]


def assert_equal_losses_and_gradients(
    compiled: PeriLNForCausalLM, plain: PeriLNForCausalLM, *, of_largest: float = 0.0
) -> None:
    """Compare with fixed tolerances, or, where gradients are large, with a share of each one's largest element."""
    loss, gradients = loss_and_gradients(plain.train())
    compiled_loss, compiled_gradients = loss_and_gradients(compiled.train())
    torch.testing.assert_close(compiled_loss, loss, atol=0, rtol=1e-6)  # measured: 2e-7
    for name, gradient in gradients.items():  # the largest elements are between 0.7 and 22
        atol = max(1e-4, of_largest * float(gradient.abs().max()))
        torch.testing.assert_close(compiled_gradients[name], gradient, atol=atol, rtol=0)  # measured: 2.6e-5


@pytest.mark.parametrize(
    "overrides",
    [
        {"norm_placement": "peri"},
        {"norm_placement": ("post", "pre", "output")},
        *(
            {"norm_placement": name, "gpas": True, "attention_gate": gate}
            for name, gate in (("keel", "head"), ("hybrid", "element"), ("sub", "element"))
        ),
    ],
    ids=str,
)
def test_compiled_blocks_give_equal_losses_and_gradients(
    overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSS_CHUNK_ELEMENTS, "cpu", 8 * VOCAB_SIZE)  # four chunks
    compiled, plain = (tiny_decoder(**overrides, z_loss_coefficient=0.01) for _ in range(2))
    compiled.compile_blocks()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    # Gates of order one shrink the stream and not its gradient, which grows to 1e6. Measured: 2.4e-5 of the largest
    # element, as far as either is from fp64.
    assert_equal_losses_and_gradients(compiled, plain, of_largest=1e-4 if overrides.get("gpas") else 0.0)


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


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("placement", ["pre", "post", "peri", "output"])
def test_a_training_pass_compiles_to_two_graphs_without_a_break(placement: str, checkpointing: bool) -> None:
    """One graph for all blocks, one for the loss: a break would leave kernels unfused and the host in the way."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = tiny_decoder(norm_placement=placement, num_hidden_layers=4, z_loss_coefficient=0.01).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    model.compile_blocks()
    for _ in range(2):  # the second pass must not compile again
        loss_and_gradients(model)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]


def test_the_compiled_loss_writes_logits_only_in_their_own_dtype() -> None:
    """An fp32 copy of bf16 logits would be twice their size, and two more passes over memory."""
    tokens, columns = 64, 4096
    logits, labels = torch.randn(tokens, columns).bfloat16(), torch.randint(columns, (tokens,))
    _, code = run_and_get_code(torch.compile(chunk_loss, dynamic=False), logits, labels, 1e-3, True)
    allocated = [line for line in code[0].splitlines() if f"({tokens}, {columns})" in line and "empty_strided" in line]
    assert len(allocated) <= 1
    assert all("bfloat16" in line for line in allocated)
