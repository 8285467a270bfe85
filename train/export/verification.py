"""Comparison of a natively exported folder with our model: logits in fp32 and bf16, and a greedy continuation.

Both models run a module at a time, so one of 3.2B parameters needs the memory of its embedding, not of itself. What
rounding explains is measured: ours in fp64 is the reference, and the exported model may be as far from it as ours in
the same type is, times SLACK.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from modeling.decoder.configuration_periln import PeriLNConfig
from modeling.decoder.modeling_periln import PeriLNForCausalLM
from train.convert.steps import Read
from train.export.native_report import Continuation, Difference, Verification, VerificationError
from train.export.native_weights import tensors_in
from train.export.streaming import outline, streamed_states

SLACK = 4.0  # measured over all architectures, plain and folded, by tests/train/export/test_native.py: below 1.5
# Beside it, relative to the largest logit, as a model of a few layers may happen to round to nothing at all.
FLOOR = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
SMALL = 300_000_000  # parameters up to which whole models are loaded, to generate: 2.4 GB for both in fp32
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_PROMPT, _CONTINUATION = 16, 32  # tokens


def verify(
    config: PeriLNConfig, read: Read, folder: Path, tokens: Mapping[str, Tensor], *, dtype: torch.dtype
) -> Verification:
    """Compare an exported folder with our model.

    Args:
        config: Ours.
        read: Returns a tensor of ours by name, in fp32.
        folder: A folder that transformers loads without remote code.
        tokens: Tokens (B, T) to compare on, by what they are.
        dtype: Type of the weights on disk.

    Raises:
        VerificationError: Tensors are missing or left over, or a difference exceeds what rounding explains.
    """
    native_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    native = outline(lambda: AutoModelForCausalLM.from_config(native_config, dtype=torch.float32))
    ours = outline(lambda: PeriLNForCausalLM(config))
    differences: list[Difference] = []
    for inputs, ids in tokens.items():
        exact = streamed_states(ours, read, ids, dtype=torch.float64)
        for computed in _NAMES:
            mine = streamed_states(ours, _rounded(read, dtype), ids, dtype=computed)
            theirs = streamed_states(native, tensors_in(folder), ids, dtype=computed)
            differences.append(_difference(inputs, computed, exact, mine, theirs))
    is_small = sum(parameter.numel() for parameter in native.parameters()) <= SMALL
    prompt = list(tokens.values())[-1][:, :_PROMPT]
    continuation = _continuation(config, read, folder, prompt, differences) if is_small else None
    return Verification(tuple(differences), continuation)


def _rounded(read: Read, dtype: torch.dtype) -> Read:
    """Return ours as an export in this type would store them."""
    return lambda name: read(name).to(dtype).float()


def _difference(
    inputs: str, dtype: torch.dtype, exact: list[Tensor], mine: list[Tensor], theirs: list[Tensor]
) -> Difference:
    """Compare the logits.

    Raises:
        VerificationError: They differ by more than rounding explains; with the first place that does.
    """
    compared = [
        (_largest(other.double() - reference), _largest(own.double() - reference), _largest(reference))
        for reference, own, other in zip(exact, mine, theirs, strict=True)
    ]
    faults = [
        number
        for number, (error, rounding, largest) in enumerate(compared)
        if not error <= SLACK * rounding + FLOOR[dtype] * largest
    ]
    error, rounding, largest = compared[-1]
    if len(compared) - 1 in faults:
        first = f"layer {faults[0]} reads another stream" if faults[0] < len(compared) - 2 else "the last layer differs"
        raise VerificationError(
            f"the exported model does not compute what the trained one does: in {_NAMES[dtype]} on {inputs}, logits "
            f"are off by {error:.3g}, and rounding by {rounding:.3g} ({first}); nothing was written. Export with "
            "--format periln, and report this with the run's config.yaml"
        )
    return Difference(inputs, _NAMES[dtype], _largest(theirs[-1].double() - mine[-1]), error, rounding, largest)


def _largest(values: Tensor) -> float:
    return values.abs().max().item()


@torch.no_grad()
def _continuation(
    config: PeriLNConfig, read: Read, folder: Path, prompt: Tensor, differences: list[Difference]
) -> Continuation:
    """Continue a prompt greedily with both models; loads the folder as any user would.

    Raises:
        VerificationError: transformers finds tensors missing or left over, or the texts differ where it is no tie.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
    )
    native, info = loaded
    odd = {key: sorted(map(str, names)) for key, names in info.items() if names}
    if odd:
        raise VerificationError(f"transformers does not load the exported folder cleanly: {odd}; nothing was written")
    ours: Any = PeriLNForCausalLM(config).eval()
    ours.load_state_dict({name: read(name) for name in ours.state_dict()})
    settings: dict[str, Any] = {"max_new_tokens": _CONTINUATION, "min_new_tokens": _CONTINUATION, "do_sample": False}
    mask = torch.ones_like(prompt)
    mine, theirs = (
        model.generate(prompt, attention_mask=mask, pad_token_id=0, **settings)[:, prompt.shape[1] :]
        for model in (ours, native)
    )
    equal = _equal_tokens(mine, theirs)
    if equal < _CONTINUATION:
        row = int((mine[:, equal] != theirs[:, equal]).nonzero()[0])
        logits = ours(torch.cat((prompt, mine), dim=1)[row : row + 1, : prompt.shape[1] + equal]).logits[0, -1]
        gap = (logits[mine[row, equal]] - logits[theirs[row, equal]]).abs().item()
        limit = max(each.error + each.rounding for each in differences if each.dtype == "fp32")
        if gap > 2 * limit:
            raise VerificationError(
                f"the greedy continuations differ from token {equal + 1} on, where the two best logits are {gap:.3g} "
                f"apart; nothing was written"
            )
    return Continuation(_CONTINUATION, equal)


def _equal_tokens(mine: Tensor, theirs: Tensor) -> int:
    """Return the number of leading columns in which two continuations (B, n) are equal."""
    return int((mine == theirs).all(dim=0).long().cumprod(0).sum())
