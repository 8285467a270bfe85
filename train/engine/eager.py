"""Eager passes through compiled modules, for measurements with hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run compiled modules eagerly, as hooks inside them would require a second graph; the loss stays compiled."""
    compiled = {module: module._compiled_call_impl for module in model.modules() if module._compiled_call_impl}
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call
