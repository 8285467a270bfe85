"""Missing wheels of a kit are found from the metadata of those it has."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.gpu.kit.closure import Machine, missing, read_machine, read_wheel
from tests.gpu.kit.wheels import present

HERE = Path(__file__).parent


def make_wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    """Write a wheel that holds nothing but metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    fields = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    text = "\n".join([*fields, *(f"Requires-Dist: {requirement}" for requirement in requires)])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem.rsplit('-', 3)[0]}.dist-info/METADATA", text + "\n")
    return path


def machine(folder: Path, *lines: str) -> Machine:
    path = folder / "installed.txt"
    path.write_text("\n".join(lines))
    return read_machine(path)


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A complete kit for `models>=5`, on a machine that has an older `models`, `arrays` and `tables`."""
    folder = tmp_path / "wheels"
    make_wheel(folder, "models", "5.2", "arrays>=2", "Pick-le.Tools>=1; python_version < '3.13'", "gui; extra == 'all'")
    make_wheel(folder, "pick_le-tools", "1.4", "other; sys_platform == 'win32'", "tables>=24")
    return folder


INSTALLED = ("models==4.9  # older", "arrays==2.5", "tables", "!contributed  too large to bring")
REQUIREMENTS = ["models>=5,<6", "contributed>=4"]


def test_a_complete_kit_lacks_nothing(kit: Path, tmp_path: Path) -> None:
    assert not missing(REQUIREMENTS, present(kit), machine(tmp_path, *INSTALLED))


@pytest.mark.parametrize(
    ("taken", "named"),
    [("models-*", "models<6,>=5 (required by pyproject.toml)"), ("pick_le*", "Pick-le.Tools>=1 (required by models)")],
)
def test_a_wheel_that_is_taken_away_is_named(kit: Path, tmp_path: Path, taken: str, named: str) -> None:
    next(kit.glob(taken)).unlink()
    assert [str(one) for one in missing(REQUIREMENTS, present(kit), machine(tmp_path, *INSTALLED))] == [named]


def test_an_older_version_that_is_installed_counts_as_missing(kit: Path, tmp_path: Path) -> None:
    found = missing(REQUIREMENTS, present(kit), machine(tmp_path, "arrays==1.9", "tables", "!contributed  large"))
    assert [str(one) for one in found] == ["arrays>=2 (required by models)"]


def test_requirements_of_an_extra_count_where_it_is_asked_for(kit: Path, tmp_path: Path) -> None:
    found = missing(["models[all]", "contributed"], present(kit), machine(tmp_path, *INSTALLED))
    assert [str(one) for one in found] == ["gui (required by models)"]


def test_an_exception_without_which_something_would_be_missing_has_a_reason() -> None:
    unmet = read_machine(HERE / "installed.txt").unmet_on_purpose
    assert unmet
    assert all(len(reason) > 20 for reason in unmet.values()), unmet


def test_a_wheel_is_read_by_its_canonical_name(tmp_path: Path) -> None:
    wheel = read_wheel(make_wheel(tmp_path, "Pick_le.Tools", "1.4", "x>=1"))
    assert (wheel.name, str(wheel.version), [str(one) for one in wheel.requires]) == ("pick-le-tools", "1.4", ["x>=1"])
