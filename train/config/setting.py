"""Settings: all properties of a configuration field, declared together with the field.

    lr: float = setting("Peak learning rate", above=0)

Ranges, messages, what may change on resume, how reports group runs, what an evaluation may override, `--settings` and
docs/settings.md are all derived from these declarations. Fields inherit the properties of their section:

    probes: ProbesConfig = setting("Measurements inside the network", factory=ProbesConfig, resume="free")
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

AtResume = Literal["fixed", "free", "by_fingerprint"]
InReport = Literal["distinguishes", "seed", "ignored"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Properties of one setting.

    Args:
        meaning: The effect of the setting, as a phrase: "Peak learning rate".
        unit: The unit of a numeric value.
        null: The meaning of null, if allowed, phrased to follow "null for ...": "no clipping".
        at_least: Smallest allowed value, or smallest allowed entry of a list; likewise `above`, `at_most`, `below`.
            Every number has a lower and an upper limit, within which it reaches torch and the clock as written.
        resume: Whether it may change when a run resumes; "by_fingerprint": if the data are the same. None inherits from
            the section, as for the next two.
        report: Whether runs that differ in it are separate lines in a report, seeds of one line, or equal.
        evaluation: Whether `python -m train.evaluate` may override it; "run": of a run only, not of an exported folder,
            which it says nothing about.
        judges: Whether a difference makes validation metrics incomparable.
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
    evaluation: bool | Literal["run"] | None = None
    judges: bool = False

    @property
    def range_text(self) -> str:
        """The allowed numbers in words; empty if all are allowed."""
        if self.at_least is not None:
            upper = f" to {_words(self.at_most)}" if self.at_most is not None else ""
            upper = f" to below {_words(self.below)}" if self.below is not None else upper
            return f"a number from {_words(self.at_least)}{upper}" if upper else f"{_words(self.at_least)} or more"
        bounds = {"above": self.above, "of at most": self.at_most, "below": self.below}
        words = [f"{word} {_words(bound)}" for word, bound in bounds.items() if bound is not None]
        return f"a number {' and '.join(words)}" if words else ""

    def violation(self, value: object) -> str | None:
        """Describe how a value of the right type violates its range; None if it is in range."""
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


def _words(number: float) -> str:
    """Return a bound as YAML reads it: a whole one with all its digits."""
    return f"{number:_}" if isinstance(number, int) else f"{number:g}"


def setting(
    meaning: str,
    *,
    default: Any = dataclasses.MISSING,
    factory: Callable[[], Any] | None = None,
    **properties: Any,
) -> Any:
    """Declare a field with its meaning and properties; it is required unless `default` or `factory` is given.

    Args:
        meaning: See `Setting`.
        default: The default value.
        factory: A function that creates the default value.
        properties: Other fields of `Setting`.
    """
    metadata = {"setting": Setting(meaning=meaning, **properties)}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
def section(cls: type[T]) -> type[T]:
    """Turn a class into a configuration section: a frozen dataclass whose fields are settings."""
    return dataclass(frozen=True, kw_only=True)(cls)


def setting_of(field: dataclasses.Field[Any]) -> Setting:
    """Return the properties of a field; empty properties for a field that is not a setting."""
    return field.metadata.get("setting", Setting(meaning=""))


class Entry(NamedTuple):
    """A setting and its position in the configuration."""

    path: str  # entries of a list of sections are numbered: `task.data.sources.0.path`
    field: dataclasses.Field[Any]
    type: Any
    setting: Setting  # with inherited properties
    owner: type  # the section that declares it

    @property
    def is_section(self) -> bool:
        """Whether it contains settings instead of a value."""
        return bool(sections_of(self.type))


def entries(kind: Any, path: str = "", above: Setting | None = None) -> Iterator[Entry]:
    """Yield every setting below a section, including sections, depth first and in order of declaration.

    For a union of sections, such as a run's task, yield the settings of each alternative.
    """
    for owner in sections_of(kind):
        hints = get_type_hints(owner)
        for field in dataclasses.fields(owner):
            entry = Entry(f"{path}{field.name}", field, hints[field.name], _inherited(setting_of(field), above), owner)
            yield entry
            yield from entries(entry.type, f"{entry.path}.", entry.setting)
            if get_origin(entry.type) is tuple:
                yield from entries(get_args(entry.type)[0], f"{entry.path}.0.", entry.setting)


def sections_of(kind: Any) -> list[type]:
    """Return the sections that a type contains: itself, or the members of a union."""
    members = get_args(kind) if is_union(kind) else (kind,)
    return [member for member in members if isinstance(member, type) and dataclasses.is_dataclass(member)]


def is_union(kind: Any) -> bool:
    """Return whether a type is `A | B`."""
    return get_origin(kind) in (Union, UnionType)


def default_of(owner: type, name: str) -> Any:
    """Return the default of a section's field."""
    return next(field.default for field in dataclasses.fields(owner) if field.name == name)


def settings_in(value: Any, path: str = "", above: Setting | None = None) -> Iterator[tuple[str, Setting]]:
    """Yield the path and properties of every setting in a loaded section, including sections."""
    for field in dataclasses.fields(value):
        own, below = _inherited(setting_of(field), above), getattr(value, field.name)
        yield (here := f"{path}{field.name}"), own
        if dataclasses.is_dataclass(below):
            yield from settings_in(below, f"{here}.", own)
        for number, item in enumerate(cast("tuple[Any, ...]", below) if isinstance(below, tuple) else ()):
            if dataclasses.is_dataclass(item):
                yield from settings_in(item, f"{here}.{number}.", own)


def nearest(path: str, properties: Mapping[str, T]) -> T | None:
    """Return the property of a path, or that of the nearest listed section or list above it."""
    while path not in properties and "." in path:
        path = path.rpartition(".")[0]
    return properties.get(path)


def _inherited(own: Setting, above: Setting | None) -> Setting:
    if above is None:
        return own
    names = ("resume", "report", "evaluation")
    missing = {name: getattr(above, name) for name in names if getattr(own, name) is None}
    return dataclasses.replace(own, judges=own.judges or above.judges, **missing)
