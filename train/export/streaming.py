"""Forward passes of models that are never in memory whole: the weights of one module at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedModel

from train.convert.steps import Read


def outline(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Build a causal language model without weights: parameters on the meta device, tables of positions on the CPU."""
    with init_empty_weights():
        return build().eval()


@torch.no_grad()
def streamed_states(model: PreTrainedModel, read: Read, tokens: Tensor, *, dtype: torch.dtype) -> list[Tensor]:
    """Run a model whose weights are read for one module at a time.

    Args:
        model: Returned by `outline`; left without weights again.
        read: Returns a tensor of its state dict by name.
        tokens: (B, T).
        dtype: Type of weights and computation.

    Returns:
        The stream before each layer and after the final norm, (B, T, D) each, then the logits (B, T, V).
    """
    with ExitStack() as stack:
        for name, module in _units(model):
            stack.callback(module.register_forward_pre_hook(_fill(name, read, dtype)).remove)
            stack.callback(module.register_forward_hook(_empty(dict(module.state_dict()))).remove)
        output = model(tokens, output_hidden_states=True, use_cache=False)
    return [*output.hidden_states, output.logits]


def _units(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules whose weights are in memory together: embedding, norms, each layer, head."""
    decoder: Any = model.model
    for name, module in decoder.named_children():
        if isinstance(module, nn.ModuleList):
            yield from ((f"model.{name}.{index}", layer) for index, layer in enumerate(module))
        elif module.state_dict():
            yield f"model.{name}", module
    yield "lm_head", model.lm_head  # type: ignore[misc]


def _fill(name: str, read: Read, dtype: torch.dtype) -> Callable[[nn.Module, Any], None]:
    def fill(module: nn.Module, _: Any) -> None:
        state = {key: read(f"{name}.{key}").to(dtype) for key in module.state_dict()}
        module.load_state_dict(state, assign=True)

    return fill


def _empty(meta: dict[str, Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def empty(module: nn.Module, _: Any, __: Any) -> None:
        module.load_state_dict(meta, assign=True)

    return empty
