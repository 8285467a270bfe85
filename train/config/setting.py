"""Settings: everything that is true of one field of a configuration, told where the field is declared.

    lr: float = setting("Peak learning rate", above=0)

Ranges, messages, what may change at a resume, how reports group runs, what an evaluation may override, `--settings` and
docs/settings.md are all derived from this. A section hands its properties down to the fields below it:

    probes: ProbesConfig = setting("What is measured inside the network", factory=ProbesConfig, resume="free")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import (
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

T = TypeVar("T")

AtResume = Literal["fixed", "free"]
InReport = Literal["distinguishes", "seed", "ignored"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is true of one setting.

    Args:
        meaning: What it does, as a phrase: "Peak learning rate".
        unit: Of its number.
        null: What null stands for, where it may be null, so that "null for ..." reads well: "no clipping".
        at_least: Smallest allowed value; of a list, of each entry. Likewise `above`, `at_most`, `below`.
        resume: Whether a run that goes on may change it. None: as its section says; so are the next two.
        report: Whether runs that differ in it are different lines in a report, seeds of one line, or the same.
        evaluation: Whether `python -m train.evaluate` may override it.
        judges: Whether validation metrics of runs that differ in it cannot be compared.
    """

    meaning: str
    unit: str = ""
    null: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    resume: AtResume | None = None
    report: InReport | None = None
    evaluation: bool | None = None
    judges: bool = False

    @property
    def range_text(self) -> str:
        """The allowed numbers, as one would say them; empty where all are."""
        if self.at_least is not None:
            upper = f" to {self.at_most:g}" if self.at_most is not None else ""
            upper = f" to below {self.below:g}" if self.below is not None else upper
            return f"a number from {self.at_least:g}{upper}" if upper else f"{self.at_least:g} or more"
        bounds = {"above": self.above, "of at most": self.at_most, "below": self.below}
        words = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
        return f"a number {' and '.join(words)}" if words else ""

    def violation(self, value: object) -> str | None:
        """Return what is wrong with a value of the right type; None where it is in range."""
        numbers = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
        for number in numbers:
            if isinstance(number, int | float) and not isinstance(number, bool) and (side := self._outside(number)):
                remedy = f"null for {self.null}" if number == 0 and self.null else self.range_text
                return f"{number} is too {side}; write {remedy}"
        return None

    def _outside(self, number: float) -> Literal["small", "large"] | None:
        if (self.at_least is not None and number < self.at_least) or (self.above is not None and number <= self.above):
            return "small"
        if (self.at_most is not None and number > self.at_most) or (self.below is not None and number >= self.below):
            return "large"
        return None


def setting(
    meaning: str,
    *,
    default: Any = dataclasses.MISSING,
    factory: Callable[[], Any] | None = None,
    **properties: Any,
) -> Any:
    """Declare a field with its meaning and properties; without `default` and `factory` it is required.

    Args:
        meaning: See `Setting`, also for the properties.
        default: Its value where it is not given.
        factory: Makes that value.
        properties: Fields of `Setting`.
    """
    metadata = {"setting": Setting(meaning=meaning, **properties)}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
def section(cls: type[T]) -> type[T]:
    """Make a class a section of a configuration: a frozen dataclass whose fields are settings."""
    return dataclass(frozen=True, kw_only=True)(cls)


def setting_of(field: dataclasses.Field[Any]) -> Setting:
    """Return what is true of a field; of one that is no setting, nothing but its name."""
    return field.metadata.get("setting", Setting(meaning=""))


class Entry(NamedTuple):
    """A setting in its place."""

    path: str  # of an entry of a list of sections: `task.data.sources.0.path`
    field: dataclasses.Field[Any]
    type: Any
    setting: Setting  # with what its sections hand down
    owner: type  # the section that declares it

    @property
    def is_section(self) -> bool:
        """Whether it holds settings, and no value of its own."""
        return bool(sections_of(self.type))


def entries(kind: Any, path: str = "", above: Setting | None = None) -> Iterator[Entry]:
    """Yield every setting below a section, sections included, depth first and in the order of declaration.

    Of a union of sections, as a run's task is, those of each alternative.
    """
    for owner in sections_of(kind):
        hints = get_type_hints(owner)
        for field in dataclasses.fields(owner):
            entry = Entry(
                f"{path}{field.name}", field, hints[field.name], _handed_down(setting_of(field), above), owner
            )
            yield entry
            yield from entries(entry.type, f"{entry.path}.", entry.setting)
            if get_origin(entry.type) is tuple:
                yield from entries(get_args(entry.type)[0], f"{entry.path}.0.", entry.setting)


def sections_of(kind: Any) -> list[type]:
    """Return the sections that a type stands for: itself, or the members of a union."""
    members = get_args(kind) if is_union(kind) else (kind,)
    return [member for member in members if isinstance(member, type) and dataclasses.is_dataclass(member)]


def is_union(kind: Any) -> bool:
    """Return whether a type is `A | B`."""
    return get_origin(kind) in (Union, UnionType)


def default_of(owner: type, name: str) -> Any:
    """Return the default of a section's field."""
    return next(field.default for field in dataclasses.fields(owner) if field.name == name)


def settings_in(value: Any, path: str = "", above: Setting | None = None) -> Iterator[tuple[str, Setting]]:
    """Yield every setting of a section that was read, by its path, with what is true of it; sections included."""
    for field in dataclasses.fields(value):
        own, below = _handed_down(setting_of(field), above), getattr(value, field.name)
        yield (here := f"{path}{field.name}"), own
        if dataclasses.is_dataclass(below):
            yield from settings_in(below, f"{here}.", own)
        for number, item in enumerate(cast("tuple[Any, ...]", below) if isinstance(below, tuple) else ()):
            if dataclasses.is_dataclass(item):
                yield from settings_in(item, f"{here}.{number}.", own)


def nearest(path: str, properties: Mapping[str, T]) -> T | None:
    """Return a property of a path; of one that is not listed, that of the nearest section or list above it."""
    while path not in properties and "." in path:
        path = path.rpartition(".")[0]
    return properties.get(path)


def _handed_down(own: Setting, above: Setting | None) -> Setting:
    if above is None:
        return own
    names = ("resume", "report", "evaluation")
    inherited = {name: getattr(above, name) for name in names if getattr(own, name) is None}
    return dataclasses.replace(own, judges=own.judges or above.judges, **inherited)
