"""Every norm placement and switch against a reference of a few lines, written from the papers' equations.

The reference reads the state dict alone and shares no code with the model. Shapes: B batch, T tokens, D model, H query
heads, G key and value heads, K head dim, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modeling.decoder.facts_placements_periln import CHOICES, PATTERNS, PLACEMENTS
from modeling.decoder.modeling_periln import PeriLNForCausalLM

from .tiny_decoder import tiny_config, tiny_tokens

LAYERS, HEADS, GROUPS, EPS = 5, 4, 2, 1e-5
TOLERANCE = 1e-10  # relative, in fp64; measured: 4e-14. What must not pass: any constant or norm left out (last test).

Function = Callable[[Tensor], Tensor]


def sub_layer(name: str, layer: int, norms: dict[str, Function], f: Function, x: Tensor) -> Tensor:
    """The new stream x' by the equation of each paper; layers l count from 1, L = LAYERS."""
    n_in, n_out, n = (norms.get(each, lacking) for each in ("input_norm", "output_norm", "stream_norm"))
    equations: dict[str, Callable[[], Tensor]] = {
        "pre": lambda: x + f(n_in(x)),
        "post": lambda: n(x + f(x)),
        "peri": lambda: x + n_out(f(n_in(x))),
        "output": lambda: x + n_out(f(x)),
        "peri_depth_scaled": lambda: x + n_out(f(n_in(x))),
        "lns": lambda: x + f(n_in(x) / math.sqrt(layer)),
        "lns_learned": lambda: x + f(n_in(x)),
        "deepnorm": lambda: n((2 * LAYERS) ** 0.25 * x + f(x)),
        "keel": lambda: n(2 * LAYERS * x + f(n_in(x))),
        "hybrid attention": lambda: x + f(x),
        "hybrid mlp": lambda: n(x) + f(n(x)),
        "sub": lambda: x + f(n_in(x)),
    }
    return equations[name]()


def lacking(x: Tensor) -> Tensor:
    raise AssertionError("the placement lacks this norm")


def norm_of(state: dict[str, Tensor], name: str, kind: str) -> Function:
    weight = state[f"{name}.weight"]

    def rms(x: Tensor) -> Tensor:
        return weight * x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt()

    def layer(x: Tensor) -> Tensor:
        return weight * (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + EPS).sqrt()

    def dyt(x: Tensor) -> Tensor:
        return weight * (state[f"{name}.alpha"] * x).tanh() + state[f"{name}.bias"]

    return {"rmsnorm": rms, "layernorm": layer, "dyt": dyt}[kind]


def reference(state: dict[str, Tensor], tokens: Tensor, names: list[str], *, kind: str) -> Tensor:
    """The logits (B, T, V) of a decoder with these placements, one per layer."""
    norm = lambda name: norm_of(state, name, kind)  # noqa: E731

    def attention(layer: int, x: Tensor) -> Tensor:
        at = f"model.layers.{layer}.attention.branch"
        q, k, v = ((x @ state[f"{at}.{each}_proj.weight"].T).unflatten(-1, (-1, 12)).transpose(1, 2) for each in "qkv")
        if f"{at}.q_norm.weight" in state:
            q, k = norm(f"{at}.q_norm")(q), norm(f"{at}.k_norm")(k)
        if f"{at}.v_norm.weight" in state:
            v = norm(f"{at}.v_norm")(v)
        q, k = rope(q), rope(k)
        k, v = (each.repeat_interleave(HEADS // GROUPS, 1) for each in (k, v))
        mask = torch.full((x.shape[1], x.shape[1]), -math.inf, dtype=x.dtype).triu(1)
        out = ((q @ k.mT / math.sqrt(12) + mask).softmax(-1) @ v).transpose(1, 2)  # (B, T, H, K)
        if f"{at}.attention_gate.weight" in state:
            gate = (x @ state[f"{at}.attention_gate.weight"].T).sigmoid()
            out = out * gate.reshape(*gate.shape[:2], HEADS, -1)
        out = out.flatten(2)
        if f"{at}.inner_norm.weight" in state:
            out = norm(f"{at}.inner_norm")(out)
        return out @ state[f"{at}.o_proj.weight"].T

    def mlp(layer: int, x: Tensor) -> Tensor:
        at = f"model.layers.{layer}.mlp.branch"
        inner = F.silu(x @ state[f"{at}.gate_proj.weight"].T) * (x @ state[f"{at}.up_proj.weight"].T)
        if f"{at}.inner_norm.weight" in state:
            inner = norm(f"{at}.inner_norm")(inner)
        return inner @ state[f"{at}.down_proj.weight"].T

    x = state["model.embed_tokens.weight"][tokens]
    if "model.embedding_norm.weight" in state:
        x = norm("model.embedding_norm")(x)
    for index, name in enumerate(names):
        for branch, f in (("attention", attention), ("mlp", mlp)):
            at = f"model.layers.{index}.{branch}"
            norms = {
                each: norm(f"{at}.{each}")
                for each in ("input_norm", "output_norm", "stream_norm")
                if f"{at}.{each}.weight" in state
            }
            name_here = f"hybrid {branch}" if name == "hybrid" else name
            x = sub_layer(name_here, index + 1, norms, lambda y, f=f, i=index: f(i, y), x)
    return norm("model.norm")(x) @ state["lm_head.weight"][:90].T


def rope(x: Tensor) -> Tensor:
    """Turn pairs (x_i, x_{i+K/2}) by t theta^(-2i/K), angles in fp32 as in every decoder of transformers."""
    tokens, width = x.shape[2:]
    angles = torch.arange(tokens)[:, None].float() * (1.0 / 10_000 ** (torch.arange(0, width, 2).float() / width))
    cos, sin = angles.cos().double(), angles.sin().double()
    a, b = x[..., : width // 2], x[..., width // 2 :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def decoder(**overrides: Any) -> PeriLNForCausalLM:
    """A decoder in fp64 in which no scale is one, no gate or bias is zero, and every activation is of order one."""
    torch.manual_seed(0)
    eps = {} if overrides.get("norm_kind") == "dyt" else {"norm_eps": EPS}
    shape = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS}
    model = PeriLNForCausalLM(tiny_config(**shape | {"norm_eps": 1e-6} | eps | overrides)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


def assert_equals_reference(model: PeriLNForCausalLM, names: list[str]) -> None:
    tokens, kind = tiny_tokens(), model.config.norm_kind
    state: dict[str, Tensor] = dict(model.named_parameters())
    state["lm_head.weight"] = model.lm_head.weight
    expected, found = reference(state, tokens, names, kind=kind), model(tokens).logits
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
    direction = torch.randn(expected.shape, dtype=torch.double, generator=torch.Generator().manual_seed(3))
    parameters = list(model.parameters())
    ours = torch.autograd.grad((found * direction).sum(), parameters)
    theirs = torch.autograd.grad((expected * direction).sum(), parameters)
    largest = max(float(other.abs().max()) for other in theirs)
    for (name, _), mine, other in zip(model.named_parameters(), ours, theirs, strict=True):
        scale = max(float(other.abs().max()), 1e-4 * largest)  # stacked tanh lets gradients vanish, and their digits
        assert (mine - other).abs().max() <= TOLERANCE * scale, name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in PLACEMENTS
        for kind in ("rmsnorm", "layernorm", "dyt")
        if (name, kind) != ("keel", "dyt")
    ],
)
def test_values_and_gradients_follow_the_equation(name: str, kind: str) -> None:
    assert_equals_reference(decoder(norm_placement=name, norm_kind=kind), [name] * LAYERS)


@pytest.mark.parametrize(
    ("name", "names"),
    [("mix", ["post", "pre", "pre", "pre", "pre"]), ("hybrid_star", ["pre", "hybrid", "hybrid", "hybrid", "hybrid"])],
)
def test_a_pattern_is_the_list_of_its_layers(name: str, names: list[str]) -> None:
    assert_equals_reference(decoder(norm_placement=name), names)


@pytest.mark.parametrize("gate", ["head", "element"])
@pytest.mark.parametrize("name", ["peri", "hybrid", "sub"])
def test_gates_multiply_the_output_of_attention(name: str, gate: str) -> None:
    model = decoder(norm_placement=name, attention_gate=gate, embedding_norm=True)
    assert_equals_reference(model, [name] * LAYERS)


# ------------------------------------------------------------------------------------------------------------- switches


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_residual_factor_multiplies_what_is_added(name: str) -> None:
    """b f is what f is when the last matrix, or the output norm's scale, is b times as large."""
    factor, plain = decoder(norm_placement=name, residual_factor=0.3), decoder(norm_placement=name)
    last = "output_norm.weight" if PLACEMENTS[name].has_output_norms else "_proj.weight"
    with torch.no_grad():
        for parameter_name, parameter in plain.named_parameters():
            is_last = parameter_name.endswith(last) and ("_norm" in last or parameter_name.split(".")[-2] in LAST)
            parameter.mul_(0.3 if is_last else 1.0)
    tokens = tiny_tokens()
    torch.testing.assert_close(factor(tokens).logits, plain(tokens).logits, rtol=0, atol=1e-10)


LAST = ("o_proj", "down_proj")


@pytest.mark.parametrize("name", PLACEMENTS)
def test_gpas_shrinks_the_stream_but_not_its_gradient(name: str) -> None:
    """x - silu(g) sg(x), after the addition, or before it where a norm follows; its gradient is that of x."""
    model = decoder(norm_placement=name, gpas=True, num_hidden_layers=1)
    block: Any = model.model.layers[0]
    gate = 0.7
    norm_follows = PLACEMENTS[name].mlp.stream_norm and not PLACEMENTS[name].mlp.normalizes_first
    with torch.no_grad():
        block.gpas_gate.fill_(gate)
    residual, x = block.mlp, torch.randn(2, 3, 48, dtype=torch.double, requires_grad=True)
    shrunk = gate / (1 + math.exp(-gate))  # silu(g)
    y, plain = residual(x, gpas_gate=block.gpas_gate), residual(x)
    if not norm_follows:
        torch.testing.assert_close(y, (1 - shrunk) * plain)
        direction = torch.randn_like(y)
        (with_gate,) = torch.autograd.grad(y, x, direction, retain_graph=True)
        (without,) = torch.autograd.grad(plain, x, direction)
        torch.testing.assert_close(with_gate, without)
        (of_gate,) = torch.autograd.grad(y, block.gpas_gate, direction)
        slope = 1 / (1 + math.exp(-gate)) * (1 + gate * (1 - 1 / (1 + math.exp(-gate))))
        torch.testing.assert_close(of_gate, -slope * (direction * plain).sum()[None])
        return
    stream, f = PLACEMENTS[name].stream_factor.value(1, 1), residual.branch
    added = f(residual.input_norm(x) if PLACEMENTS[name].mlp.input_norm else x)
    added = residual.output_norm(added) if PLACEMENTS[name].mlp.output_norm else added
    torch.testing.assert_close(y, residual.stream_norm(stream * (1 - shrunk) * x + added))


@pytest.mark.parametrize("name", CHOICES)
def test_gpas_starts_as_if_it_were_not_there(name: str) -> None:
    torch.manual_seed(0)
    plain = PeriLNForCausalLM(tiny_config(norm_placement=name, num_hidden_layers=4)).eval()
    torch.manual_seed(0)
    gated = PeriLNForCausalLM(tiny_config(norm_placement=name, num_hidden_layers=4, gpas=True)).eval()
    tokens = tiny_tokens()
    assert torch.equal(plain(tokens).logits, gated(tokens).logits)


# ---------------------------------------------------------------------------------------------------------------- start


def fresh(seed: int = 0, **overrides: Any) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    config = tiny_config(num_hidden_layers=8, hidden_size=64, intermediate_size=192, norm_eps=1e-6, **overrides)
    return PeriLNForCausalLM(config).state_dict()


SWITCHES: list[dict[str, Any]] = [
    *({"norm_placement": name} for name in CHOICES),
    {"gpas": True},
    {"norm_kind": "dyt"},
    {"qk_norm": "head", "embedding_norm": True, "final_norm": False},
    *({"attention_gate": gate, "norm_placement": "hybrid"} for gate in ("head", "element")),
]


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_models_that_share_a_seed_share_the_draws_of_the_matrices_that_both_have(changes: dict[str, Any]) -> None:
    """Differences between placements are paired: the same random numbers, times each one's standard deviation."""
    ours, pre = fresh(**changes), fresh(norm_placement="pre")
    for name, matrix in pre.items():
        if matrix.ndim == 2:
            factor = float(ours[name].std() / matrix.std())
            torch.testing.assert_close(ours[name], factor * matrix, rtol=1e-4, atol=1e-7)
    assert not torch.equal(fresh(1, **changes)["lm_head.weight"], pre["lm_head.weight"])


def test_gates_depend_on_seed_and_layer() -> None:
    one, other = (fresh(seed, attention_gate="element") for seed in (0, 1))
    name = "model.layers.{}.attention.branch.attention_gate.weight"
    assert torch.equal(one[name.format(3)], fresh(0, attention_gate="element")[name.format(3)])
    gates = [state[name.format(layer)].flatten() for state in (one, other) for layer in range(8)]
    assert len({tuple(gate[:4].tolist()) for gate in gates}) == len(gates)  # no two, of any layers and seeds


def test_matrices_start_as_their_placement_demands() -> None:
    """Standard deviations by hand, L = 8, D = 64, F = 192, head dim 16, 4 and 2 heads."""
    state = {name: fresh(norm_placement=name) for name in ("deepnorm", "sub", "hybrid", "peri")}

    def std(placement: str, matrix: str) -> float:
        tensors = [t for name, t in state[placement].items() if name.endswith(f"{matrix}_proj.weight")]
        return float(torch.stack(tensors).double().pow(2).mean().sqrt())

    def xavier(rows: int, columns: int) -> float:
        return math.sqrt(2 / (rows + columns))

    rows = {"q": (64, 64), "k": (32, 64), "v": (32, 64), "o": (64, 64), "gate": (192, 64), "up": (192, 64)}
    for name, (out, width) in (rows | {"down": (64, 192)}).items():
        scaled = name not in "qk"
        assert std("deepnorm", name) == pytest.approx(xavier(out, width) * (64**-0.25 if scaled else 1), rel=0.02)
        assert std("sub", name) == pytest.approx(xavier(out, width) * (math.log(16) ** 0.5 if scaled else 1), rel=0.02)
        to_stream = 4.0 if name in ("o", "down") else 1.0  # sqrt(2 L)
        assert std("hybrid", name) == pytest.approx(1 / math.sqrt(2.5 * 64) / to_stream, rel=0.02)
        assert std("peri", name) == pytest.approx(0.02, rel=0.02)


def test_scales_start_as_their_placement_demands() -> None:
    for name, tensor in fresh(norm_placement="peri_depth_scaled").items():
        if "norm" in name:
            assert (tensor == (torch.tensor(8**-0.5) if "output_norm" in name else 1)).all(), name
    for name, tensor in fresh(norm_placement="lns_learned").items():
        if "input_norm" in name:
            assert (tensor == torch.tensor((int(name.split(".")[2]) + 1) ** -0.5)).all(), name
    for name, tensor in fresh(norm_kind="dyt", dyt_alpha=0.25).items():
        if tensor.ndim == 1 and "norm" in name:
            assert (tensor == {"weight": 1, "alpha": 0.25, "bias": 0}[name.split(".")[-1]]).all(), name


def test_a_list_has_the_initialization_of_each_layer() -> None:
    state = fresh(norm_placement=("deepnorm", *("pre",) * 6, "hybrid"))
    stds = [float(state[f"model.layers.{layer}.mlp.branch.up_proj.weight"].std()) for layer in (0, 3, 7)]
    expected = [math.sqrt(2 / 256) * 64**-0.25, 0.02, 1 / math.sqrt(160)]
    assert stds == pytest.approx(expected, rel=0.03)


# ------------------------------------------------------------------------------------------------------- what must fail


@pytest.mark.parametrize("name", ["lns", "deepnorm", "keel", "hybrid", "sub", "mix"])
def test_the_reference_tells_a_placement_from_its_nearest(name: str) -> None:
    """Without its constant, its second norm or its first layers, a placement is another function."""
    model = decoder(norm_placement=name)
    nearest = {"lns": "pre", "deepnorm": "post", "keel": "post", "hybrid": "sub", "sub": "peri", "mix": "pre"}[name]
    other = decoder(norm_placement=nearest)
    other.load_state_dict(model.state_dict(), strict=False)
    tokens = tiny_tokens()
    found, expected = other(tokens).logits, model(tokens).logits
    assert (found - expected).abs().max() > 1e6 * TOLERANCE * expected.abs().max()


def test_every_pattern_consists_of_placements() -> None:
    for pattern in PATTERNS.values():
        for layers in (pattern.least_layers, 7, 32):
            names = pattern.of_layers(layers)
            assert len(names) == layers
            assert set(names) <= set(PLACEMENTS)
            assert len(set(names)) > 1
        assert len(set(pattern.of_layers(pattern.least_layers - 1))) == 1
