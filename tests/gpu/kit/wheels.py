"""Wheels for a machine without a network: those that the closure misses, at the versions of constraints.txt."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

from tests.gpu.kit.closure import Machine, Missing, Wheel, missing, read_wheel

# pip matches a platform tag exactly, so each glibc that wheels are commonly built for is named.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 26, 27, 28, 31, 34, 35)] + ["manylinux2014_x86_64"]
SOURCE_ONLY = {"deepspeed"}


class KitError(RuntimeError):
    """The kit cannot be made; the message says why."""


def gather(requirements: Sequence[str], folder: Path, *, machine: Machine, versions: dict[str, str]) -> list[Wheel]:
    """Fetch wheels into a folder until nothing is missing, and return them.

    Args:
        requirements: Requirements of the project.
        folder: Where the wheels go; those that are there already are used.
        machine: What is installed where the kit goes.
        versions: Canonical name -> version, of constraints.txt.

    Raises:
        KitError: A wheel cannot be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _discard_other_versions(folder, versions)
    while unmet := missing(requirements, present(folder), machine):
        for need in unmet:
            fetch(need, folder, versions=versions)
    return present(folder)


def present(folder: Path) -> list[Wheel]:
    """Return the wheels of a folder."""
    return [read_wheel(path) for path in sorted(folder.glob("*.whl"))]


def _discard_other_versions(folder: Path, versions: dict[str, str]) -> None:
    for path in folder.glob("*.whl"):
        wheel = read_wheel(path)
        if str(wheel.version) != versions.get(wheel.name):
            path.unlink()


def fetch(need: Missing, folder: Path, *, versions: dict[str, str]) -> None:
    """Download the wheel that meets a requirement, or build it if the package is published as source only."""
    name = canonicalize_name(need.requirement.name)
    if name not in versions:
        raise KitError(f"{need} is neither in constraints.txt nor installed there")
    version = versions[name]
    if not need.requirement.specifier.contains(version, prereleases=True):
        raise KitError(f"{need} is not met by {name}=={version} of constraints.txt")
    before = set(folder.glob("*.whl"))
    print(f"fetching {name}=={version}, required by {need.required_by}", flush=True)
    (_build if name in SOURCE_ONLY else _download)(f"{name}=={version}", folder)
    if set(folder.glob("*.whl")) == before:
        raise KitError(f"pip reported success, but left no wheel of {name}=={version} in {folder}")


def _download(pinned: str, folder: Path) -> None:
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    options = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", *platforms]
    _pip("download", "--no-deps", *options, "--dest", str(folder), pinned)


def _build(pinned: str, folder: Path) -> None:
    """Build a pure-Python wheel; DS_BUILD_OPS=0 leaves out DeepSpeed's operators, which are compiled when needed."""
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), pinned, DS_BUILD_OPS="0")


def _pip(*words: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise KitError(f"pip {words[0]} {words[-1]} failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
