"""Residual stream at every depth: its sites, and hooks that observe it.

The stream that enters the first block has depth 0; after the attention of layer l it has depth l + 0.5, after its MLP
l + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from analysis.inspect.architecture import Architecture
from analysis.measure.activations import Site, first_tensor


class Stream(NamedTuple):
    """The stream at one depth."""

    depth: float
    site: Site


def streams(architecture: Architecture) -> list[Stream]:
    """Return the stream at every depth that the architecture shows, ascending."""
    return [Stream(depth, site) for site in architecture.sites() if (depth := _depth(site)) is not None]


def between_blocks(architecture: Architecture) -> list[Stream]:
    """Return the stream before the first block and after each."""
    return [stream for stream in streams(architecture) if stream.depth == int(stream.depth)]


@contextmanager
def watching(watched: Sequence[Stream], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call `see(index, values)` for every stream that passes inside; values are (B, T, D), detached."""
    with ExitStack() as hooks:
        for index, stream in enumerate(watched):
            handle = stream.site.module.register_forward_hook(_hook(index, stream.site, see), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def _depth(site: Site) -> float | None:
    if site.layer is None:
        return 0.0 if site.name == "embedding" else None
    return {"attention.stream": site.layer + 0.5, "mlp.stream": site.layer + 1.0}.get(site.name)


def _hook(index: int, site: Site, see: Callable[[int, Tensor], None]) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        see(index, first_tensor((args, kwargs) if site.tensor == "input" else output).detach())

    return hook
