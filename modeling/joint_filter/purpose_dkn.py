"""Purpose of a joint image filter: what it was trained for, and whether images fit that.

Standard library only. Sizes are height and width in pixels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

HoleRule = Literal["zero", "none"] | float  # DKNImageProcessor says what each means
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class FilterPurpose:
    """What a filter was trained for; config.json carries it as `purpose`."""

    task: str  # kind of the run's task, such as depth_upsampling
    scale: float  # how many times smaller than the guidance the targets were; 1: of its size
    downsampling: str | None = None  # how they were made smaller; None: they were not
    noise: float | None = None  # standard deviation of what was added to targets in [0, 1]; None: nothing
    unit: str | None = None  # of the run's errors; None: unknown
    units_per_value: float | None = None  # from a file's values to that unit; None: differs between sources
    value_range: tuple[float, float] | None = None  # least and greatest in the files' values; None: unknown
    invalid: HoleRule = "zero"  # which pixels of the training targets were holes

    def record(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        values = asdict(self)
        return values | {"value_range": None if self.value_range is None else list(self.value_range)}


def purpose_of(record: Mapping[str, Any] | None) -> FilterPurpose | None:
    """Return the purpose that a configuration carries; None: unknown, as in folders of earlier versions."""
    if record is None:
        return None
    span = record.get("value_range")
    return FilterPurpose(**{**record, "value_range": None if span is None else tuple(span)})


def purpose_faults(record: object) -> Iterator[tuple[str, str]]:
    """Yield the faults of a record that is to become a purpose: the key to change, and the message."""
    if not isinstance(record, Mapping):
        yield "purpose", f"{record!r} is no record of {', '.join(_TYPES)}; write null if it is unknown"
        return
    for name in record.keys() - _TYPES.keys():
        yield f"purpose.{name}", f"unknown; it may have {', '.join(_TYPES)}"
    for name in ("task", "scale"):
        if name not in record:
            yield f"purpose.{name}", "missing"
    for name, (is_valid, wanted) in _TYPES.items():
        if name in record and not is_valid(record[name]):
            yield f"purpose.{name}", f"{record[name]!r} is not {wanted}"


def is_hole_rule(value: object) -> bool:
    """Return whether a value is a HoleRule."""
    return value in ("zero", "none") if isinstance(value, str) else _is_number(value)


def is_scale(value: object) -> bool:
    """Return whether a value can be how many times smaller than the guidance a target is."""
    return _is_number(value, least=1)


def _is_number(value: object, least: float = -math.inf) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value >= least


def _is_range(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]


def _or_none(is_valid: Any) -> Any:
    return lambda value: value is None or is_valid(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_TYPES = {
    "task": (_is_text, "a name"),
    "scale": (is_scale, "a number of at least 1"),
    "downsampling": (_or_none(_is_text), "a name or null"),
    "noise": (_or_none(lambda value: _is_number(value, least=0)), "a number of at least 0, or null"),
    "unit": (_or_none(_is_text), "a name or null"),
    "units_per_value": (_or_none(_is_number), "a number or null"),
    "value_range": (_or_none(_is_range), "the least and greatest value, or null"),
    "invalid": (is_hole_rule, "zero, none or a number"),
}
assert _TYPES.keys() == {each.name for each in fields(FilterPurpose)}


# --------------------------------------------------------------------------------------------------- sizes and scales


def check_sizes(guidance: Size, target: Size, *, trained: float | None, stated: float | None) -> None:
    """Check that a target goes with a guidance, and that its scale is the one that a filter was trained for.

    Both sides may be rounded, up, down or to the nearest: 35 x 26 is 561 x 427 made smaller by 16.

    Args:
        guidance: Its size.
        target: Its size.
        trained: Scale that the filter was trained for; None: unknown, so any will do.
        stated: How many times coarser than the guidance the target is, if the user says so: one that was enlarged
            before has the guidance's size. None: the sizes tell.

    Warns:
        UserWarning: The target has another scale.

    Raises:
        ValueError: The target is larger or has another aspect, the statement contradicts the sizes, or the target is
            at full resolution and the filter sharpens smaller ones.
    """
    _check_aspect(guidance, target)
    measured = max(whole / part for whole, part in zip(guidance, target, strict=True))
    if stated is not None and not is_scale(stated):
        raise ValueError(f"scale: {stated!r} is not a number of at least 1: how many times coarser the target is")
    if stated is not None and stated < measured and not _explains(stated, guidance, target):
        raise ValueError(
            f"scale: {stated:g} given, but {_size(target)} is {measured:.3g} times smaller than {_size(guidance)}; "
            f"leave scale out, or write {measured:.3g} or more"
        )
    if trained is None or (_explains(trained, guidance, target) if stated is None else stated == trained):
        return
    scale = measured if stated is None else stated
    if scale == 1:
        raise ValueError(
            f"target: it has the guidance's size, {_size(guidance)}, but this filter sharpens targets {trained:g} "
            f"times smaller, and would spoil one at full resolution; pass the small one, or state scale={trained:g} if "
            f"it was enlarged to this size before"
        )
    wanted = f"targets {trained:g} times smaller" if trained > 1 else "targets at full resolution"
    warnings.warn(
        f"target: {scale:.3g} times coarser than the guidance, but this filter was trained for {wanted}; expect worse "
        f"than at that scale, perhaps worse than bicubic interpolation; use a filter trained for this scale",
        stacklevel=2,
    )


def _check_aspect(guidance: Size, target: Size) -> None:
    if any(part > whole for whole, part in zip(guidance, target, strict=True)):
        raise ValueError(
            f"target: {_size(target)} is larger than the guidance, {_size(guidance)}; the guidance sets the size of "
            f"what comes out: shrink the target or take a larger guidance"
        )
    pairs = _pairs(guidance, target)
    is_cut = guidance != target and any(whole == part > 1 for whole, part in pairs)
    if is_cut or not any(_is_one_scale(pairs, *rounding) for rounding in _ROUNDINGS):
        raise ValueError(
            f"target: {_size(target)} has another aspect than the guidance, {_size(guidance)}, and would be stretched; "
            f"crop them so that both show the same view"
        )


def _pairs(guidance: Size, target: Size) -> list[tuple[int, int]]:
    return list(zip(guidance, target, strict=True))


_ROUNDINGS = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))  # down, up, to the nearest: how far a side is too short, too long


def _is_one_scale(pairs: list[tuple[int, int]], short: float, long: float) -> bool:
    """Return whether some scale makes all sides what they are, with one rounding."""
    least = max(whole / (part + short) for whole, part in pairs)
    most = min(whole / (part - long) if part > long else math.inf for whole, part in pairs)
    return least < most or (least == most and short == long)  # a half is rounded either way


def _explains(scale: float, guidance: Size, target: Size) -> bool:
    """Return whether a target has the size of the guidance made smaller by a scale, however it was rounded."""
    errors = [whole / scale - part for whole, part in _pairs(guidance, target) if part > 1 or whole > scale]
    return (
        all(0 <= error < 1 for error in errors)
        or all(-1 < error <= 0 for error in errors)
        or all(-0.5 <= error <= 0.5 for error in errors)
    )


def _size(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
