"""Reference for all settings: `python -m train --settings [PATTERN]`, and docs/settings.md.

`python -m train.config.reference` prints docs/settings.md.
"""

from __future__ import annotations

import fnmatch
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING
from types import NoneType
from typing import cast, get_args

from train.config.commands.authors_weights import AuthorsWeightsConfig
from train.config.commands.pseudo_labels import PseudoLabelConfig
from train.config.errors import ConfigError
from train.config.run import RunConfig
from train.config.schema import describe
from train.config.setting import Entry, entries, is_union, sections_of
from train.config.yaml_text import show

# Commands with settings of their own, which are no settings of a run.
_COMMANDS = {"pseudo_labels RUN": PseudoLabelConfig, "export FILE OUT": AuthorsWeightsConfig}

_MARKDOWN_HEAD = """# Settings

Every setting of a run, as printed by `python -m train --settings [PATTERN]`. This page is generated from the fields in
`train/config/` (`make settings`); a test keeps the two in sync.

*required* means that a setting has no default. **resume** marks settings that may change when a run resumes (paths of
data, if the data are the same); changing any other makes it a different run. **evaluation** marks settings that
`python -m train.evaluate` may override. For lists of sections, such as `task.data.sources`, the settings of an entry
are listed under `.0`.
"""


def select(pattern: str | None) -> list[tuple[str, list[Entry]]]:
    """Return the settings grouped by section, each group with its heading.

    Args:
        pattern: Part of a path (`warmup`, `optim.`) or a shell pattern (`*.seed`); None: all settings.

    Raises:
        ConfigError: Nothing matches.
    """
    groups = [(name, [entry for entry in settings if _matches(entry.path, pattern)]) for name, settings in _sections()]
    groups = [(heading, settings) for heading, settings in groups if settings]
    if not groups:
        raise ConfigError([f"--settings: no setting matches {pattern!r}; write part of a path, like optim or *.seed"])
    return groups


def as_text(pattern: str | None = None) -> str:
    """Return settings formatted for a terminal: path, type, default, then meaning."""
    lines: list[str] = []
    for heading, settings in select(pattern):
        lines += ["", heading, ""]
        for entry in settings:
            lines.append(f"  {entry.path}: {', '.join(_facts(entry))}")
            lines += textwrap.wrap(_meaning(entry), width=100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines[1:])


def as_markdown() -> str:
    """Return docs/settings.md."""
    parts = [_MARKDOWN_HEAD]
    for heading, settings in select(None):
        parts += [f"\n## {heading}\n\n| setting | values | default | meaning |\n|---|---|---|---|\n"]
        parts += [
            f"| `{entry.path}` | {_cell(_values(entry))} | {_cell(_default(entry))} | {_cell(_meaning(entry))} |\n"
            for entry in settings
        ]
    return "".join(parts)


def _sections() -> Iterator[tuple[str, list[Entry]]]:
    """Yield the top-level settings, then those of each section; task sections are listed by kind."""
    top = [entry for entry in entries(RunConfig) if "." not in entry.path]
    yield "A run", [entry for entry in top if not entry.is_section]
    for entry in top:
        for owner in sections_of(entry.type):
            below = [each for each in entries(owner, f"{entry.path}.", entry.setting) if not each.is_section]
            kinds = [each.field.default for each in below if each.path == "task.kind"]
            name = f"task, kind {kinds[0]}" if kinds else entry.path
            yield f"{name}: {_summary(owner)}", below
    for command, owner in _COMMANDS.items():
        below = [each for each in entries(owner) if not each.is_section]
        yield f"python -m train.{command}: {_summary(owner)}", below


def _summary(owner: type) -> str:
    return " ".join((owner.__doc__ or "").split()).rstrip(".")


def _matches(path: str, pattern: str | None) -> bool:
    return pattern is None or pattern in path or fnmatch.fnmatchcase(path, pattern)


def _facts(entry: Entry) -> list[str]:
    default = _default(entry)
    return [_values(entry), default if default == "required" else f"default {default}"]


def _values(entry: Entry) -> str:
    """Return type and range: "a whole number, 1 or more; or null"."""
    kinds = get_args(entry.type) if is_union(entry.type) else (entry.type,)
    text = " or ".join(describe(kind) for kind in kinds if kind is not NoneType)
    limits = entry.setting.range_text.removeprefix("a number ")
    return text + (f", {limits}" if limits else "") + ("; or null" if NoneType in kinds else "")


def _default(entry: Entry) -> str:
    field = entry.field
    if field.default is not MISSING:
        is_list = isinstance(field.default, tuple)
        return show(list(cast("tuple[object, ...]", field.default)) if is_list else field.default)
    return show(field.default_factory()) if field.default_factory is not MISSING else "required"


def _meaning(entry: Entry) -> str:
    setting = entry.setting
    text = setting.meaning + (f", in {setting.unit}" if setting.unit else "") + "."
    if setting.null:
        text += f" null: {setting.null}."
    may_resume = setting.resume in ("free", "by_fingerprint")
    marks = [name for name, on in (("resume", may_resume), ("evaluation", setting.evaluation)) if on]
    return f"{text} [{', '.join(marks)}]" if marks else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Print docs/settings.md."""
    print(as_markdown(), end="")


if __name__ == "__main__":
    main()
