"""What README and the tour say exists, exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from train.config.load import load

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/tour.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    local = [link for link in links if "://" not in link]
    assert local
    for link in local:
        assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize("path", sorted((ROOT / "configs/language_model").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_loads(path: Path) -> None:
    assert load(path).name.startswith(path.stem)


def test_the_makefile_has_every_command() -> None:
    text = (ROOT / "Makefile").read_text()
    for target in ("setup", "quickstart", "test", "check", "format", "bench"):
        assert re.search(rf"^{target}:", text, re.MULTILINE), target
