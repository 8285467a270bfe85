"""Configurations of the two networks of box-supervised segmentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from transformers import PreTrainedConfig

from .facts_bap import (
    BACKGROUND,
    Backbone,
    BoxClassifierShape,
    Fault,
    NetworkShape,
    Normalization,
    SegmenterShape,
    shape_faults,
)

Shape = TypeVar("Shape", bound=NetworkShape)


class _NetworkConfig(PreTrainedConfig):
    """What both configurations have. `id2label` names the classes; 0 is the background."""

    _shape_type: ClassVar[type[NetworkShape]]
    _auto_class: ClassVar[str | None] = "AutoConfig"  # save_pretrained copies this file and names it in config.json

    backbone: Backbone = NetworkShape.backbone
    normalization: Normalization | None = NetworkShape.normalization
    features: int | None = NetworkShape.features
    dropout: float = NetworkShape.dropout

    def __post_init__(self, **kwargs: Any) -> None:
        names = [each.name for each in fields(self._shape_type)]
        values = {name: getattr(self, name) for name in names}
        faults = [*_choice_faults(self._shape_type, values), *_number_faults(values), *shape_faults(values)]
        if faults:
            raise ValueError("\n".join(f"{key}: {message}" for key, message in faults))
        super().__post_init__(**kwargs)

    @property
    def classes(self) -> list[str]:
        """The names of all classes, the background's first."""
        names: Any = self.id2label  # transformers fills it in, with whole numbers as keys
        return [names[number] for number in sorted(names)]

    @classmethod
    def of_classes(cls, classes: list[str], **values: Any) -> Any:
        """Return a configuration for object classes; the background comes before them."""
        names = dict(enumerate([BACKGROUND, *classes]))
        return cls(id2label=names, label2id={name: number for number, name in names.items()}, **values)


class BoxClassifierConfig(_NetworkConfig):
    """A classifier of boxes; BoxClassifierShape explains the fields.

    Raises:
        ValueError: Fields are invalid or conflict; one message lists all faults, one per line.
    """

    model_type = "bap_box_classifier"
    _shape_type = BoxClassifierShape

    pooling: Literal["background", "average"] = BoxClassifierShape.pooling
    grid: int = BoxClassifierShape.grid
    roi: int = BoxClassifierShape.roi
    smallest_background: float = BoxClassifierShape.smallest_background

    @property
    def shape(self) -> BoxClassifierShape:
        """The fields of this network."""
        return _shape_of(self, BoxClassifierShape)


class SegmenterConfig(_NetworkConfig):
    """A segmentation network; SegmenterShape explains the fields.

    Raises:
        ValueError: Fields are invalid or conflict; one message lists all faults, one per line.
    """

    model_type = "bap_segmenter"
    _shape_type = SegmenterShape

    classifier: Literal["cosine", "linear"] = SegmenterShape.classifier
    temperature: float = SegmenterShape.temperature

    @property
    def shape(self) -> SegmenterShape:
        """The fields of this network."""
        return _shape_of(self, SegmenterShape)


def _shape_of(config: _NetworkConfig, kind: type[Shape]) -> Shape:
    return kind(**{each.name: getattr(config, each.name) for each in fields(kind)})


def _choice_faults(kind: type[NetworkShape], values: dict[str, Any]) -> Iterator[Fault]:
    for name, hint in get_type_hints(kind).items():
        choices = _choices(hint)
        if choices and values[name] not in choices:
            yield Fault(name, f"{values[name]!r} is none of {', '.join(map(str, choices))}")


def _choices(hint: Any) -> tuple[Any, ...]:
    """Return the values of a Literal, or of a Literal or None; nothing for other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    found = tuple(value for part in get_args(hint) for value in _choices(part))
    return (*found, None) if found and type(None) in get_args(hint) else found


def _number_faults(values: dict[str, Any]) -> Iterator[Fault]:
    for name in ("grid", "roi", "features"):
        value = values.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            yield Fault(name, f"{value!r} is not a whole number of at least 1")
    for name in ("dropout", "smallest_background"):
        value = values.get(name, 0.0)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            yield Fault(name, f"{value!r} is not a number from 0 to below 1")
    if not values.get("temperature", 1.0) > 0:
        yield Fault("temperature", f"{values['temperature']!r} is not above 0")
