"""Lines of many arms: small multiples, legends that fit and tell the truth, the smoothed loss, looks of placements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures import depth as depth_figures
from analysis.figures import gradients as gradient_figures
from analysis.figures import training as training_figures
from analysis.figures.loss import FEWEST_POINTS, loss, running_mean, window_of
from analysis.report.report import report_sections
from analysis.runs import Record, read_run
from analysis.style import _LOOKS, NAMES, PALETTE, Plate, look, series_of
from modeling.decoder.facts_placements_periln import CHOICES
from tests.analysis.synthetic import metric_rows, write_filter_run, write_run

PLACES = ("pre", "post", "peri", "output")
LONG = "a run whose name is longer than a column, with $math_a$, and " + 90 * "w"


def sweep(place: Path, *, rates: Sequence[float] = (1e-3, 3e-3), seeds: int = 1, kinds: int = 2) -> list[Record]:
    """Return runs of eight arms: four placements with each of two kinds of norm; the first rate is the best."""
    return [
        read_run(
            write_run(
                place / f"{p}-{kind}-{rate}-{seed}", task__model__norm_placement=p, seed=seed,
                task__model__norm_kind=f"kind{kind}", optim__lr=rate, offset=10 * rate + 0.01 * seed,
            )
        )
        for p in PLACES for kind in range(kinds) for rate in rates for seed in range(seeds)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return sweep(tmp_path_factory.mktemp("many"), seeds=2)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left").replace("\n", " ") for axes in figure.axes]


def own_lines(axes: Axes) -> list[Line2D]:
    return [line for line in axes.get_lines() if line.get_gid() is None and len(np.atleast_1d(line.get_xdata()))]


ARMS = [f"{NAMES[p]}, norm_kind kind{kind}" for p in PLACES for kind in range(2)]


def test_many_arms_have_a_panel_each_with_the_others_in_gray(many: Sequence[Record]) -> None:
    plate = depth_figures.variance(many)
    figure = next(panel.figure for panel in plate.panels if panel.name == "last")
    assert titles(figure) == ARMS
    limits = {(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}
    assert len(limits) == 1
    for axes in figure.axes:
        behind = [line for line in axes.get_lines() if line.get_gid() == "behind"]
        assert len(behind) == len(ARMS) - 1
        assert len(own_lines(axes)) == 1
    assert {series.label for series in series_of(figure)} - {""} == {f"{arm}, lr 0.001 (2 seeds)" for arm in ARMS}


def test_each_arm_is_shown_at_its_best_rate_and_the_caption_says_so(many: Sequence[Record]) -> None:
    for plate in (
        depth_figures.variance(many), depth_figures.maxima(many), gradient_figures.gradient_over_depth(many),
        gradient_figures.norm_scales(many), gradient_figures.update_ratios(many),
    ):  # fmt: skip
        assert "Of 16 lines, those with the lowest final validation loss of each arm are shown" in plate.caption
        assert "lr 0.001" in plate.caption
        assert "lr 0.003" not in plate.caption


def test_all_rates_of_an_arm_share_a_panel_over_training(many: Sequence[Record]) -> None:
    plate = training_figures.gradient_norm(many)
    (panel,) = plate.panels
    assert titles(panel.figure) == ARMS
    for axes in panel.figure.axes:
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == ["lr 0.001 (2 seeds)", "lr 0.003 (2 seeds)"]
    assert len({series.label for series in series_of(panel.figure)}) == 16  # no group is dropped


def test_up_to_six_lines_share_a_panel(tmp_path: Path) -> None:
    six = sweep(tmp_path, rates=(1e-3,), kinds=1)
    for plate in (loss(six), depth_figures.variance(six)):
        assert len(plate.panels[0].figure.axes) == 1
        assert "panel per arm" not in plate.caption


def test_a_caption_speaks_of_what_its_figure_shows(tmp_path: Path) -> None:
    runs = {p: read_run(write_run(tmp_path / p, task__model__norm_placement=p)) for p in ("peri", "post")}
    assert "Post-LN" not in depth_figures.variance([runs["peri"]]).caption
    assert "seed" not in depth_figures.variance([runs["peri"]]).caption
    alone = depth_figures.variance([runs["post"]]).caption
    assert "Post-LN keeps the variance" in alone
    assert "least-squares" not in alone  # a constant has no fits
    seeds = [read_run(write_run(tmp_path / f"s{i}", seed=i)) for i in range(3)]
    assert "means over 3 runs that differ only in seed" in depth_figures.variance(seeds).caption
    assert "Triangles" not in training_figures.gradient_norm(seeds).caption


def record_sets(place: Path, many: Sequence[Record]) -> Iterator[list[Record]]:
    yield list(many)
    gaps = [{**row, "loss": None, "grad_norm": None} if "loss" in row else row for row in metric_rows(40)]
    silent = [{"step": step, "samples": step, "loss": None, "grad_norm": None, "lr": 0.1} for step in (1, 2)]
    yield [
        read_run(write_run(place / "whole")),
        read_run(write_run(place / "gaps", optim__lr=0.1, metrics=gaps)),
        read_run(write_run(place / "silent", optim__lr=0.2, metrics=silent)),
    ]
    yield [
        read_run(write_run(place / f"l{i}", name=f"{LONG} {i}", optim__x=i, optim__y=i, optim__z=i)) for i in range(3)
    ]
    yield [read_run(write_run(place / "_hidden", name="_hidden", task__model__norm_placement=None,
                              activations=[], gradients=[]))]  # fmt: skip
    for count in (2, 8):
        yield [
            read_run(write_filter_run(place / f"f{count}-{i}", name=f"{LONG} {i}", task__model__window_size=i))
            if i == 0
            else read_run(write_filter_run(place / f"f{count}-{i}", better=i))
            for i in range(count)
        ]


def test_every_legend_lies_in_its_figure_and_lists_what_is_drawn(tmp_path: Path, many: Sequence[Record]) -> None:
    checked = 0
    for records in record_sets(tmp_path, many):
        plates = [plate for section in report_sections(records) for plate in section.plates]
        for plate in plates:
            for panel in plate.panels:
                checked += check_legends(plate, panel.figure)
    assert checked > 80


def check_legends(plate: Plate, figure: Figure) -> int:
    """Check the legends of a figure; return how many there are."""
    FigureCanvasAgg(figure).draw()
    inside = [legend for axes in figure.axes if (legend := axes.get_legend()) is not None]
    for legend in [*figure.legends, *inside]:
        box = legend.get_window_extent()
        assert box.width > 0
        assert box.x0 >= -1, (plate.name, box)
        assert box.x1 <= figure.bbox.x1 + 1, (plate.name, box)
        assert box.y0 >= -1, (plate.name, box)
        assert box.y1 <= figure.bbox.y1 + 1, (plate.name, box)
    drawn, listed = set(), set()
    for axes in figure.axes:
        for line in axes.get_lines():
            label = str(line.get_label())
            if not label.startswith("_"):
                points = np.array(line.get_data(), dtype=float)
                # an entry without points is the key of fits, which are drawn in the groups' colors
                gid = label.replace(" fit", "") + " fit"
                shown = np.isfinite(points).all(axis=0).any() if points.size else any(
                    other.get_gid() == gid for other in axes.get_lines())  # fmt: skip
                assert shown, (plate.name, label)
                drawn.add("".join(label.split()))
    for legend in [*figure.legends, *inside]:
        listed |= {"".join(text.get_text().split()) for text in legend.get_texts()}
    assert listed == drawn, plate.name
    return len(figure.legends) + len(inside)


def test_the_running_mean_of_a_line_is_the_line() -> None:
    line = 7.0 - 0.3 * np.arange(101)
    assert running_mean(line, 21) == pytest.approx(line, abs=1e-12)


def test_the_running_mean_is_centered_and_keeps_gaps() -> None:
    impulse = np.zeros(11)
    impulse[5] = 1.0
    assert running_mean(impulse, 5) == pytest.approx([0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.2, 0, 0, 0])
    early = np.zeros(11)
    early[1] = 1.0  # the window of the second value is three wide, that of the first is one
    assert running_mean(early, 5) == pytest.approx([0, 1 / 3, 0.2, 0.2, 0, 0, 0, 0, 0, 0, 0])
    gap = np.array([1.0, 2.0, np.nan, 4.0, 9.0])
    assert running_mean(gap, 3) == pytest.approx([1.0, 1.5, np.nan, 6.5, 9.0], nan_ok=True)


def test_the_window_is_odd_and_few_points_have_none() -> None:
    assert window_of(FEWEST_POINTS - 1) == 1
    assert [window_of(count) for count in (20, 125, 1000, 50_000)] == [5, 5, 41, 2001]


def test_the_raw_loss_lies_pale_below_its_running_mean(tmp_path: Path) -> None:
    record = read_run(write_run(tmp_path / "run", metrics=metric_rows(200), steps=200))
    raw, smooth, validation = loss([record]).panels[0].figure.axes[0].get_lines()
    assert (raw.get_alpha() or 1) < 0.5
    assert raw.get_linewidth() < smooth.get_linewidth()
    values = np.asarray(raw.get_ydata(), dtype=float)
    assert np.asarray(smooth.get_ydata())[100] == pytest.approx(values[96:105].mean(), rel=1e-12)  # 9 of 200
    assert len(np.asarray(validation.get_xdata())) == 20
    assert "centered running mean over 9 logged steps" in loss([record]).caption
    few = read_run(write_run(tmp_path / "few", metrics=metric_rows(19), steps=19))
    lines = loss([few]).panels[0].figure.axes[0].get_lines()
    assert [len(np.asarray(line.get_xdata())) for line in lines] == [19, 1]
    assert "running mean" not in loss([few]).caption


def test_the_palette_is_long_enough_and_no_two_looks_are_alike() -> None:
    assert len(PALETTE) >= max(20, len(CHOICES))
    assert set(NAMES) == set(_LOOKS) == {*CHOICES, "mixed", "unknown"}
    looks = [*PALETTE, _LOOKS["mixed"], _LOOKS["unknown"]]
    assert len({color for color, _, _ in looks}) == len(looks)
    assert len({(marker, line) for _, marker, line in looks}) == len(looks)  # in gray too
    for color, _, _ in looks:
        assert contrast_to_white(color) > 2, color


def contrast_to_white(color: str) -> float:
    """Return the contrast as WCAG 2 defines it: 1 for white, 21 for black."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 1.05 / (float(np.dot([0.2126, 0.7152, 0.0722], linear)) + 0.05)


def test_the_first_placements_keep_their_looks() -> None:
    assert [tuple(look(name))[:2] for name in (*PLACES, "mixed", "unknown")] == [
        ("#D55E00", "s"), ("#0072B2", "v"), ("#009E73", "o"), ("#CC79A7", "D"), ("#E69F00", "P"), ("#555555", "X"),
    ]  # fmt: skip
    assert look("peri").line == "-"
