"""Networks without a stack of blocks: sites and modules by name, the branches apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from analysis.figures import gradients as gradient_figures
from analysis.figures import modules
from analysis.figures import sites as site_figures
from analysis.figures.modules import gradient_by_module, is_one_stack, merged
from analysis.figures.pictures.picture import figure_of
from analysis.report.report import report_sections
from analysis.runs import Record, read_run
from analysis.style import Plate
from tests.analysis.synthetic import filter_modules, write_filter_run, write_run

NAMES = [name.removeprefix("kernels.") for _, name in filter_modules(stages=6)]


def axes_of(plate: Plate, name: str) -> Axes:
    found = {panel.name: panel for panel in plate.panels}
    return found[name].figure.axes[0]


def written(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


def values(axes: Axes) -> np.ndarray:
    """Return all drawn values from top to bottom, (names,); every name once."""
    lines = [line for line in axes.get_lines() if len(np.asarray(line.get_ydata()))]
    places = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in lines])
    assert places.tolist() == list(range(len(places)))
    return np.concatenate([np.asarray(line.get_xdata(), dtype=float) for line in lines])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return read_run(write_filter_run(tmp_path_factory.mktemp("runs") / "fdkn"))


def test_every_site_is_named_and_the_branches_are_lines_apart(run: Record) -> None:
    axes = axes_of(site_figures.sites([run]), "variance-last")
    assert len(NAMES) == 22
    assert written(axes) == NAMES
    assert axes.get_ylabel() == "kernels"  # what all names begin with
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert len(axes.get_lines()) == 2
    assert values(axes) == pytest.approx(0.1 * np.arange(1, 23))
    height = axes.get_position().height * figure_of(axes).get_size_inches()[1]
    assert height / len(NAMES) > 6 / 72  # inches: names of 6 points do not overlap


def test_gradients_of_a_module_join_its_parameters(run: Record) -> None:
    """Weight and bias of module i have norms 3 (i + 1) and 4 (i + 1): 5 (i + 1) together."""
    axes = axes_of(gradient_by_module([run]), "first")
    assert written(axes) == NAMES
    assert values(axes) == pytest.approx(5.0 * np.arange(1, 23))


def test_more_modules_than_fit_by_name_are_drawn_by_number(run: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "MOST_NAMES", 21)
    axes = axes_of(gradient_by_module([run]), "first")
    drawn = [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in axes.get_lines()]
    assert axes.get_xlabel() == "module, in order"
    assert any(x.tolist() == list(range(22)) and y == pytest.approx(5.0 * np.arange(1, 23)) for x, y in drawn)


def test_updates_are_shown_by_module_where_layers_have_no_depth(run: Record) -> None:
    plate = gradient_figures.update_ratios([run])
    assert [panel.name for panel in plate.panels] == ["training", "modules"]
    assert values(axes_of(plate, "modules")) == pytest.approx(np.full(22, 0.01 / 40))


def plates(records: Sequence[Record]) -> list[str]:
    return [plate.name for section in report_sections(records) for plate in section.plates]


def test_layers_of_two_branches_are_no_depth(run: Record, tmp_path: Path) -> None:
    """They are numbered alike, and a sum over both would be of nothing."""
    text = read_run(write_run(tmp_path / "text"))
    assert not is_one_stack([run])
    assert is_one_stack([text])
    assert "gradient-modules" in plates([run])
    assert not {"gradient-depth", "norm-scales"} & set(plates([run]))
    assert "gradient-modules" not in plates([text])
    assert "gradient-depth" in plates([text])


def test_networks_of_different_length_are_matched_by_name(run: Record, tmp_path: Path) -> None:
    task = {"kind": "depth_upsampling", "model": {"architecture": "dkn"}}
    modules = filter_modules(stages=7)
    sites = [{"step": step, "layer": layer, "site": name, "numel": 1, "variance": 7.0, "max_abs": 1.0}
             for step in (1, 40) for layer, name in modules]  # fmt: skip
    longer = read_run(write_filter_run(tmp_path / "dkn", task=task, activations=sites))
    axes = axes_of(site_figures.sites([run, longer]), "variance-last")
    assert written(axes) == [name.removeprefix("kernels.") for _, name in modules]
    drawn = {str(line.get_label()): np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()}
    new = [i for i, (_, name) in enumerate(modules) if "stages.6." in name]
    assert not set(new) & set(drawn["fdkn"])
    assert set(new[:1]) <= set(drawn["dkn"])


def test_merging_keeps_each_list_in_order() -> None:
    found = merged([["a", "b", "d"], ["a", "c", "d", "e"]])
    assert [name for name in found if name in "abd"] == ["a", "b", "d"]
    assert [name for name in found if name in "acde"] == ["a", "c", "d", "e"]


def test_too_many_sites_are_numbered(tmp_path: Path) -> None:
    sites = [{"step": 1, "layer": None, "site": f"part.{i}", "numel": 1, "variance": 1.0 + i, "max_abs": 1.0}
             for i in range(100)]  # fmt: skip
    record = read_run(write_filter_run(tmp_path / "many", activations=sites))
    axes = axes_of(site_figures.sites([record]), "variance")
    assert axes.get_xlabel() == "site, in order"
    assert np.asarray(axes.get_lines()[0].get_ydata()) == pytest.approx(np.arange(1, 101))
