"""Closure of a project's requirements over wheels and the packages that a machine already has.

An installed package is taken to have what it needs itself. Of a wheel, each `Requires-Dist` that applies there must be
met by another wheel or by an installed package.
"""

from __future__ import annotations

import email.parser
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# What markers are evaluated for: the machine described in installed.txt, not the one that makes the kit.
ENVIRONMENT = {
    "implementation_name": "cpython",
    "implementation_version": "3.12.3",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_release": "",
    "platform_system": "Linux",
    "platform_version": "",
    "python_full_version": "3.12.3",
    "python_version": "3.12",
    "sys_platform": "linux",
}


class Machine(NamedTuple):
    """The packages of a machine, by canonical name."""

    installed: Mapping[str, Version | None]  # None: installed, version not known
    unmet_on_purpose: Mapping[str, str]  # name -> reason


class Wheel(NamedTuple):
    """Name, version and requirements of a wheel."""

    name: str
    version: Version
    requires: tuple[Requirement, ...]


class Missing(NamedTuple):
    """A requirement that nothing meets."""

    requirement: Requirement
    required_by: str

    def __str__(self) -> str:
        return f"{self.requirement} (required by {self.required_by})"


def read_machine(path: Path) -> Machine:
    """Read a list of installed packages; installed.txt states its format."""
    installed: dict[str, Version | None] = {}
    unmet: dict[str, str] = {}
    for line in path.read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("!"):
            name, _, reason = text[1:].partition(" ")
            unmet[canonicalize_name(name)] = reason.strip()
        elif text:
            name, _, version = text.partition("==")
            installed[canonicalize_name(name)] = Version(version) if version else None
    return Machine(installed, unmet)


def read_wheel(path: Path) -> Wheel:
    """Read the metadata of a wheel."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = email.parser.Parser().parsestr(archive.read(name).decode())
    requires = tuple(Requirement(text) for text in fields.get_all("Requires-Dist", []))
    return Wheel(canonicalize_name(fields["Name"]), Version(fields["Version"]), requires)


def missing(requirements: Iterable[str], wheels: Iterable[Wheel], machine: Machine) -> list[Missing]:
    """Return what the requirements still need beyond wheels and machine, without duplicates.

    Args:
        requirements: Requirements of the project.
        wheels: Wheels that come along; they take precedence over what is installed.
        machine: What is installed.
    """
    brought = {wheel.name: wheel for wheel in wheels}
    waiting = [(Requirement(text), "pyproject.toml") for text in requirements]
    seen, unmet = set[tuple[str, str]](), dict[str, Missing]()
    while waiting:
        requirement, required_by = waiting.pop(0)
        key = (str(requirement), required_by)
        if key in seen or not _applies(requirement, extras=()):
            continue
        seen.add(key)
        name = canonicalize_name(requirement.name)
        if not _is_met(requirement, brought, machine):
            unmet.setdefault(name, Missing(requirement, required_by))
        elif name in brought:
            wheel = brought[name]
            waiting += [(needed, wheel.name) for needed in _needs(wheel, requirement.extras)]
    return list(unmet.values())


def _is_met(requirement: Requirement, brought: Mapping[str, Wheel], machine: Machine) -> bool:
    name = canonicalize_name(requirement.name)
    if name in brought:
        return requirement.specifier.contains(brought[name].version, prereleases=True)
    if name in machine.unmet_on_purpose:
        return True
    if name not in machine.installed:
        return False
    version = machine.installed[name]
    return version is None or requirement.specifier.contains(version, prereleases=True)


def _needs(wheel: Wheel, extras: Iterable[str]) -> Iterator[Requirement]:
    """Yield the requirements of a wheel that apply on the machine, without their markers."""
    for requirement in wheel.requires:
        if _applies(requirement, extras=extras):
            bare = Requirement(str(requirement))
            bare.marker = None
            yield bare


def _applies(requirement: Requirement, *, extras: Iterable[str]) -> bool:
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({**ENVIRONMENT, "extra": extra}) for extra in ("", *extras))
