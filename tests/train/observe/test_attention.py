"""The kernel that attention takes, by versions, card, shape and settings: none of them need be here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from train.observe.attention import Choice, Machine, choice, expected_choice, warning
from train.tasks.task import AttentionShape

SHAPE = AttentionShape(heads=16, key_value_heads=8, width=128, length=2048)  # configs/language_model/1.5b.yaml
HOPPER = Machine((9, 0), 9_15_01, "13.0", torch.bfloat16, deterministic=False, environment={})


def chosen(width: int = 128, **machine: Any) -> Choice:
    return expected_choice(SHAPE._replace(width=width), HOPPER._replace(**machine))


def test_a_hopper_card_with_a_recent_cudnn_takes_it() -> None:
    assert chosen() == Choice("cudnn", {})
    assert warning(chosen(), HOPPER) is None


@pytest.mark.parametrize(
    ("width", "machine", "kernel", "reason"),
    [
        (
            128,
            {"cudnn": 9_15_00},
            "flash",
            'cuDNN 9.15.0 is older than 9.15.1; pip install "nvidia-cudnn-cu13>=9.15.1"',
        ),
        (128, {"cudnn": 9_10_02, "cuda": "12.8"}, "flash", 'pip install "nvidia-cudnn-cu12>=9.15.1"'),
        (128, {"cudnn": None}, "flash", "cuDNN is missing"),
        (128, {"environment": {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}}, "flash", "unset it"),
        (160, {}, "flash", "a head width of 160 is above 128; use more, narrower heads"),
        (320, {}, "efficient", "a head width of 320 is above 256; use more, narrower heads"),
        (300, {}, "math", "a head width of 300 is not a multiple of 8"),
    ],
)
def test_a_silent_fall_to_a_slower_kernel_is_warned_of_with_what_to_do(
    width: int, machine: dict[str, Any], kernel: str, reason: str
) -> None:
    found = chosen(width, **machine)
    assert found.kernel == kernel
    said = warning(found, HOPPER._replace(**machine))
    assert said is not None
    assert kernel in said
    assert reason in said


@pytest.mark.parametrize(
    ("machine", "kernel"),
    [
        ({"deterministic": True}, "flash"),  # asked for
        ({"dtype": torch.float32}, "efficient"),  # asked for
        ({"capability": (8, 0)}, "flash"),  # an A100 has nothing faster
    ],
)
def test_what_the_user_chose_or_cannot_change_is_known_but_not_warned_of(machine: dict[str, Any], kernel: str) -> None:
    found = chosen(**machine)
    assert found.kernel == kernel
    assert found.obstacles["cudnn"]
    assert warning(found, HOPPER._replace(**machine)) is None


def test_an_old_card_is_told_why_it_falls_to_the_third_kernel() -> None:
    found = chosen(capability=(7, 5))
    assert found.kernel == "efficient"
    assert "it needs compute capability 8.0" in (warning(found, HOPPER._replace(capability=(7, 5))) or "")


def test_torch_itself_is_asked() -> None:
    cpu = torch.device("cpu")
    assert choice(SHAPE, cpu, torch.bfloat16) == Choice("flash", {})


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128, 160, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_rules_are_those_of_torch(width: int, dtype: torch.dtype, deterministic: bool) -> None:
    device, shape = torch.device("cuda"), SHAPE._replace(width=width)
    torch.use_deterministic_algorithms(deterministic)
    try:
        assert choice(shape, device, dtype).kernel == expected_choice(shape, Machine.here(device, dtype)).kernel
    finally:
        torch.use_deterministic_algorithms(False)
