"""What README, the guides and the tour say exists, exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from train.config.load import load

ROOT = Path(__file__).parents[1]


PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    for link in (link for link in links if "://" not in link):
        assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize("path", sorted((ROOT / "configs/language_model").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_loads(path: Path) -> None:
    assert load(path).name.startswith(path.stem)


def test_the_makefile_has_every_command() -> None:
    text = (ROOT / "Makefile").read_text()
    for target in ("setup", "quickstart", "test", "slow", "nightly", "check", "format", "bench"):
        assert re.search(rf"^{target}:", text, re.MULTILINE), target


def test_the_index_of_the_documentation_names_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()
    linked = {str(((ROOT / "docs") / link).resolve()) for link in re.findall(r"\]\(([^)#:]+)\)", index)}
    pages = {str(path) for path in (ROOT / "docs").rglob("*.md")} - {str(ROOT / "docs/README.md")}
    assert pages <= linked, pages - linked
