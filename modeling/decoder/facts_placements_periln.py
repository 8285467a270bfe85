"""Norm placements as data: the norms of each, its constants, and the initialization that belongs to it.

Every placement but the MLP of `hybrid` is a case of one equation per sub-layer f (attention or MLP) on the stream x,

    x' = n_stream(r x + b n_output(f(i n_input(x)))),

with each norm present or not. Residual (residual_periln.py) writes the equations out; the records hold what they need.
The factor b is the setting `residual_factor`. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

LayerPlacement = Literal[  # the keys of PLACEMENTS, for type checkers
    "pre",
    "post",
    "peri",
    "output",
    "peri_depth_scaled",
    "lns",
    "lns_learned",
    "deepnorm",
    "keel",
    "hybrid",
    "sub",
]
NormPlacement = Literal[LayerPlacement, "mix", "hybrid_star"]  # those of CHOICES
Branch = Literal["attention", "mlp"]
MatrixRole = Literal["query_key", "value", "attention_gate", "mlp_input", "to_stream"]  # of a matrix inside a sub-layer


class Constant(NamedTuple):
    """A number that may depend on the layer l, counted from 1, and on the number of layers L."""

    text: str
    value: Callable[[int, int], float]  # of l and L


ONE = Constant("1", lambda _, __: 1.0)


class Matrix(NamedTuple):
    """A matrix inside a sub-layer, as far as its initialization depends on it."""

    role: MatrixRole
    rows: int  # fan-out
    columns: int  # fan-in


class Initialization(NamedTuple):
    """Standard deviation of the initial weights of a placement's matrices, in place of `initializer_range`."""

    text: str
    std: Callable[[Matrix, int, int], float]  # of the matrix, the width D and the number of layers L


@dataclass(frozen=True, kw_only=True)
class SubLayer:
    """Norms of one sub-layer f on the residual stream x.

    Attributes:
        equation: The new stream, with every norm of the stream's width written as `norm`.
        input_norm: Whether the sub-layer reads a normalized stream.
        output_norm: Whether the sub-layer's output is normalized before it is added.
        stream_norm: Whether the stream itself is normalized: after the addition, or before all else (`hybrid`).
        inner_norm: Whether the input of the sub-layer's last matrix is normalized.
        value_norm: Whether queries, keys and values are normalized per head.
    """

    equation: str
    input_norm: bool = False
    output_norm: bool = False
    stream_norm: bool = False
    inner_norm: bool = False
    value_norm: bool = False

    @property
    def normalizes_first(self) -> bool:
        """Whether the stream norm comes before all else: what the sub-layer reads is also what it is added to."""
        return self.equation.startswith("norm(x) + ")

    @property
    def num_norms(self) -> int:
        """Norms of the stream's width."""
        return self.input_norm + self.output_norm + self.stream_norm


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Norms, constants and initialization of one layer.

    Attributes:
        name: Value of `norm_placement`, and of an element where that is a list.
        title: Display name.
        description: What sets it apart, in one line.
        source: Paper and equation.
        mlp: Norms of the MLP, and of the attention where that has none of its own.
        own_attention: Norms of the attention if they differ from the MLP's.
        stream_factor: Factor r of the stream in the addition.
        input_factor: Factor i of the normalized input.
        input_scale: Value at which the scale of the input norm starts.
        output_scale: Value at which the scale of the output norm starts.
        initialization: The initialization that belongs to it; None: any.
        unscaled_because: The reason why `initializer_scheme: depth_scaled` makes no sense with it, or empty.
    """

    name: LayerPlacement
    title: str
    description: str
    source: str
    mlp: SubLayer
    own_attention: SubLayer | None = None
    stream_factor: Constant = ONE
    input_factor: Constant = ONE
    input_scale: Constant = ONE
    output_scale: Constant = ONE
    initialization: Initialization | None = None
    unscaled_because: str = ""

    @property
    def attention(self) -> SubLayer:
        """Norms of the attention."""
        return self.own_attention or self.mlp

    @property
    def sub_layers(self) -> tuple[SubLayer, SubLayer]:
        """Attention and MLP."""
        return self.attention, self.mlp

    @property
    def has_output_norms(self) -> bool:
        """Whether the outputs of its sub-layers are normalized."""
        return any(sub_layer.output_norm for sub_layer in self.sub_layers)


@dataclass(frozen=True, kw_only=True)
class DepthPattern:
    """A placement for each layer, by depth.

    Attributes:
        name: Value of `norm_placement`.
        title: Display name.
        description: What sets it apart, in one line.
        source: Paper and equation.
        least_layers: Number of layers below which it would be one of its placements alone.
        of_layers: Function that returns the placement of each of L layers.
    """

    name: NormPlacement
    title: str
    description: str
    source: str
    least_layers: int
    of_layers: Callable[[int], tuple[LayerPlacement, ...]]


# ----------------------------------------------------------------------------------------------------- initializations


def _xavier(gain: Callable[[int], float]) -> Callable[[Matrix, int, int], float]:
    """Return Xavier's normal initialization, times a gain of L except for queries, keys and attention gates."""

    def std(matrix: Matrix, _: int, num_layers: int) -> float:
        plain = math.sqrt(2 / (matrix.rows + matrix.columns))
        return plain * (1.0 if matrix.role in ("query_key", "attention_gate") else gain(num_layers))

    return std


def _megatron(matrix: Matrix, width: int, num_layers: int) -> float:
    std = 1 / math.sqrt(2.5 * width)
    return std / math.sqrt(2 * num_layers) if matrix.role == "to_stream" else std


_DEEPNORM = Initialization(
    "Xavier normal; values, output projections and MLP times (8 L)^(-1/4)",
    _xavier(lambda layers: (8 * layers) ** -0.25),
)
_SUB = Initialization(
    "Xavier normal; values, output projections and MLP times sqrt(ln 2L)",
    _xavier(lambda layers: math.sqrt(math.log(2 * layers))),
)
_HYBRID = Initialization("std 1/sqrt(2.5 D), output projections divided by sqrt(2 L)", _megatron)

# ------------------------------------------------------------------------------------------------------------- records

_PRE = SubLayer(equation="x + f(norm(x))", input_norm=True)
_PERI = SubLayer(equation="x + norm(f(norm(x)))", input_norm=True, output_norm=True)
_PERI_LN = "Peri-LN (arXiv 2502.02732), eq. 1-3"
_LNS = "Curse of Depth (arXiv 2502.05795), eq. 3"
_OWN = "it has an initialization of its own"

PLACEMENTS: dict[str, Placement] = {
    placement.name: placement
    for placement in (
        Placement(
            name="pre",
            title="Pre-LN",
            description="norm on each sub-layer's input; the stream itself is never normalized",
            source=_PERI_LN,
            mlp=_PRE,
        ),
        Placement(
            name="post",
            title="Post-LN",
            description="norm on the stream after each addition",
            source=_PERI_LN,
            mlp=SubLayer(equation="norm(x + f(x))", stream_norm=True),
        ),
        Placement(
            name="peri",
            title="Peri-LN",
            description="norms on each sub-layer's input and output",
            source=_PERI_LN,
            mlp=_PERI,
        ),
        Placement(
            name="output",
            title="Output-LN",
            description="norm on each sub-layer's output alone",
            source="OLMo 2 (arXiv 2501.00656), section 3.3.1",
            mlp=SubLayer(equation="x + norm(f(x))", output_norm=True),
        ),
        Placement(
            name="peri_depth_scaled",
            title="Depth-scaled Peri-LN",
            description="Peri-LN whose output scales start at 1/sqrt(L), so that the stream starts bounded",
            source="Pangu Ultra (arXiv 2504.07866), with the start of Arcee Trinity",
            mlp=_PERI,
            output_scale=Constant("1/sqrt(L)", lambda _, layers: layers**-0.5),
            unscaled_because="its output scales already shrink what a layer adds",
        ),
        Placement(
            name="lns",
            title="LNS",
            description="Pre-LN whose normalized inputs are divided by sqrt(l), a constant",
            source=_LNS,
            mlp=SubLayer(equation="x + f(i norm(x))", input_norm=True),
            input_factor=Constant("1/sqrt(l)", lambda layer, _: layer**-0.5),
            unscaled_because="LayerNorm scaling replaces it; together they lose most of the gain",
        ),
        Placement(
            name="lns_learned",
            title="LNS, learned",
            description="Pre-LN whose input scales start at 1/sqrt(l) and are learned",
            source=f"{_LNS}, as GPAS (arXiv 2506.22049) implements it",
            mlp=_PRE,
            input_scale=Constant("1/sqrt(l)", lambda layer, _: layer**-0.5),
            unscaled_because="LayerNorm scaling replaces it; together they lose most of the gain",
        ),
        Placement(
            name="deepnorm",
            title="DeepNorm",
            description="Post-LN with the stream multiplied by (2 L)^(1/4) in each addition, and small initial weights",
            source="DeepNet (arXiv 2203.00555), section 3 and table 2, decoder-only",
            mlp=SubLayer(equation="norm(r x + f(x))", stream_norm=True),
            stream_factor=Constant("(2 L)^(1/4)", lambda _, layers: (2 * layers) ** 0.25),
            initialization=_DEEPNORM,
            unscaled_because=_OWN,
        ),
        Placement(
            name="keel",
            title="KEEL",
            description="norms on input and stream, with the stream multiplied by 2 L in each addition",
            source="KEEL (arXiv 2601.19895), alpha = number of sub-layers",
            mlp=SubLayer(equation="norm(r x + f(norm(x)))", input_norm=True, stream_norm=True),
            stream_factor=Constant("2 L", lambda _, layers: 2.0 * layers),
        ),
        Placement(
            name="hybrid",
            title="HybridNorm",
            description="attention with normalized queries, keys and values; MLP on a stream that is normalized first",
            source="HybridNorm (arXiv 2503.04598), section 3",
            mlp=SubLayer(equation="norm(x) + f(norm(x))", stream_norm=True),
            own_attention=SubLayer(equation="x + f(x)", value_norm=True),
            initialization=_HYBRID,
            unscaled_because=_OWN,
        ),
        Placement(
            name="sub",
            title="Sub-LN",
            description="Pre-LN with a second norm before the last matrix of each sub-layer",
            source="Magneto (arXiv 2210.06423), section 2, decoder-only",
            mlp=SubLayer(equation="x + f(norm(x))", input_norm=True, inner_norm=True),
            initialization=_SUB,
            unscaled_because=_OWN,
        ),
    )
}

PATTERNS: dict[str, DepthPattern] = {
    pattern.name: pattern
    for pattern in (
        DepthPattern(
            name="mix",
            title="Mix-LN",
            description="Post-LN in the first quarter of the layers, Pre-LN in the others",
            source="Mix-LN (arXiv 2412.13795), section 3",
            least_layers=4,
            of_layers=lambda layers: ("post",) * (layers // 4) + ("pre",) * (layers - layers // 4),
        ),
        DepthPattern(
            name="hybrid_star",
            title="HybridNorm*",
            description="HybridNorm whose first layer is Pre-LN",
            source="HybridNorm (arXiv 2503.04598), section 3",
            least_layers=2,
            of_layers=lambda layers: ("pre",) + ("hybrid",) * (layers - 1),
        ),
    )
}

CHOICES: dict[str, Placement | DepthPattern] = PLACEMENTS | PATTERNS  # the values of `norm_placement`


def placements_per_layer(
    norm_placement: NormPlacement | Sequence[LayerPlacement], num_hidden_layers: int
) -> tuple[LayerPlacement, ...]:
    """Return the placement of each layer: of one name, of a pattern over depth, or of a sequence with a name each."""
    match norm_placement:
        case "mix" | "hybrid_star":
            return PATTERNS[norm_placement].of_layers(num_hidden_layers)
        case str():
            return (norm_placement,) * num_hidden_layers
        case _:
            return tuple(norm_placement)


def distinct_placements(
    norm_placement: NormPlacement | Sequence[LayerPlacement], num_hidden_layers: int
) -> Iterator[Placement]:
    """Yield the record of every placement in use, once each."""
    for name in dict.fromkeys(placements_per_layer(norm_placement, num_hidden_layers)):
        yield PLACEMENTS[name]
