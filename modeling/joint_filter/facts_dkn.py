"""Facts about the joint image filters: shape, defaults, layers, and cross-field checks.

Standard library only: run configuration reads these facts without importing torch, and exported folders include this
file; facts_counts_dkn.py holds the counts.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


@dataclass(frozen=True, kw_only=True)
class FilterShape:
    """Shape of a filter, with its defaults; DKNConfig says what each field means."""

    architecture: Literal["fdkn", "dkn"] = "fdkn"
    residual: bool = True
    kernel_size: int = 3
    window_size: int = 15
    sampling: Literal["centered", "compat"] = "centered"
    guidance: bool = True
    guidance_channels: int = 3
    target_channels: int = 1


CELL = 4  # pixels along each side of what FDKN treats as one, and DKN's total stride
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue
PATCH_BEFORE, PATCH_AFTER = 25, 24  # pixels that DKN sees to the left and right, and above and below


class StageShape(NamedTuple):
    """One convolution of a branch."""

    channels: int
    kernel_size: int
    norm: bool = False
    splits: bool = False  # stands for a stride of 2


# DKN down-samples by convolutions that are learned; FDKN is at a quarter of the resolution from the start.
STAGES = {
    "dkn": (
        StageShape(32, 7, norm=True),
        StageShape(32, 2, splits=True),
        StageShape(64, 5, norm=True),
        StageShape(64, 2, splits=True),
        StageShape(128, 5, norm=True),
        StageShape(128, 3),
        StageShape(128, 3),
    ),
    "fdkn": tuple(StageShape(channels, 3, norm) for channels in (32, 64, 128) for norm in (True, False)),
}


class Fault(NamedTuple):
    """One fault of a shape: the key to change, and the message."""

    key: str
    message: str


def shape_faults(values: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the faults of values that conflict or describe no possible filter.

    Args:
        values: Fields of FilterShape, each valid by itself. A rule is skipped if a value it reads is absent, so leave
            out invalid values.
    """
    for rule in SHAPE_RULES:
        names = inspect.signature(rule).parameters
        if names.keys() <= values.keys():
            yield from rule(**{name: values[name] for name in names})


def _kernel_has_a_middle(kernel_size: int) -> Iterator[Fault]:
    if kernel_size % 2 == 0:
        yield Fault("kernel_size", _even(kernel_size))


def _window_has_a_middle(window_size: int) -> Iterator[Fault]:
    if window_size % 2 == 0:
        yield Fault("window_size", _even(window_size))


def _even(size: int) -> str:
    odd = "3" if size == 2 else f"{size - 1} or {size + 1}"  # a side of 1 is a single pixel
    return f"{size} has no pixel in the middle; write {odd}"


def _kernel_can_learn(kernel_size: int, residual: bool) -> Iterator[Fault]:
    if kernel_size == 1 and residual:
        why = "1 cannot learn in the residual form, where a kernel sums to 0: its only weight stays 0"
        yield Fault("kernel_size", f"{why}; write 3, or residual=false")


def _kernel_fits_its_window(kernel_size: int, window_size: int) -> Iterator[Fault]:
    if window_size == 1:
        yield Fault("window_size", "1 leaves nothing to sample but the pixel itself; write 3 or more")
    elif kernel_size > window_size:
        message = f"{kernel_size} is more than window_size {window_size}; write at most that, or a larger window"
        yield Fault("kernel_size", message)


SHAPE_RULES: tuple[Callable[..., Iterator[Fault]], ...] = (
    _kernel_has_a_middle,
    _window_has_a_middle,
    _kernel_can_learn,
    _kernel_fits_its_window,
)  # the parameters of a rule name the values that it reads
