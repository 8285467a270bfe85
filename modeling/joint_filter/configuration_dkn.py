"""Configuration of the joint image filters DKN and FDKN."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, ClassVar, Literal, get_args, get_origin

import transformers

from .facts_dkn import Fault, FilterShape, shape_faults
from .purpose_dkn import FilterPurpose, purpose_faults, purpose_of

REQUIRED_TRANSFORMERS = (5, 23)  # as in pyproject.toml

_FIELDS = tuple(each.name for each in fields(FilterShape))
_COUNTS = tuple(each.name for each in fields(FilterShape) if each.type is int)
_CHOICES: dict[str, tuple[object, ...]] = {
    each.name: (True, False) if each.type is bool else get_args(each.type)
    for each in fields(FilterShape)
    if each.type is bool or get_origin(each.type) is Literal
}


def _refuse_older_transformers(version: str) -> None:
    """Refuse versions of transformers with which this code would fail later, by the name of something missing.

    Raises:
        ImportError: `version` is older than REQUIRED_TRANSFORMERS.
    """
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < REQUIRED_TRANSFORMERS:
        required = ".".join(map(str, REQUIRED_TRANSFORMERS))
        remedy = f"pip install 'transformers>={required}'"
        raise ImportError(f"this model needs transformers {required} or later, and {version} is installed: {remedy}")


_refuse_older_transformers(transformers.__version__)  # the first of the model's files that transformers imports


class DKNConfig(transformers.PreTrainedConfig):
    """A deformable kernel network (Kim, Ponce and Ham, IJCV 2021) or its fast version.

    Args:
        architecture: `fdkn` predicts kernels on a grid of 4 x 4 pixels; `dkn` from a 51 x 51 patch around each pixel.
        residual: Kernels sum to 0 and their average is added to the target; otherwise they sum to 1.
        kernel_size: Samples along each side of a kernel, odd: 3 makes 9. In the residual form at least 3.
        window_size: Side of the square of pixels, odd and at least 3, that a kernel may read from; beyond it there are
            zeros.
        sampling: Where a kernel reads when its offsets are zero. `centered`: at the pixel and its neighbors;
            `compat`: displaced by 0.47 pixels and a little denser (window 15), as the authors' weights have learned it.
        guidance: False: the target alone decides the kernels.
        guidance_channels: Of the guidance; three are red, green and blue, of which `fdkn` takes the luma.
        target_channels: Of the target; all are filtered with the same kernels.
        purpose: What the filter was trained for, with the fields of FilterPurpose; None: unknown. It is no part of the
            network: `DKNModel.filter` compares images with it.

    Raises:
        ValueError: Fields are invalid or conflict; one message lists all faults, one per line.
    """

    model_type = "dkn"
    _auto_class: ClassVar[str | None] = "AutoConfig"  # save_pretrained copies this file and names it in config.json

    architecture: Literal["fdkn", "dkn"] = FilterShape.architecture
    residual: bool = FilterShape.residual
    kernel_size: int = FilterShape.kernel_size
    window_size: int = FilterShape.window_size
    sampling: Literal["centered", "compat"] = FilterShape.sampling
    guidance: bool = FilterShape.guidance
    guidance_channels: int = FilterShape.guidance_channels
    target_channels: int = FilterShape.target_channels
    purpose: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if faults := [*self._faults(), *(purpose_faults(self.purpose) if self.purpose is not None else ())]:
            raise ValueError("\n".join(f"{key}: {message}" for key, message in faults))
        super().__post_init__(**kwargs)

    def trained_for(self) -> FilterPurpose | None:
        """Return the purpose of the filter; None: unknown."""
        return purpose_of(self.purpose)

    def _faults(self) -> list[Fault]:
        """Return all faults of the shape, of single values and of combinations, in the order of the fields."""
        faults = [*self._choice_faults(), *self._count_faults()]
        valid = {name: getattr(self, name) for name in _FIELDS}
        for fault in faults:
            del valid[fault.key]
        faults += shape_faults(valid)
        return sorted(faults, key=lambda fault: _FIELDS.index(fault.key))

    def _choice_faults(self) -> Iterator[Fault]:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if not any(type(value) is type(each) and value == each for each in allowed):
                yield Fault(name, f"{value!r} is none of {', '.join(map(str, allowed))}")

    def _count_faults(self) -> Iterator[Fault]:
        for name in _COUNTS:
            if not _is_count(value := getattr(self, name)):
                yield Fault(name, f"{value!r} is not a whole number of at least 1")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
