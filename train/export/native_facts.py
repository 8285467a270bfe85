"""Facts about an export as an architecture of transformers, for the model card."""

from __future__ import annotations

from typing import Protocol


class NativeExport(Protocol):
    """How a decoder was written as an architecture of transformers."""

    @property
    def architecture(self) -> str:
        """Class of transformers that loads the folder, such as `LlamaForCausalLM`."""
        ...

    def usage(self) -> str:
        """Return Python that loads the folder; FOLDER stands for it."""
        ...

    def lines(self) -> list[str]:
        """Return architecture, changes, and how far it differs from the training code, a line each."""
        ...
