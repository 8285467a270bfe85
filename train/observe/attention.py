"""The kernel that torch's scaled_dot_product_attention takes, and the obstacles to faster ones.

torch chooses in silence: without a recent cuDNN, on other cards, at other head widths or under deterministic algorithms
it falls to FlashAttention 2, which takes 1.7 to 2.3 times as long as cuDNN's on an H100, or to slower kernels still.
The rules are those of torch 2.13 (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp), not yet compared with a card.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend

from train.tasks.task import AttentionShape

_WITHOUT_CUDNN = "TORCH_CUDNN_SDPA_DEPRIORITIZED"  # environment variable that puts cuDNN last
_FIRST_CUDNN = 9_15_01
_KERNELS = {  # fastest first
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


class Machine(NamedTuple):
    """What the choice depends on besides the shape."""

    capability: tuple[int, int]  # of the GPU: (9, 0) for Hopper
    cudnn: int | None  # version that is loaded: 9_15_01 for 9.15.1
    cuda: str | None  # version that torch was built for
    dtype: torch.dtype
    deterministic: bool
    environment: Mapping[str, str] = os.environ

    @staticmethod
    def here(device: torch.device, dtype: torch.dtype) -> Machine:
        """Return that of a GPU in this process."""
        return Machine(
            capability=torch.cuda.get_device_capability(device),
            cudnn=torch.backends.cudnn.version(),
            cuda=torch.version.cuda,
            dtype=dtype,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )


class Choice(NamedTuple):
    """A kernel, and what keeps torch from each faster one."""

    kernel: str
    obstacles: dict[str, list[str]]  # by kernel


def expected_choice(shape: AttentionShape, machine: Machine) -> Choice:
    """Return the choice that the rules give for training with causal attention and no mask."""
    obstacles: dict[str, list[str]] = {}
    for kernel, rules in (("cudnn", _against_cudnn), ("flash", _against_flash), ("efficient", _against_efficient)):
        against = rules(shape, machine)
        if not against:
            return Choice(kernel, obstacles)
        obstacles[kernel] = against
    return Choice("math", obstacles)


def choice(shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> Choice:
    """Return the kernel that torch says it takes here, with the rules' reasons."""
    query, key = (
        torch.empty(1, heads, shape.length, shape.width, device=device, dtype=dtype, requires_grad=True)
        for heads in (shape.heads, shape.key_value_heads)
    )
    grouped = shape.heads != shape.key_value_heads
    taken = SDPBackend(
        torch._fused_sdp_choice(query, key, key, is_causal=True, enable_gqa=grouped)  # pyright: ignore[reportPrivateImportUsage]
    )
    kernel = next((name for name, backend in _KERNELS.items() if backend == taken), taken.name.lower())
    if device.type != "cuda":
        return Choice(kernel, {})
    faster = list(_KERNELS)[: list(_KERNELS).index(kernel)] if kernel in _KERNELS else []
    expected = expected_choice(shape, Machine.here(device, dtype))
    return Choice(kernel, {name: expected.obstacles.get(name, ["torch does not say why"]) for name in faster})


def warning(found: Choice, machine: Machine) -> str | None:
    """Return what to say of a kernel that is slower than it need be, None if nothing can be done about it.

    What the user has chosen (deterministic algorithms, fp32, the card) is not to be warned of.
    """
    chosen = machine.deterministic or machine.dtype not in (torch.bfloat16, torch.float16)
    has_faster = machine.capability in ((9, 0), (10, 0)) or found.kernel in ("efficient", "math")
    if not found.obstacles or chosen or not has_faster:
        return None
    reasons = "; ".join(f"not {kernel}: {', '.join(against)}" for kernel, against in found.obstacles.items())
    return f"attention runs on a slower kernel than this GPU has, {found.kernel} ({reasons})"


def _against_cudnn(shape: AttentionShape, machine: Machine) -> list[str]:
    against = []
    if machine.capability not in ((9, 0), (10, 0)):
        against.append("torch prefers it on Hopper and Blackwell data-center GPUs only")
    if machine.cudnn is None or machine.cudnn < _FIRST_CUDNN:
        found = "is missing" if machine.cudnn is None else f"{_dotted(machine.cudnn)} is older than 9.15.1"
        against.append(f"cuDNN {found}; {_newer_cudnn(machine.cuda)}")
    if machine.environment.get(_WITHOUT_CUDNN, "0") not in ("", "0"):
        against.append(f"{_WITHOUT_CUDNN} is set; unset it")
    if shape.width > 128:
        against.append(f"a head width of {shape.width} is above 128; use more, narrower heads")
    if shape.width % 8:
        against.append(f"a head width of {shape.width} is not a multiple of 8")
    if machine.deterministic:
        against.append("it is not deterministic, and engine.deterministic is on")
    return against + _against_dtype(machine)


def _against_flash(shape: AttentionShape, machine: Machine) -> list[str]:
    against = []
    if machine.capability < (8, 0):
        against.append("it needs compute capability 8.0")
    if shape.width > 256:
        against.append(f"a head width of {shape.width} is above 256; use more, narrower heads")
    return against + _against_dtype(machine)


def _against_efficient(shape: AttentionShape, machine: Machine) -> list[str]:
    unit = 4 if machine.dtype == torch.float32 else 8
    return [f"a head width of {shape.width} is not a multiple of {unit}"] if shape.width % unit else []


def _against_dtype(machine: Machine) -> list[str]:
    return [] if machine.dtype in (torch.bfloat16, torch.float16) else ["it needs bf16; set engine.precision: bf16"]


def _newer_cudnn(cuda: str | None) -> str:
    major = (cuda or "13").partition(".")[0]
    return f'pip install "nvidia-cudnn-cu{major}>=9.15.1"'


def _dotted(version: int) -> str:
    return f"{version // 10_000}.{version // 100 % 100}.{version % 100}"
