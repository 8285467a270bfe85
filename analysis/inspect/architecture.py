"""Norm placement of a causal language model, recognized from its data flow rather than from module names.

`post_attention_layernorm` is the MLP's input norm in Llama but the attention's output norm in Gemma 2 and OLMo 2, so
names are unreliable. analysis/inspect/dataflow.py finds the inputs of every module in a block; this module
reconstructs the block's output from them, one sub-layer at a time, and assigns the norms their roles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn

from analysis.inspect.dataflow import ZERO, ArchitectureError, Combination, Flow, Parts, Trace, blocks_of, norms_outside
from analysis.measure.activations import Site
from modeling.decoder.facts_placements_periln import PATTERNS, PLACEMENTS, Branch, Placement

__all__ = ["Architecture", "ArchitectureError", "Layer", "SubLayer", "recognize"]


@dataclass(frozen=True)
class SubLayer:
    """Attention or MLP of a block, with its norms.

    Attributes:
        first: The module that receives the input.
        last: The module that returns the output: `first`, unless the MLP is two bare projections.
        module: Name of the module in its block.
        scale: alpha in x + alpha * output.
        placements: Names of the PLACEMENTS whose data flow it has, in their order; `none` if it has no norm.
        input_norm: Name, in its block, of the norm before it.
        output_norm: Name of the norm on its output.
        stream_norm: Name of the norm on the stream: after it, or before it where it `normalizes_first`.
        normalizes_first: Whether what it reads is also what it is added to.
    """

    first: nn.Module
    last: nn.Module
    module: str
    scale: float
    placements: tuple[str, ...]
    input_norm: str | None
    output_norm: str | None
    stream_norm: str | None
    normalizes_first: bool = False

    @property
    def placement(self) -> str:
        """The first of `placements`, or `mixed` if there is none."""
        return self.placements[0] if self.placements else "mixed"

    def described(self) -> dict[str, Any]:
        """Return the names as JSON values."""
        norms = {name: getattr(self, name) for name in ("input_norm", "output_norm", "stream_norm")}
        return {"module": self.module, "scale": self.scale, "placement": self.placement} | norms


@dataclass(frozen=True)
class Layer:
    """A block.

    Attributes:
        index: From 0.
        block: The module.
        name: Its name in the model.
        placement: A name of PLACEMENTS, none; `parallel ...` where attention and MLP read the same stream;
            `mixed` where the two differ; `unknown`.
        attention: Attention; None if unknown.
        mlp: MLP; None if unknown.
        reason: Reason why the placement is unknown, or empty.
    """

    index: int
    block: nn.Module
    name: str
    placement: str
    attention: SubLayer | None = None
    mlp: SubLayer | None = None
    reason: str = ""

    @property
    def is_parallel(self) -> bool:
        """Whether attention and MLP read the same stream."""
        return self.placement.startswith("parallel")

    def described(self) -> dict[str, Any]:
        """Return what was recognized as JSON values."""
        known = {"layer": self.index, "block": self.name, "placement": self.placement}
        if self.attention is None or self.mlp is None:
            return known | {"reason": self.reason}
        return known | {"attention": self.attention.described(), "mlp": self.mlp.described()}


@dataclass(frozen=True)
class Architecture:
    """The blocks of a decoder and the norm after them.

    A placement that differs from another in its initialization alone is recognized as that one: `lns_learned` as `pre`,
    `peri_depth_scaled` as `peri`.
    """

    layers: tuple[Layer, ...]
    final_norm: str | None
    final_norm_module: nn.Module | None

    @property
    def placement(self) -> str:
        """The placement of all layers, the name of their pattern over depth, or `mixed`."""
        names = tuple(layer.placement for layer in self.layers)
        if len(set(names)) == 1:
            return names[0]
        return next((name for name, each in PATTERNS.items() if each.of_layers(len(names)) == names), "mixed")

    def sites(self) -> list[Site]:
        """Return the sites to measure: those of the training probes, as far as this model has them.

        A layer with an unknown placement has only one site, its block's output.
        """
        sites = [Site(None, "embedding", self.layers[0].block, "input")]
        for layer in self.layers:
            sites += _layer_sites(layer)
        if self.final_norm_module is not None:
            sites.append(Site(None, "final_norm", self.final_norm_module))
        return sites

    def summary(self) -> str:
        """Return a one-line summary, such as `peri (26 layers)` or `mixed: post 0-3, pre 4-11`."""
        runs: list[tuple[str, int, int]] = []
        for layer in self.layers:
            if runs and runs[-1][0] == layer.placement:
                runs[-1] = (layer.placement, runs[-1][1], layer.index)
            else:
                runs.append((layer.placement, layer.index, layer.index))
        if len(runs) == 1:
            return f"{runs[0][0]} ({len(self.layers)} layers)"
        return f"{self.placement}: " + ", ".join(f"{name} {a}-{b}" if a != b else f"{name} {a}" for name, a, b in runs)


def recognize(model: nn.Module, *, vocab_size: int | None = None) -> Architecture:
    """Find blocks, sub-layers and norms of a decoder, and where the norms stand.

    Runs one forward of eight tokens, in evaluation mode and without gradients; the model is left as it was.

    Args:
        model: A causal language model of transformers, whose forward takes `input_ids`.
        vocab_size: Token ids to choose from; default: the input embedding's rows.

    Raises:
        ArchitectureError: There is no list of blocks, or the forward pass does not run them one by one.
    """
    prefix, blocks = blocks_of(model)
    parts = [Parts.of(block) for block in blocks]
    outside = norms_outside(model, prefix)
    trace = Trace(model, blocks=blocks, parts=parts, outside=outside)
    trace.run(vocab_size or model.get_input_embeddings().num_embeddings)  # type: ignore[operator, union-attr]
    layers = [
        _layer(index, block, name=f"{prefix}.{index}", parts=parts[index], flow=trace.flows[index], depth=len(blocks))
        for index, block in enumerate(blocks)
    ]
    final = trace.final_norm()
    return Architecture(_agreed(layers), final, None if final is None else outside[final])


def _agreed(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the layers with a placement that all of them may have, if there is one: LNS's first is also Pre-LN."""
    may_be = [_common(layer.attention, layer.mlp) for layer in layers if layer.attention and layer.mlp]
    shared = [name for name in may_be[0] if all(name in names for names in may_be)] if may_be else []
    if len(may_be) < len(layers) or not shared or any(layer.is_parallel for layer in layers):
        return tuple(layers)
    return tuple(replace(layer, placement=shared[0]) for layer in layers)


def _common(attention: SubLayer, mlp: SubLayer) -> list[str]:
    return [name for name in attention.placements if name in mlp.placements]


class _Unclear(Exception):
    """The combinations fit no known block."""


class _Norms(NamedTuple):
    """Norms of a block by what enters them."""

    inputs: Mapping[str, Combination]

    def on(self, stream: Combination, *, besides: Sequence[str] = ()) -> list[str]:
        return [name for name, found in self.inputs.items() if name not in besides and _same(found, stream)]

    def factor_of_stream(self, output: Combination) -> float | None:
        """Return the factor of the stream in a block's output, or None where that is 1 or there is none.

        The stream is the block's input, or a norm on a sum.
        """
        factors = [value for name, value in output.items() if name == "x" or len(self.inputs.get(name, ())) > 1]
        return next((value for value in factors if abs(value - 1) >= 10 * ZERO), None)


def _layer(index: int, block: nn.Module, *, name: str, parts: Parts, flow: Flow, depth: int) -> Layer:
    if parts.fault:
        return Layer(index, block, name, "unknown", reason=parts.fault)
    try:
        branches = _explain(parts, flow)
        attention, mlp = (each.sub_layer(parts, layer=index + 1, depth=depth) for each in branches[:2])
    except _Unclear as unclear:
        return Layer(index, block, name, "unknown", reason=str(unclear))
    common = _common(attention, mlp)
    placement = common[0] if common else "mixed"
    if branches.are_parallel:
        placement = f"parallel {placement}"
    return Layer(index, block, name, placement, attention, mlp)


class _Branch(NamedTuple):
    """The norms of a sub-layer and the factors of its input, its output and the stream."""

    name: Branch
    input_norm: str | None
    input_factor: float
    output_norm: str | None = None
    scale: float = 1.0
    stream_norm: str | None = None
    stream_factor: float = 1.0
    normalizes_first: bool = False
    has_inner_norm: bool = False
    has_value_norm: bool = False

    def sub_layer(self, parts: Parts, *, layer: int, depth: int) -> SubLayer:
        """Return the sub-layer with the placements that have its data flow.

        Raises:
            _Unclear: None has its factors.
        """
        assert parts.attention is not None
        assert parts.mlp is not None
        module, first, last = parts.mlp if self.name == "mlp" else (*parts.attention, parts.attention[1])
        alike = [each for each in PLACEMENTS.values() if self._has_norms_of(each)]
        placements = tuple(each.name for each in alike if self._has_factors_of(each, layer, depth))
        if not any((self.input_norm, self.output_norm, self.stream_norm, placements)):
            placements = ("none",)
        if alike and not placements:
            factors = f"the input by {self.input_factor:.4g} and the stream by {self.stream_factor:.4g}"
            raise _Unclear(f"the {self.name} multiplies {factors}, as no known placement does")
        norms = self.input_norm, self.output_norm, self.stream_norm
        return SubLayer(first, last, module, _rounded(self.scale), placements, *norms, self.normalizes_first)

    def _has_norms_of(self, placement: Placement) -> bool:
        norms = placement.attention if self.name == "attention" else placement.mlp
        mine = [each is not None for each in (self.input_norm, self.output_norm, self.stream_norm)]
        mine += [self.normalizes_first, self.has_inner_norm]
        theirs = [norms.input_norm, norms.output_norm, norms.stream_norm, norms.normalizes_first, norms.inner_norm]
        # Where other norms say enough, a norm on values is a detail of the attention, as on queries and keys.
        return mine == theirs and (norms.value_norm <= self.has_value_norm)

    def _has_factors_of(self, placement: Placement, layer: int, depth: int) -> bool:
        mine = {"factor": self.input_factor, "stream": self.stream_factor}
        factors = {"factor": placement.input_factor, "stream": placement.stream_factor}
        return _same(mine, {name: factor.value(layer, depth) for name, factor in factors.items()})


class _Explained(NamedTuple):
    """Attention and MLP, and whether both read the same stream."""

    attention: _Branch
    mlp: _Branch
    are_parallel: bool


def _explain(parts: Parts, flow: Flow) -> _Explained:
    """Rebuild the block's output from the sources, sub-layer by sub-layer.

    Raises:
        _Unclear: It is not rebuilt.
    """
    output = flow.combination("y")
    if output is None:
        raise _Unclear("the block's output is not a sum of its input, sub-layers and norms")
    norms = _Norms({name: found for name in parts.norms if (found := flow.combination(name)) is not None})
    if (factor := norms.factor_of_stream(output)) is not None:
        raise _Unclear(f"the block returns its stream times {factor:.4g}, as no known placement does (GPAS does)")
    stream: Combination = {"x": 1.0}
    attention, _ = _enter("attention", flow, norms=norms, streams=[stream])
    attention, after = _leave(attention, stream, output=output, norms=norms)
    mlp, base = _enter("mlp", flow, norms=norms, streams=[after, stream])
    mlp, last = _leave(mlp, after, output=output, norms=norms)
    if not _same(last, output):
        raise _Unclear(f"the block returns {_sum_text(output)}, but its sub-layers add up to {_sum_text(last)}")
    if attention.stream_norm is not None and not any((mlp.input_norm, mlp.output_norm, mlp.stream_norm)):
        # One data flow, two ways to tell it: HybridNorm counts the norm between the two as the MLP's.
        mlp = mlp._replace(
            stream_norm=attention.stream_norm, stream_factor=attention.stream_factor, normalizes_first=True
        )
        attention = attention._replace(stream_norm=None, stream_factor=1.0)
    return _Explained(attention, mlp, _same(base, stream))


def _enter(name: Branch, flow: Flow, *, norms: _Norms, streams: Sequence[Combination]) -> tuple[_Branch, Combination]:
    """Return a sub-layer with the norm before it, if any, and the stream that it reads."""
    entering = flow.combination(name)
    if entering is None:
        raise _Unclear(f"the input of the {name} is not a sum of the block's input, sub-layers and norms")
    inside = flow.inside[name]
    has_inner, has_value = inside.inner_norm is not None, name == "attention" and inside.num_others == 3
    for stream in streams:
        if _same(entering, stream):
            return _Branch(name, None, 1.0, has_inner_norm=has_inner, has_value_norm=has_value), stream
    (source, factor), *more = entering.items()
    if not more:
        for stream in streams:
            if source in norms.on(stream):
                return _Branch(name, source, factor, has_inner_norm=has_inner, has_value_norm=has_value), stream
    raise _Unclear(f"the {name} reads {_sum_text(entering)}, which is neither the stream nor a norm of it")


def _leave(branch: _Branch, stream: Combination, *, output: Combination, norms: _Norms) -> tuple[_Branch, Combination]:
    """Return a sub-layer with its norms after it, and the stream that it leaves."""
    name = branch.name
    behind = [norm for norm, found in norms.inputs.items() if set(found) == {name}]
    if len(behind) > 1:
        raise _Unclear(f"several norms read the output of the {name}: {', '.join(behind)}")
    branch = branch._replace(output_norm=behind[0] if behind else None)
    added = branch.output_norm or name
    if added in output:
        return branch._replace(scale=output[added]), {**stream, added: output[added]}
    for norm, found in norms.inputs.items():
        if set(found) == {*stream, added} and (factor := _common_factor(found, stream)) is not None:
            return branch._replace(scale=found[added], stream_norm=norm, stream_factor=factor), {norm: 1.0}
    raise _Unclear(
        f"the block does not add the output of the {name} to the stream, but returns {_sum_text(output)}: "
        f"the {name} may add the residual itself"
    )


def _common_factor(found: Combination, stream: Combination) -> float | None:
    """Return r where a combination holds r times the stream, or None."""
    factor = found[next(iter(stream))] / next(iter(stream.values()))
    return factor if _same({key: found[key] for key in stream}, {k: factor * v for k, v in stream.items()}) else None


def _rounded(scale: float) -> float:
    """Return a factor rounded to the digits that least squares gets right, even in bf16."""
    return float(f"{scale:.4g}")


def _same(a: Combination, b: Combination) -> bool:
    return set(a) == set(b) and all(abs(a[name] - b[name]) < ZERO * max(1.0, abs(b[name])) * 10 for name in a)


def _sum_text(combination: Combination) -> str:
    terms = (name if abs(value - 1) < ZERO else f"{value:.4g} {name}" for name, value in combination.items())
    return " + ".join(terms) or "0"


def _layer_sites(layer: Layer) -> list[Site]:
    """Return a layer's sites in the order of its data flow."""
    stream = Site(layer.index, "mlp.stream", layer.block)
    if layer.attention is None or layer.mlp is None:
        return [stream]
    sites = _branch_sites(layer, "attention", layer.attention)
    if layer.attention.stream_norm is not None:
        sites.append(Site(layer.index, "attention.stream", _named(layer, layer.attention.stream_norm)))
    elif not layer.is_parallel:
        norm = layer.mlp.stream_norm if layer.mlp.normalizes_first else layer.mlp.input_norm
        reader = layer.mlp.first if norm is None else _named(layer, norm)
        sites.append(Site(layer.index, "attention.stream", reader, "input"))
    return [*sites, *_branch_sites(layer, "mlp", layer.mlp), stream]


def _branch_sites(layer: Layer, name: str, branch: SubLayer) -> list[Site]:
    sites = [Site(layer.index, f"{name}.output", branch.last)]
    if branch.output_norm is not None:
        sites.append(Site(layer.index, f"{name}.normed_output", _named(layer, branch.output_norm)))
    return sites


def _named(layer: Layer, name: str) -> nn.Module:
    return layer.block.get_submodule(name)
