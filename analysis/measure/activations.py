"""Activation probes: statistics at named sites of any network, taken from the training forward pass itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from analysis.measure.gradients import layer_of
from analysis.measure.moments import Moments, exponent_histogram, measure, merge

Gather = Callable[[Tensor], Sequence[Tensor]]  # this rank's tensor -> all ranks', in their order


class Site(NamedTuple):
    """A place where activations are measured: the input or output of a module."""

    layer: int | None  # index of the block, from 0; None outside the blocks
    name: str  # unique within the layer
    module: nn.Module
    tensor: Literal["output", "input"] = "output"  # of several tensors, the first
    feature_dim: int = -1
    histogram: bool = False  # count magnitudes by exponent too


def sites_of_any(model: nn.Module) -> list[Site]:
    """Return a site for the output of every module with its own parameters, for networks without a better list.

    Modules that only contain others are skipped: their output is that of some leaf.
    """
    return [
        Site(layer_of(name), name, module, feature_dim=_feature_dim(module))
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]


def _feature_dim(module: nn.Module) -> int:
    kind = type(module).__name__
    return 1 if "Conv" in kind or "BatchNorm" in kind or "InstanceNorm" in kind or "GroupNorm" in kind else -1


class ActivationProbe:
    """Statistics at given sites, accumulated over forward passes until they are read.

    Hooks exist only inside `watching`, so other passes cost nothing. Passes that activation checkpointing repeats
    during backward are not counted again.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = list(sites)
        self._forget()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measure the forward passes inside."""
        with ExitStack() as hooks:
            for index, site in enumerate(self.sites):
                hook = site.module.register_forward_hook(self._hook(index, site), with_kwargs=True)
                hooks.callback(hook.remove)
            yield

    def rows(self, gather: Gather | None = None) -> list[dict[str, Any]]:
        """Return a row for each site that was reached, and reset.

        Args:
            gather: Collects the statistics of all ranks, so every rank must call this. None: a single process.
        """
        mine = _on_cpu([self._statistics.get(index) for index in range(len(self.sites))], missing=_nothing())
        joined = merge(gather(mine)) if gather is not None else mine
        self._statistics = {}
        return [
            {"layer": site.layer, "site": site.name, **Moments(*figures).described()}
            for site, figures in zip(self.sites, joined.tolist(), strict=True)
            if figures[0]
        ]

    def histograms(self, gather: Gather | None = None) -> dict[tuple[int | None, str], Tensor]:
        """Return counts by exponent, (256,) int64, for each site that asked for them, by (layer, name), and forget."""
        wanted = [index for index, site in enumerate(self.sites) if site.histogram]
        if not wanted:
            return {}
        empty = exponent_histogram(torch.empty(0))
        mine = _on_cpu([self._counts.get(index) for index in wanted], missing=empty)
        joined = torch.stack(list(gather(mine))).sum(dim=0) if gather is not None else mine
        self._counts = {}
        return {
            (self.sites[index].layer, self.sites[index].name): counts
            for index, counts in zip(wanted, joined, strict=True)
            if counts.any()
        }

    def _forget(self) -> None:
        self._statistics: dict[int, Tensor] = {}
        self._counts: dict[int, Tensor] = {}

    def _hook(self, index: int, site: Site) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if torch._C._current_graph_task_id() != -1:  # inside backward: checkpointing computes this a second time
                return
            values = first_tensor(output if site.tensor == "output" else (args, kwargs))
            with torch.no_grad():
                statistics = measure(values, feature_dim=site.feature_dim)
                known = self._statistics.get(index)
                self._statistics[index] = statistics if known is None else merge((known, statistics))
                if site.histogram:
                    counts = exponent_histogram(values)
                    self._counts[index] = self._counts[index] + counts if index in self._counts else counts

        return hook


def _on_cpu(rows: Sequence[Tensor | None], *, missing: Tensor) -> Tensor:
    """Stack rows and copy them to the CPU in one transfer."""
    device = next((row.device for row in rows if row is not None), missing.device)
    missing = missing.to(device)
    return torch.stack([missing if row is None else row for row in rows]).cpu()


def _nothing() -> Tensor:
    return torch.zeros(len(Moments._fields), dtype=torch.float64)


def first_tensor(value: Any) -> Tensor:
    """Return the first floating-point tensor in nested tuples, lists and mappings.

    Raises:
        TypeError: There is none.
    """
    tensor = next(_tensors(value), None)
    if tensor is None:
        raise TypeError(f"a measured module took or returned {type(value).__name__} instead of a tensor")
    return tensor


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
