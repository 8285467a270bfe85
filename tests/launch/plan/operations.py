"""Count of the operations that torch dispatches, as a stand-in for the kernels that a GPU launches."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class OperationCounter(TorchDispatchMode):
    """Counts the operations that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not (func.is_view or func.name().startswith(("aten::empty", "aten::_unsafe_view")))
        return func(*args, **(kwargs or {}))
