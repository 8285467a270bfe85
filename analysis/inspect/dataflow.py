"""Data flow of a decoder, traced in one forward pass with noise for every source.

The block's input and the outputs of its norms and sub-layers are each replaced by independent noise. Between these
modules a block only adds and scales, so the input of each norm and sub-layer, and the block's output, is a linear
combination of these sources, whose coefficients least squares recovers. The weights play no part, so projections or
scales that are still zero hide nothing.

Shapes: B batch, T tokens, D model, N = B * T * D.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

ZERO = 1e-3  # a smaller coefficient is none; least squares finds them to 1e-7 in fp32, 1e-4 in bf16

_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
_MLP = re.compile("mlp|feed_?forward|ffn|moe", re.IGNORECASE)
_NORM = re.compile("norm", re.IGNORECASE)

_NUM_TOKENS = 8  # enough equations: at least 8 D for fewer than ten unknowns
_RESIDUAL = {torch.float32: 1e-4, torch.float64: 1e-6}  # of the combination, relative; others (bf16, fp16): below
_RESIDUAL_ROUGH = 3e-2

Combination = Mapping[str, float]  # source -> coefficient


class ArchitectureError(ValueError):
    """The model has no recognizable blocks."""


def blocks_of(model: nn.Module) -> tuple[str, Sequence[nn.Module]]:
    """Return the longest module list that is not nested in another one (as lists of experts are)."""
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }
    outermost = {
        name: module for name, module in lists.items() if not any(name.startswith(f"{other}.") for other in lists)
    }
    if not outermost:
        raise ArchitectureError(f"{type(model).__name__} has no nn.ModuleList of blocks")
    prefix = max(outermost, key=lambda name: len(outermost[name]))
    return prefix, list(outermost[prefix])


@dataclass(frozen=True)
class Parts:
    """The traced modules of a block; `fault` is the reason if some are missing."""

    attention: tuple[str, nn.Module] | None
    mlp: tuple[str, nn.Module, nn.Module] | None  # the module that takes the input, and the one that gives the output
    norms: Mapping[str, nn.Module]
    fault: str

    @classmethod
    def of(cls, block: nn.Module) -> Parts:
        """Find a block's attention, MLP and norms by the words in their classes' names."""
        attentions = _outermost(block, _ATTENTION)
        norms_and_inner = _outermost(block, _NORM, outside=attentions)  # Qwen3MoeRMSNorm has both words
        mlps = _outermost(block, _MLP, outside={**attentions, **norms_and_inner})
        norms = _outermost(block, _NORM, outside={**attentions, **mlps})
        if len(attentions) != 1:
            return cls(None, None, {}, f"{_counted(attentions, 'attention')} in {type(block).__name__}")
        (name, module), *_ = attentions.items()
        whole = [(name, module, module) for name, module in mlps.items()]
        ends = whole or _bare_projections(block)
        if len(ends) != 1:
            return cls(None, None, {}, f"{_counted(mlps, 'MLP')} in {type(block).__name__}")
        return cls((name, module), ends[0], norms, "")


def norms_outside(model: nn.Module, prefix: str) -> dict[str, nn.Module]:
    """Return the norms outside the blocks, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if _NORM.search(type(module).__name__) and not name.startswith(f"{prefix}.")
    }


def _counted(found: Mapping[str, nn.Module], kind: str) -> str:
    return f"no {kind} module" if not found else f"{len(found)} {kind} modules ({', '.join(found)})"


def _outermost(
    block: nn.Module, pattern: re.Pattern[str], *, outside: Mapping[str, nn.Module] | None = None
) -> dict[str, nn.Module]:
    """Return the modules whose class is named so, without those inside another one or inside `outside`."""
    modules: dict[str, nn.Module] = {}
    for name, module in block.named_modules():
        taken = (*modules, *(outside or {}))
        if name and pattern.search(type(module).__name__) and not _is_inside(name, taken):
            modules[name] = module
    return modules


def _is_inside(name: str, others: Sequence[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in others)


def _bare_projections(block: nn.Module) -> list[tuple[str, nn.Module, nn.Module]]:
    """Return an MLP that is no module: two projections in the block itself, as in OPT."""
    linear = [(name, module) for name, module in block.named_children() if isinstance(module, nn.Linear)]
    if len(linear) != 2:
        return []
    (first_name, first), (last_name, last) = linear
    return [(f"{first_name}, {last_name}", first, last)]


@dataclass
class Inside:
    """Norms inside attention or MLP.

    Attributes:
        normed: Outputs of its norms, by name.
        last_input: Input of its last matrix.
    """

    normed: dict[str, Tensor] = field(default_factory=dict)
    last_input: Tensor | None = None

    @property
    def inner_norm(self) -> str | None:
        """The norm whose output enters the last matrix, or None."""
        last = self.last_input
        return next((name for name, output in self.normed.items() if output is last), None)

    @property
    def num_others(self) -> int:
        """Norms besides that: on queries and keys, or also on values."""
        return len(self.normed) - (self.inner_norm is not None)


class Flow:
    """The data flow of one block: its sources, and the inputs that are combinations of them."""

    def __init__(self) -> None:
        self.sources: dict[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}
        self.inside = {"attention": Inside(), "mlp": Inside()}
        self.dtype = torch.float32

    def combination(self, name: str) -> Combination | None:
        """Return the combination of sources that an input consists of, or None if it is not one."""
        if name not in self.seen:
            return None
        names = [source for source, value in self.sources.items() if value.numel() == self.seen[name].numel()]
        if not names:
            return None
        columns = torch.stack([self.sources[source].flatten() for source in names], dim=1)  # (N, sources)
        target = self.seen[name].flatten().unsqueeze(1)  # (N, 1)
        coefficients = torch.linalg.lstsq(columns, target).solution
        left = (columns @ coefficients - target).norm() / target.norm()
        if not left <= _RESIDUAL.get(self.dtype, _RESIDUAL_ROUGH):
            return None
        values = coefficients.flatten().tolist()
        # KEEL's 24 x in bf16 is rounded by 0.05, of which least squares finds 0.002 in other sources.
        zero = ZERO if self.dtype in _RESIDUAL else ZERO * max(1.0, *map(abs, values))
        return {source: value for source, value in zip(names, values, strict=True) if abs(value) > zero}


class Trace:
    """One forward in which every source is noise."""

    def __init__(
        self,
        model: nn.Module,
        *,
        blocks: Sequence[nn.Module],
        parts: Sequence[Parts],
        outside: Mapping[str, nn.Module],
    ) -> None:
        self.model = model
        self.blocks, self.parts, self.outside = blocks, parts, outside
        self.flows = [Flow() for _ in blocks]
        self._outside_inputs: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        self._generator = torch.Generator().manual_seed(0)

    def run(self, vocab_size: int) -> None:
        """Run the forward.

        Raises:
            ArchitectureError: The blocks did not run.
        """
        was_training = self.model.training
        device = self.model.get_input_embeddings().weight.device  # type: ignore[operator, union-attr]
        device = torch.device("cpu") if device.type == "meta" else device  # offloaded: accelerate moves it
        tokens = torch.randint(vocab_size, (1, _NUM_TOKENS), generator=self._generator).to(device)
        try:
            self._watch()
            self.model.eval()
            with torch.no_grad():
                self.model(input_ids=tokens, use_cache=False)
        finally:
            self.model.train(was_training)
            for handle in self._handles:
                handle.remove()
        if not all("x" in flow.sources and "y" in flow.seen for flow in self.flows):
            raise ArchitectureError(f"the forward pass of {type(self.model).__name__} does not run every block")

    def final_norm(self) -> str | None:
        """Return the name of the norm that the last block's output enters."""
        last = self.flows[-1].seen["y"]
        for name, value in self._outside_inputs.items():
            if value.shape == last.shape and torch.equal(value, last):
                return name
        return None

    def _watch(self) -> None:
        for block, parts, flow in zip(self.blocks, self.parts, self.flows, strict=True):
            self._replace_input(block, flow)
            self._see_output(block, flow)
            for name, module in parts.norms.items():
                self._see_input(module, flow, name)
                self._replace_output(module, flow, name)
            if parts.attention is not None and parts.mlp is not None:
                self._see_input(parts.attention[1], flow, "attention")
                self._replace_output(parts.attention[1], flow, "attention")
                self._see_input(parts.mlp[1], flow, "mlp")
                self._replace_output(parts.mlp[2], flow, "mlp")
                self._look_inside(parts.attention[1], flow.inside["attention"])
                self._look_inside(parts.mlp[1], flow.inside["mlp"])
        for name, module in self.outside.items():
            self._see_outside(module, name)

    def _replace_input(self, block: nn.Module, flow: Flow) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = _first_hidden(args, kwargs)
            if given is None:
                return None
            flow.dtype = given.dtype
            noise = self._noise(given)
            flow.sources["x"] = noise.detach().double().cpu()
            return _with_first(args, given, noise), {
                name: noise if value is given else value for name, value in kwargs.items()
            }

        self._handles.append(block.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))

    def _see_input(self, module: nn.Module, flow: Flow, name: str) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = _first_hidden(args, kwargs)
            if given is not None:
                flow.seen[name] = given.detach().double().cpu()

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _look_inside(self, branch: nn.Module, inside: Inside) -> None:
        def norm_hook(name: str) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                if isinstance(output, Tensor):
                    inside.normed[name] = output

            return hook

        def matrix_hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            inside.last_input = _first_tensor(args)

        for name, module in branch.named_modules():
            if name and _NORM.search(type(module).__name__):
                self._handles.append(module.register_forward_hook(norm_hook(name)))
            elif name and isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim == 2:  # type: ignore[union-attr]
                self._handles.append(module.register_forward_pre_hook(matrix_hook))

    def _replace_output(self, module: nn.Module, flow: Flow, name: str) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            given = _first_tensor(output)
            if given is None:
                return None
            noise = self._noise(given)
            flow.sources[name] = noise.detach().double().cpu()  # a copy: Falcon adds to its MLP's output in place
            return noise if output is given else _with_first(output, given, noise)

        self._handles.append(module.register_forward_hook(hook))

    def _see_output(self, block: nn.Module, flow: Flow) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            given = _first_tensor(output)
            if given is not None:
                flow.seen["y"] = given.detach().double().cpu()

        self._handles.append(block.register_forward_hook(hook))

    def _see_outside(self, module: nn.Module, name: str) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = _first_hidden(args, kwargs)
            if given is not None:
                self._outside_inputs[name] = given.detach().double().cpu()

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator).to(device=like.device, dtype=like.dtype)


def _first_tensor(value: Any) -> Tensor | None:
    """Return a tensor, or the first one of a tuple or list."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple | list):
        return next((item for item in value if isinstance(item, Tensor)), None)
    return None


def _first_hidden(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the tensor that a module works on: its first argument, or `hidden_states`, or the first by name."""
    tensor = _first_tensor(tuple(args))
    if tensor is None:
        tensor = _first_tensor(kwargs.get("hidden_states"))
    return _first_tensor(tuple(kwargs.values())) if tensor is None else tensor


def _with_first(values: Any, old: Tensor, new: Tensor) -> Any:
    items = [new if item is old else item for item in values]
    return items if isinstance(values, list) else tuple(items)
