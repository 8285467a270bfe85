"""Links, paths and commands in README, the guides and the tour."""

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


@pytest.mark.parametrize(
    ("subject", "folder", "file"),
    [
        ("Peri-LN equation", "modeling/decoder", "modeling/decoder/residual_periln.py"),
        ("resume", "train/checkpoint", "train/checkpoint/checkpoint.py"),
        ("SLURM script", "launch/slurm", "launch/slurm/script.py"),
        ("chunked loss", "modeling/decoder", "modeling/decoder/head_periln.py"),
        ("spikes", "train/observe", "train/observe/spikes.py"),
    ],
)
def test_readme_leads_to_the_folder_and_the_tour_to_the_file(subject: str, folder: str, file: str) -> None:
    line = next(line for line in rooms() if line[0] == folder)
    assert re.search(subject.replace("resume", "resum(e|ing)"), line[1]), line
    stops = re.split(r"\n(?=\d+\. |\n)", (ROOT / "docs/tour.md").read_text())
    assert any(subject in " ".join(stop.split()) and f"[{file}]" in stop for stop in stops)


def rooms() -> list[tuple[str, str]]:
    """Return the folders of README's tree, each with its line."""
    tree = (ROOT / "README.md").read_text().split("## Where things are")[1].split("```")[1]
    found: list[tuple[str, str]] = []
    package = ""
    for line in tree.strip("\n").splitlines():
        name, meaning = line.split("/", 1)
        package = name if not name.startswith(" ") else package
        found.append((package if name == package else f"{package}/{name.strip()}", meaning))
    return found


def test_readme_names_every_folder_once() -> None:
    names = [name for name, _ in rooms()]
    packages = ("launch", "train", "modeling", "analysis")
    inside = {
        f"{package}/{folder.name}"
        for package in packages
        for folder in (ROOT / package).iterdir()
        if (folder / "__init__.py").exists()
    }
    assert len(names) == len(set(names))
    assert set(names) == {"configs", "tests", "docs", *packages} | inside
