"""Norm placement of a causal language model, recognized from its data flow rather than from module names.

`post_attention_layernorm` is the MLP's input norm in Llama but the attention's output norm in Gemma 2 and OLMo 2, so
names are unreliable. analysis/inspect/dataflow.py finds the inputs of every module in a block; this module
reconstructs the block's output from them, one sub-layer at a time, and assigns the norms their roles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from analysis.inspect.dataflow import ZERO, ArchitectureError, Combination, Flow, Parts, Trace, blocks_of, norms_outside
from analysis.measure.activations import Site
from modeling.decoder.facts_periln import PLACEMENTS

# A placement by its norms: on the input, the output, the stream.
_BY_NORMS: dict[tuple[bool, bool, bool], str] = {
    (placement.input_norm, placement.output_norm, placement.stream_norm): name for name, placement in PLACEMENTS.items()
}

__all__ = ["Architecture", "ArchitectureError", "Layer", "SubLayer", "recognize"]


@dataclass(frozen=True)
class SubLayer:
    """Attention or MLP of a block, with its norms.

    Attributes:
        first: The module that receives the input.
        last: The module that returns the output: `first`, unless the MLP is two bare projections.
        module: Name of the module in its block.
        scale: alpha in x + alpha * output.
        placement: A name of PLACEMENTS, `none` if it has no norm, or `mixed` if no placement has its norms.
        input_norm: Name, in its block, of the norm before it.
        output_norm: Name of the norm on its output.
        stream_norm: Name of the norm on the stream after it.
    """

    first: nn.Module
    last: nn.Module
    module: str
    scale: float
    placement: str
    input_norm: str | None
    output_norm: str | None
    stream_norm: str | None

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
    """The blocks of a decoder and the norm after them."""

    layers: tuple[Layer, ...]
    final_norm: str | None
    final_norm_module: nn.Module | None

    @property
    def placement(self) -> str:
        """The placement of all layers, or `mixed` where they differ."""
        placements = {layer.placement for layer in self.layers}
        return placements.pop() if len(placements) == 1 else "mixed"

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
        return "mixed: " + ", ".join(f"{name} {a}-{b}" if a != b else f"{name} {a}" for name, a, b in runs)


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
    layers = tuple(
        _layer(index, block, name=f"{prefix}.{index}", parts=parts[index], flow=trace.flows[index])
        for index, block in enumerate(blocks)
    )
    final = trace.final_norm()
    return Architecture(layers, final, None if final is None else outside[final])


class _Unclear(Exception):
    """The combinations fit no known block."""


class _Norms(NamedTuple):
    """Norms of a block by what enters them."""

    inputs: Mapping[str, Combination]

    def on(self, stream: Combination, *, besides: Sequence[str] = ()) -> list[str]:
        return [name for name, found in self.inputs.items() if name not in besides and _same(found, stream)]


def _layer(index: int, block: nn.Module, *, name: str, parts: Parts, flow: Flow) -> Layer:
    if parts.fault:
        return Layer(index, block, name, "unknown", reason=parts.fault)
    try:
        attention, mlp, parallel = _explain(parts, flow)
    except _Unclear as unclear:
        return Layer(index, block, name, "unknown", reason=str(unclear))
    placement = attention.placement if attention.placement == mlp.placement else "mixed"
    if parallel:
        placement = f"parallel {placement}"
    return Layer(index, block, name, placement, attention, mlp)


def _explain(parts: Parts, flow: Flow) -> tuple[SubLayer, SubLayer, bool]:
    """Rebuild the block's output from the sources, sub-layer by sub-layer.

    Raises:
        _Unclear: It is not rebuilt.
    """
    assert parts.attention is not None
    assert parts.mlp is not None
    output = flow.combination("y")
    if output is None:
        raise _Unclear("the block's output is not a sum of its input, sub-layers and norms")
    norms = _Norms({name: found for name in parts.norms if (found := flow.combination(name)) is not None})
    stream: Combination = {"x": 1.0}
    entered = _input_norm("attention", flow, norms=norms, streams=[stream])[0]
    attention, after = _leave("attention", stream, output=output, norms=norms, entered=entered)
    entered_mlp, base = _input_norm("mlp", flow, norms=norms, streams=[after, stream])
    parallel = _same(base, stream)
    mlp, last = _leave("mlp", after, output=output, norms=norms, entered=entered_mlp)
    if not _same(last, output):
        raise _Unclear(f"the block returns {_sum_text(output)}, but its sub-layers add up to {_sum_text(last)}")
    name, module = parts.attention
    mlp_name, first, final = parts.mlp
    return attention.sub_layer(name, module, module), mlp.sub_layer(mlp_name, first, final), parallel


def _input_norm(
    name: str, flow: Flow, *, norms: _Norms, streams: Sequence[Combination]
) -> tuple[str | None, Combination]:
    """Return the norm before a sub-layer, if any, and the stream that it reads."""
    entering = flow.combination(name)
    if entering is None:
        raise _Unclear(f"the input of the {name} is not a sum of the block's input, sub-layers and norms")
    for stream in streams:
        if _same(entering, stream):
            return None, stream
    (source, scale), *more = entering.items()
    if not more and abs(scale - 1) < ZERO:
        for stream in streams:
            if source in norms.on(stream):
                return source, stream
    raise _Unclear(f"the {name} reads {_sum_text(entering)}, which is neither the stream nor a norm of it")


class _Branch(NamedTuple):
    """The norms of a sub-layer and the factor of its output."""

    scale: float
    input_norm: str | None
    output_norm: str | None
    stream_norm: str | None

    def sub_layer(self, name: str, first: nn.Module, last: nn.Module) -> SubLayer:
        norms = (self.input_norm is not None, self.output_norm is not None, self.stream_norm is not None)
        placement = _BY_NORMS.get(norms, "mixed") if any(norms) else "none"
        return SubLayer(first, last, name, self.scale, placement, self.input_norm, self.output_norm, self.stream_norm)


def _leave(
    name: str, stream: Combination, *, output: Combination, norms: _Norms, entered: str | None
) -> tuple[_Branch, Combination]:
    """Return a sub-layer's norms after it, and the stream that it leaves."""
    behind = [norm for norm, found in norms.inputs.items() if set(found) == {name}]
    if len(behind) > 1:
        raise _Unclear(f"several norms read the output of the {name}: {', '.join(behind)}")
    output_norm = behind[0] if behind else None
    added = output_norm or name
    if added in output:
        return _Branch(_rounded(output[added]), entered, output_norm, None), {**stream, added: output[added]}
    for norm, found in norms.inputs.items():
        if set(found) == {*stream, added} and _same({key: found[key] for key in stream}, stream):
            return _Branch(_rounded(found[added]), entered, output_norm, norm), {norm: 1.0}
    raise _Unclear(
        f"the block does not add the output of the {name} to the stream, but returns {_sum_text(output)}: "
        f"the {name} may add the residual itself"
    )


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
        norm = layer.mlp.input_norm
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
