"""Facts about a native export, for the console and the model card. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class VerificationError(RuntimeError):
    """The exported model does not compute what the trained one does."""


class Difference(NamedTuple):
    """How far the logits of the exported model are from ours.

    Args:
        inputs: The tokens: `random tokens` or `validation text`.
        dtype: Type of the computation: `fp32` or `bf16`.
        native: Largest difference between the exported model and ours.
        error: Largest difference between the exported model and ours in fp64.
        rounding: Largest difference between ours and ours in fp64: what rounding explains.
        largest: Largest absolute logit.
    """

    inputs: str
    dtype: str
    native: float
    error: float
    rounding: float
    largest: float


class Continuation(NamedTuple):
    """A greedy continuation, in fp32: whether both models write the same, and how many tokens."""

    tokens: int
    equal: int  # tokens before the first that differs, which is then a tie within rounding


@dataclass(frozen=True)
class Verification:
    """Comparison of an exported model with ours."""

    differences: tuple[Difference, ...]
    continuation: Continuation | None  # None: too large to generate from here

    def lines(self) -> list[str]:
        """Return the comparison in words, a line each."""
        lines = [
            f"{each.dtype}, {each.inputs}: logits differ by at most {each.native:.2g} (the largest is "
            f"{each.largest:.3g}; rounding alone moves ours by {each.rounding:.2g})"
            for each in self.differences
        ]
        if self.continuation is None:
            return [*lines, "greedy continuation: not compared, as the model is too large to generate from on a CPU"]
        count, equal = self.continuation
        same = "the same" if equal == count else f"the same up to a tie within rounding after {equal}"
        return [*lines, f"greedy continuation of {count} tokens: {same}"]


@dataclass(frozen=True)
class NativeReport:
    """How a decoder was written as an architecture of transformers.

    Attributes:
        architecture: Class of transformers, such as `LlamaForCausalLM`.
        changes: What was computed, cut off or reordered on the way, a phrase each.
        verification: The comparison with our model; None if it was skipped.
    """

    architecture: str
    changes: tuple[str, ...] = ()
    verification: Verification | None = None

    def usage(self) -> str:
        """Return Python that loads the folder; FOLDER stands for it."""
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
        )

    def lines(self) -> list[str]:
        """Return architecture, changes and comparison, a line each, as they stand in the card."""
        compared = (
            ["not compared with the trained model (`--no-verify`)"]
            if self.verification is None
            else [f"compared with the trained model: {line}" for line in self.verification.lines()]
        )
        return [f"architecture: `{self.architecture}`, no remote code", *self.changes, *compared]
