"""The files by which others find, cite and install the project agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def names(requirements: list[str]) -> list[str]:
    """Return the packages of a list of requirements, as pip compares them."""
    return [re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-") for requirement in requirements]


def test_no_dependency_is_listed_twice() -> None:
    listed = names([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
    assert len(listed) == len(set(listed)), sorted(listed)


def test_every_dependency_has_a_constraint() -> None:
    constrained = names([line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line])
    assert not set(names(PROJECT["dependencies"])) - set(constrained)


def test_the_citation_names_the_software_and_its_papers() -> None:
    """The keys that the Citation File Format 1.2.0 requires, and those by which a paper is found."""
    assert {"cff-version", "message", "title", "authors"} <= CITATION.keys()
    assert CITATION["cff-version"] == "1.2.0"
    assert [author["name"] for author in CITATION["authors"]] == [author["name"] for author in PROJECT["authors"]]
    for paper in CITATION["references"]:
        assert {"type", "title", "authors", "year", "url"} <= paper.keys()
        assert all({"given-names", "family-names"} <= author.keys() for author in paper["authors"])
    assert {paper["url"].rpartition("/")[2] for paper in CITATION["references"]} == {"2502.02732", "1910.08373"}


def test_licence_and_version_are_the_same_everywhere() -> None:
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["license"] == PROJECT["license"] == "Apache-2.0"
    text = (ROOT / PROJECT["license-files"][0]).read_text()
    assert "Apache License" in text
    assert "Copyright 2026 The periln authors" in text
