"""Contents of the plots: the data on the axes, not pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures import depth as depth_figures
from analysis.figures import gradients as gradient_figures
from analysis.figures import loss as loss_figures
from analysis.figures import sites as site_figures
from analysis.figures import training as training_figures
from analysis.figures.depth import FP16_MAX
from analysis.runs import Record, activation_table, read_run
from analysis.style import NAMES, Plate, finish, look, new_axes, shades
from tests.analysis.synthetic import (
    GROWTH,
    TOKENS_PER_STEP,
    activation_rows,
    gradient_rows,
    loss_at,
    metric_rows,
    write_depth_run,
    write_run,
)

DEPTH = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    place = tmp_path_factory.mktemp("runs")
    return [read_run(write_run(place / p, task__model__norm_placement=p)) for p in ("pre", "post", "peri")]


def axes_of(plate: Plate, name: str = "") -> Axes:
    found = {panel.name: panel for panel in plate.panels}
    return found[name].figure.axes[0]


def line(axes: Axes, label: str) -> Line2D:
    """Return the line with data under a label of the legend."""
    return next(item for item in axes.get_lines() if item.get_label() == label and len(np.asarray(item.get_xdata())))


def y_of(item: Line2D) -> np.ndarray:
    return np.asarray(item.get_ydata(), dtype=float)


def with_gid(axes: Axes, gid: str) -> list[Line2D]:
    return [item for item in axes.get_lines() if item.get_gid() == gid]


def test_loss_shows_training_and_validation_against_tokens(runs: Sequence[Record]) -> None:
    axes = axes_of(loss_figures.loss(runs[:1]))
    training, smoothed, validation = axes.get_lines()
    assert np.asarray(training.get_xdata()).tolist() == [TOKENS_PER_STEP * step for step in range(1, 41)]
    assert y_of(training) == pytest.approx([loss_at(step) for step in range(1, 41)])
    assert smoothed.get_label() == "Pre-LN"
    assert y_of(validation) == pytest.approx([loss_at(step) + 0.1 for step in (10, 20, 30, 40)])
    assert "tokens" in axes.get_xlabel()
    assert axes.get_ylabel() == "loss (nats per token)"


def test_a_gap_is_a_gap(tmp_path: Path) -> None:
    rows = [{**row, "grad_norm": None} if row["step"] == 3 else row for row in metric_rows(40)]
    run = read_run(write_run(tmp_path / "run", metrics=rows))
    drawn = y_of(line(axes_of(training_figures.gradient_norm([run])), "Peri-LN"))
    assert np.isnan(drawn[2])
    assert drawn[3] == 0.25


def test_spikes_and_skipped_steps_are_marked(tmp_path: Path) -> None:
    events = [
        {"event": "spike", "step": 7, "quantity": "grad_norm", "value": 3.5},
        {"event": "spike", "step": 7, "quantity": "grad_norm", "value": 3.5},
        {"event": "spike", "step": 8, "quantity": "loss", "value": 9.0},
        {"event": "skip", "step": 9},
    ]
    run = read_run(write_run(tmp_path / "run", events=events, metrics=metric_rows(40)))
    plate = training_figures.gradient_norm([run])
    axes = axes_of(plate)
    assert axes.get_yscale() == "log"
    for gid, step in (("spike", 7), ("loss spike", 8), ("skip", 9)):
        (mark,) = with_gid(axes, gid)
        assert np.asarray(mark.get_xdata()).tolist() == [TOKENS_PER_STEP * step]
    assert y_of(with_gid(axes, "spike")[0]).tolist() == [3.5]
    assert plate.findings == ["run: 1 gradient-norm spikes, 1 loss spikes, 1 skipped steps."]


@pytest.mark.parametrize("placement", ["pre", "post", "peri"])
def test_variance_is_drawn_against_depth(runs: Sequence[Record], placement: str) -> None:
    plate = depth_figures.variance(runs)
    for name, done in (("first", 0.0), ("last", 1.0)):
        drawn = line(axes_of(plate, name), NAMES[placement])
        assert np.asarray(drawn.get_xdata()).tolist() == DEPTH
        assert y_of(drawn) == pytest.approx([0.0004, *(GROWTH[placement](depth, done) for depth in DEPTH[1:])])
        assert drawn.get_color() == look(placement).color


def test_fits_are_drawn_and_judged(runs: Sequence[Record]) -> None:
    plate = depth_figures.variance(runs)
    pre_and_peri = with_gid(axes_of(plate, "last"), "linear fit")
    assert len(pre_and_peri) == 2  # a constant needs none
    peri = pre_and_peri[1]
    assert y_of(peri) == pytest.approx(1 + 3 * np.asarray(peri.get_xdata(), dtype=float))
    exponential = with_gid(axes_of(plate, "last"), "exponential fit")[0]
    assert y_of(exponential) == pytest.approx(0.05 * 2 ** np.asarray(exponential.get_xdata(), dtype=float), rel=1e-4)
    said = "\n".join(plate.findings)
    assert "Pre-LN, step 1: the variance grows linearly" in said
    assert "Pre-LN, step 40: the variance grows exponentially rather than linearly, doubling every 1 blocks" in said
    assert "Post-LN, step 40: the variance is constant over depth" in said
    assert "Peri-LN, step 40: the variance grows linearly rather than exponentially, by 3 per block" in said


def test_variance_over_training_has_a_panel_per_placement(runs: Sequence[Record]) -> None:
    plate = depth_figures.variance(runs)
    assert [panel.name for panel in plate.panels] == [
        "first", "last", "training-1", "training-2", "training-3", "largest"
    ]  # fmt: skip
    labels = [item.get_label() for item in axes_of(plate, "training-1").get_lines()]
    assert labels == [f"step {step}" for step in (1, 10, 20, 30, 40)]


def test_maxima_show_the_limit_of_fp16(runs: Sequence[Record]) -> None:
    plate = depth_figures.maxima(runs)
    for name in ("abs-training", "abs-depth"):
        (limit,) = with_gid(axes_of(plate, name), "fp16 limit")
        assert set(y_of(limit)) == {FP16_MAX}
    drawn = line(axes_of(plate, "abs-training"), "Post-LN")
    assert np.asarray(drawn.get_xdata()).tolist() == [TOKENS_PER_STEP * step for step in (1, 10, 20, 30, 40)]
    assert y_of(drawn) == pytest.approx(np.full(5, 10 * 0.998**0.5))
    assert y_of(line(axes_of(plate, "abs-depth"), "Peri-LN"))[-1] == pytest.approx(10 * 13**0.5)  # of the last step
    assert y_of(line(axes_of(plate, "ratio-depth"), "Pre-LN")) == pytest.approx(np.full(9, 12.0))


def test_the_limit_of_fp16_is_numpys() -> None:
    assert FP16_MAX == 65504.0


def test_module_outputs_before_and_after_the_norm(runs: Sequence[Record]) -> None:
    axes = axes_of(site_figures.module_outputs(runs), "mlp-last")
    assert y_of(line(axes, "Peri-LN")) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert y_of(line(axes, "Peri-LN, normed")) == pytest.approx(np.ones(4))
    assert "Pre-LN, normed" not in [item.get_label() for item in axes.get_lines()]


def test_gradient_norms_of_layers_and_their_uniformity(runs: Sequence[Record]) -> None:
    axes = axes_of(gradient_figures.gradient_over_depth(runs), "first")
    (drawn,) = (item for item in axes.get_lines() if str(item.get_label()).startswith("Pre-LN"))
    assert y_of(drawn) == pytest.approx([5.0, 2.5, 5 / 3, 1.25])  # 3-4-5 in every layer
    assert str(drawn.get_label()) == "Pre-LN: max/min 4, CV 0.56"
    first = gradient_figures.gradient_uniformity(runs)[0]
    assert first.uniformity.max_over_min == pytest.approx(4.0)


@pytest.mark.parametrize("label", ["Pre-LN ", "Peri-LN: max/min 4.05, CV 0.5"])
def test_a_legend_is_as_wide_as_its_figure_at_most(label: str) -> None:
    axes = new_axes(x="layer", y="gradient norm")
    for number in range(4):
        axes.plot([0, 1], [number, number], label=f"{label}{number}")
    (legend,) = finish(axes).legends
    assert 0 < legend.get_window_extent().width <= axes.figure.bbox.width


def test_output_norm_scales(runs: Sequence[Record]) -> None:
    plate = gradient_figures.norm_scales(runs)
    assert y_of(line(axes_of(plate, "last"), "Peri-LN, attention")) == pytest.approx(np.full(4, 0.9))
    assert y_of(line(axes_of(plate, "last"), "Peri-LN, MLP")) == pytest.approx(np.full(4, 1.1))
    assert plate.missing == ["Pre-LN: has no output-norm scales", "Post-LN: has no output-norm scales"]


def test_update_ratios(runs: Sequence[Record]) -> None:
    plate = gradient_figures.update_ratios(runs)
    assert y_of(line(axes_of(plate, "training"), "Pre-LN")) == pytest.approx([0.01, 1e-3, 5e-4, 0.01 / 30, 2.5e-4])
    assert y_of(line(axes_of(plate, "depth"), "Peri-LN")) == pytest.approx(np.full(4, 2.5e-4))


def test_a_last_step_without_an_update_is_not_shown_over_depth(tmp_path: Path) -> None:
    rows = [{**row, "update_ratio": 0.0} if row["step"] == 40 else row for row in gradient_rows([1, 30, 40], 4, "peri")]
    plate = gradient_figures.update_ratios([read_run(write_run(tmp_path / "run", gradients=rows))])
    assert y_of(line(axes_of(plate, "depth"), "Peri-LN")) == pytest.approx(np.full(4, 0.01 / 30))


def test_learning_rates_with_a_diverged_and_an_unfinished_run(tmp_path: Path) -> None:
    diverged = [{**row, "loss": None, "validation_loss": None} if row["step"] > 20 else row for row in metric_rows(40)]
    records = [
        read_run(write_run(tmp_path / "a0", optim__lr=1e-3)),
        read_run(write_run(tmp_path / "a1", optim__lr=1e-3, seed=1, offset=0.2)),
        read_run(write_run(tmp_path / "b", optim__lr=3e-3, metrics=metric_rows(20), events=[])),
        read_run(write_run(tmp_path / "c", optim__lr=1e-2, metrics=diverged)),
        read_run(write_run(tmp_path / "d", optim__lr=3e-4)),
    ]
    plate = training_figures.learning_rate(records)
    axes = axes_of(plate)
    drawn = line(axes, "Peri-LN")
    assert np.asarray(drawn.get_xdata()).tolist() == [3e-4, 1e-3]
    assert y_of(drawn) == pytest.approx([loss_at(40) + 0.1, loss_at(40) + 0.2])
    (cross,) = with_gid(axes, "diverged")
    (hollow,) = with_gid(axes, "unfinished")
    assert np.asarray(cross.get_xdata()).tolist() == [1e-2]
    assert y_of(hollow) == pytest.approx([loss_at(20) + 0.1])
    assert axes.get_xscale() == "log"
    assert plate.findings == [
        "b (lr 0.003): unfinished at step 20.",
        "c (lr 0.01): diverged at step 40, no validation loss.",
    ]


def test_equal_learning_rates_are_named_and_not_drawn(runs: Sequence[Record]) -> None:
    plate = training_figures.learning_rate(runs)
    assert not plate.panels
    assert plate.missing == ["all runs have the same peak learning rate (optim.lr)"]


def test_a_vision_task_has_a_panel_per_validation_figure_and_its_sites(tmp_path: Path) -> None:
    run = read_run(write_depth_run(tmp_path / "depth"))
    plate = training_figures.validation([run])
    assert [panel.name for panel in plate.panels] == ["delta1", "rmse-cm"]
    assert "samples" in axes_of(plate, "delta1").get_xlabel()
    plate = site_figures.sites([run])
    assert [text.get_text() for text in axes_of(plate, "variance-first").get_yticklabels()] == [
        "stem", "0 guide.features", "1 guide.features", "weights"
    ]  # fmt: skip
    drawn = line(axes_of(plate, "variance-last"), "depth")
    assert np.asarray(drawn.get_xdata()) == pytest.approx(np.array([1, 2, 3, 4]))
    assert y_of(drawn).tolist() == [0, 1, 2, 3]  # from the top


def test_a_model_without_a_time_axis_has_one_panel(tmp_path: Path) -> None:
    rows = [{**row, "step": 0} for row in activation_rows([1], 4, "peri")]
    model = Record(label="some/model", folder=tmp_path, placement="peri", activations=activation_table(rows))
    plate = depth_figures.variance([model])
    assert [panel.name for panel in plate.panels] == [""]
    assert len(y_of(line(axes_of(plate), "some/model"))) == 9
    assert [panel.name for panel in depth_figures.maxima([model]).panels] == ["abs-depth", "ratio-depth"]
    assert gradient_figures.gradient_over_depth([model]).missing == ["some/model: gradients were not measured"]


def test_seeds_without_rows_and_seeds_that_ended_early_hide_nothing(tmp_path: Path) -> None:
    records = [
        read_run(write_run(tmp_path / "whole")),
        read_run(write_run(tmp_path / "none", seed=1, activations=[])),
        read_run(write_run(tmp_path / "short", seed=2, activations=activation_rows([1, 10], 4, "peri"))),
    ]
    plate = depth_figures.variance(records)
    assert [panel.figure.axes[0].get_title(loc="left") for panel in plate.panels[:2]] == [
        "at initialization", "last measured step (40)"
    ]  # fmt: skip
    assert y_of(line(axes_of(plate, "last"), "Peri-LN (3 seeds)"))[1:] == pytest.approx([1 + 3 * d for d in DEPTH[1:]])
    assert plate.missing == [f"none: no activations.jsonl in {tmp_path / 'none'}"]


def test_a_placement_looks_the_same_alone_and_among_others() -> None:
    assert look("peri") == look("peri", variant=0, variants=1)
    assert len({(look(name).color, look(name).marker) for name in NAMES}) == len(NAMES)
    assert shades("#009E73", 3)[1] == pytest.approx((0, 158 / 255, 115 / 255), abs=0.06)
