"""The chunked loss against cross entropy on full logits, and that full logits in fp32 never exist."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from modeling.decoder.facts_periln import LOSS_CHUNK_ELEMENTS
from modeling.decoder.head_periln import IGNORE_INDEX, LanguageModelHead
from modeling.decoder.modeling_periln import PeriLNForCausalLM

from .tiny_decoder import VOCAB_SIZE, tiny_config, tiny_decoder, tiny_tokens

NUM_TOKENS = 23
PADDED = 128  # VOCAB_SIZE as a multiple of 64
CHUNK_TOKENS = [1, 4, 8, 16, 64]  # 23 is a multiple of none but 1; 64 is one chunk


def head_inputs(z: float, dtype: torch.dtype = torch.float32) -> tuple[LanguageModelHead, Tensor, Tensor]:
    torch.manual_seed(0)
    head = LanguageModelHead(tiny_config(z_loss_coefficient=z)).to(dtype)
    with torch.no_grad():
        head.weight.normal_(std=0.3)
    hidden = torch.randn(NUM_TOKENS, head.in_features, dtype=dtype, requires_grad=True)
    labels = torch.randint(VOCAB_SIZE, (NUM_TOKENS,))
    labels[[0, 5, 22]] = IGNORE_INDEX
    return head, hidden, labels


def full_loss(head: LanguageModelHead, hidden: Tensor, labels: Tensor, z: float) -> Tensor:
    """The same loss through logits as a whole, in fp32, by autograd."""
    logits = (hidden.float() @ head.weight.float().T)[:, :VOCAB_SIZE]
    valid = labels != IGNORE_INDEX
    z_loss = z * logits[valid].logsumexp(-1).square().sum()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum") + z_loss


def gradients(head: LanguageModelHead, hidden: Tensor, loss: Tensor, by: float = 1.0) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss * by, (hidden, head.weight))


@pytest.fixture(params=CHUNK_TOKENS)
def chunk_tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(LOSS_CHUNK_ELEMENTS, "cpu", request.param * VOCAB_SIZE)
    return request.param


@pytest.mark.parametrize("z", [0.0, 0.1])
def test_loss_and_gradients_equal_cross_entropy(z: float, chunk_tokens: int) -> None:
    head, hidden, labels = head_inputs(z)
    ours, theirs = head(hidden, labels), full_loss(head, hidden, labels, z)
    torch.testing.assert_close(ours.loss_sum, theirs, atol=0, rtol=1e-6)  # measured: 1.2e-7
    for our_grad, their_grad in zip(
        gradients(head, hidden, ours.loss_sum, 0.37), gradients(head, hidden, theirs, 0.37), strict=True
    ):
        torch.testing.assert_close(our_grad, their_grad, atol=1e-5, rtol=0)  # measured: 1.3e-6


def test_z_loss_is_its_share_of_the_loss() -> None:
    head, hidden, labels = head_inputs(0.1)
    plain, _, _ = head_inputs(0.0)
    with_z, without = head(hidden, labels), plain(hidden, labels)
    torch.testing.assert_close(with_z.loss_sum - with_z.z_loss_sum, without.loss_sum)
    assert with_z.z_loss_sum > 1
    assert not with_z.z_loss_sum.requires_grad
    assert without.z_loss_sum == 0


def test_ignored_tokens_get_no_gradient() -> None:
    head, hidden, labels = head_inputs(0.1)
    grad_hidden, _ = gradients(head, hidden, head(hidden, labels).loss_sum)
    assert ((grad_hidden == 0).all(1) == (labels == IGNORE_INDEX)).all()


def test_padding_rows_get_no_gradient() -> None:
    head, hidden, labels = head_inputs(0.1)
    _, grad_weight = gradients(head, hidden, head(hidden, labels).loss_sum)
    assert ((grad_weight != 0).any(1) == (torch.arange(head.out_features) < VOCAB_SIZE)).all()


def test_padding_rows_do_not_change_the_loss() -> None:
    head, hidden, labels = head_inputs(0.1)
    before = head(hidden, labels).loss_sum
    with torch.no_grad():
        head.weight[VOCAB_SIZE:] = 1e4
    assert head(hidden, labels).loss_sum == before


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_gives_the_loss_and_gradients_of_the_cpu(dtype: torch.dtype) -> None:
    """In bf16 a gradient is rounded once per product and once at the end, on both: 0.004 each."""
    head, hidden, labels = head_inputs(0.1, dtype)
    wanted = head(hidden, labels).loss_sum
    wanted_grads = gradients(head, hidden, wanted)
    on_gpu = hidden.detach().cuda().requires_grad_()
    head.cuda()
    loss = head(on_gpu, labels.cuda()).loss_sum
    torch.testing.assert_close(loss.cpu(), wanted, atol=0, rtol=1e-5 if dtype == torch.float32 else 2e-3)
    for grad, expected in zip(gradients(head, on_gpu, loss), wanted_grads, strict=True):
        error = (grad.cpu().float() - expected.float()).norm() / expected.float().norm()
        assert error < (1e-4 if dtype == torch.float32 else 0.02)


def test_a_nan_gradient_stays_nan() -> None:
    head, hidden, labels = head_inputs(0.0)
    for grad in gradients(head, hidden, head(hidden, labels).loss_sum, float("nan")):
        assert grad.isnan().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_hidden_state_makes_the_loss_non_finite(value: float) -> None:
    head, hidden, labels = head_inputs(0.0)
    with torch.no_grad():
        hidden[3, 0] = value
    loss = head(hidden, labels).loss_sum
    assert not loss.isfinite()
    assert not gradients(head, hidden, loss)[1].isfinite().all()


def test_bf16_is_as_close_as_bf16_allows(chunk_tokens: int) -> None:
    head, hidden, labels = head_inputs(0.1, torch.bfloat16)
    ours, theirs = head(hidden, labels).loss_sum, full_loss(head, hidden, labels, 0.1)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=0, rtol=2e-3)  # measured: 1.4e-4
    for our_grad, their_grad in zip(gradients(head, hidden, ours), gradients(head, hidden, theirs), strict=True):
        assert our_grad.dtype == torch.bfloat16
        error = (our_grad.float() - their_grad.float()).norm() / their_grad.float().norm()
        assert error < 0.01  # measured: 0.0046; bf16 has 8 bits: 0.004 per rounding


def test_bf16_gradients_have_the_right_length() -> None:
    """Elements may be rounded either way; 1/3 rounded to bf16 before the product would make all 0.2 % longer."""
    head, hidden, labels = head_inputs(0.0, torch.bfloat16)
    ours = gradients(head, hidden, head(hidden, labels).loss_sum, 1 / 3)
    theirs = gradients(head, hidden, full_loss(head, hidden, labels, 0.0), 1 / 3)
    for our_grad, their_grad in zip(ours, theirs, strict=True):
        length = (our_grad.double() * their_grad.double()).sum() / their_grad.double().square().sum()
        assert length == pytest.approx(1, abs=5e-4)  # measured: 2e-4


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_gradients_are_given_to_those_who_want_them(frozen: str) -> None:
    head, hidden, labels = head_inputs(0.0)
    wanted = gradients(head, hidden, head(hidden, labels).loss_sum)
    hidden.requires_grad_(frozen == "weight")
    head.weight.requires_grad_(frozen == "hidden")
    loss = head(hidden, labels).loss_sum
    assert loss.requires_grad == (frozen != "both")
    if loss.requires_grad:
        loss.backward()
    for tensor, grad in zip((hidden, head.weight), wanted, strict=True):
        if tensor.requires_grad:
            torch.testing.assert_close(tensor.grad, grad)


# ------------------------------------------------------------------------------------------------------------ memory


class LargestTensor(TorchDispatchMode):
    """Records the largest fp32 tensor of tokens by vocabulary, and the number of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        for tensor in out if isinstance(out, tuple | list) else (out,):  # type: ignore[attr-defined]
            is_scores = isinstance(tensor, Tensor) and tensor.ndim == 2 and tensor.shape[1] in (VOCAB_SIZE, PADDED)
            if is_scores and len(tensor) <= NUM_TOKENS and tensor.dtype == torch.float32:
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("training", [True, False])
def test_fp32_logits_exist_one_chunk_at_a_time(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSS_CHUNK_ELEMENTS, "cpu", 4 * VOCAB_SIZE)
    head, hidden, labels = head_inputs(0.1, torch.bfloat16)
    with torch.set_grad_enabled(training), LargestTensor() as largest:
        loss = head(hidden, labels).loss_sum
        if training:
            loss.backward()
    assert largest.elements == 4 * PADDED


def test_the_watch_on_memory_sees_full_logits() -> None:
    head, hidden, labels = head_inputs(0.1, torch.bfloat16)
    with LargestTensor() as largest:
        full_loss(head, hidden, labels, 0.1).backward()
    assert largest.elements == NUM_TOKENS * PADDED


def test_evaluation_does_no_gradient_work(chunk_tokens: int) -> None:
    head, hidden, labels = head_inputs(0.1)
    num_chunks = -(-NUM_TOKENS // chunk_tokens)
    with torch.no_grad(), LargestTensor() as evaluation:
        head(hidden, labels)
    with LargestTensor() as training:
        head(hidden, labels)
    assert evaluation.products == num_chunks
    assert training.products == 3 * num_chunks


# --------------------------------------------------------------------------------------------- the model's interface


def reference_loss(model: PeriLNForCausalLM, tokens: Tensor, labels: Tensor, reduction: str) -> Tensor:
    logits = model(tokens).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction=reduction)


@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_labels_are_shifted_and_averaged_as_transformers_does(tie_word_embeddings: bool) -> None:
    model, tokens = tiny_decoder(tie_word_embeddings=tie_word_embeddings), tiny_tokens()
    labels = tokens.clone()
    labels[0, :4] = IGNORE_INDEX
    ours, theirs = model(tokens, labels=labels).loss, reference_loss(model, tokens, labels, "mean")
    torch.testing.assert_close(ours, theirs, atol=0, rtol=1e-6)
    parameters = list(model.parameters())
    for our_grad, their_grad in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True
    ):
        torch.testing.assert_close(our_grad, their_grad, atol=1e-6, rtol=1e-4)  # measured: 9.6e-7


def test_shifted_labels_with_one_item_give_the_sum() -> None:
    model, tokens = tiny_decoder(), tiny_tokens()
    ours = model(input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:], num_items_in_batch=1).loss
    torch.testing.assert_close(ours, reference_loss(model, tokens, tokens, "sum"), atol=0, rtol=1e-6)


@pytest.mark.parametrize(("training", "requested"), [(True, None), (True, False), (False, False)])
def test_the_chunked_loss_returns_no_logits(training: bool, requested: bool | None) -> None:
    model = tiny_decoder().train(training)
    output = model(tiny_tokens(), labels=tiny_tokens(), return_logits=requested)
    assert output.logits is None
    assert output.z_loss is None  # no coefficient, no share
    assert output.loss.dtype == torch.float32


@pytest.mark.parametrize(("training", "requested"), [(False, None), (True, True), (False, True)])
@pytest.mark.parametrize("overrides", [{}, {"z_loss_coefficient": 0.1, "tie_word_embeddings": True}], ids=str)
def test_a_loss_beside_logits_equals_the_chunked_one(
    training: bool, requested: bool | None, overrides: dict[str, Any]
) -> None:
    model, tokens = tiny_decoder(**overrides).train(training), tiny_tokens()
    labels = tokens.clone()
    labels[0, :4] = labels[1, 9] = IGNORE_INDEX
    both = model(tokens, labels=labels, return_logits=requested)
    chunked = model(tokens, labels=labels, return_logits=False)
    torch.testing.assert_close(both.logits, model(tokens).logits, atol=0, rtol=0)
    torch.testing.assert_close(both.loss, chunked.loss, atol=0, rtol=1e-6)  # measured: 1.3e-7
    torch.testing.assert_close(both.z_loss, chunked.z_loss, atol=0, rtol=1e-6)
    assert both.z_loss is None or not both.z_loss.requires_grad
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(output.loss, parameters) for output in (both, chunked)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)  # measured: 5e-7


def test_logits_beside_a_loss_can_be_those_of_the_last_tokens() -> None:
    model, tokens = tiny_decoder(), tiny_tokens()
    output = model(tokens, labels=tokens, logits_to_keep=3)
    torch.testing.assert_close(output.logits, model(tokens).logits[:, -3:], atol=0, rtol=0)
    torch.testing.assert_close(output.loss, model(tokens, labels=tokens).loss, atol=0, rtol=0)


def test_z_loss_of_the_model_is_per_item_too() -> None:
    model, tokens = tiny_decoder(z_loss_coefficient=0.01), tiny_tokens()
    mean, total = model(tokens, labels=tokens), model(tokens, labels=tokens, num_items_in_batch=1)
    torch.testing.assert_close(total.z_loss, 32 * mean.z_loss)  # 2 x 16 tokens have a successor
    torch.testing.assert_close(total.loss, 32 * mean.loss)
