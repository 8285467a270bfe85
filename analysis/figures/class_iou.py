"""IoU of each class: bars of pseudo labels beside predictions of segmentation networks, and curves over training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.figures.lines import Line, draw, finish_grid, over_training, panel_grid, shown_text
from analysis.figures.pictures.class_colors import cut
from analysis.figures.training import axis_label, validation_curve
from analysis.groups import MOST_LINES, MOST_PANELS, Group, axis_of, best_final, final_rank, with_arms
from analysis.images.class_scores import (
    PREDICTION,
    ClassScores,
    class_names,
    prediction_scores,
    without_repetition,
)
from analysis.images.pseudo_labels import AGREEING
from analysis.metrics import class_in_metrics
from analysis.runs import Record
from analysis.style import WIDTH, Panel, Plate, Plot, Series, fitted_legend, paper, plain, set_scales, shades

_MOST_SERIES = 16
_MOST_LETTERS = 18  # of a class below its bars
_GAP = 1.6  # bars between two classes
_BAR = 0.062  # inches of the narrowest bar
_WIDEST_BAR = 0.2
_LINE, _TOP, _LEFT, _RIGHT = 1.35, 0.12, 0.45, 0.06  # inches of a line's bars, and of margins
_NAMES, _TURNED_NAMES = 0.3, 0.72  # inches of names below
_LETTER = 0.055  # inches
# What learns nothing is gray; each box classifier has a color whose shades are its kinds; networks have their own.
_BASELINES = {"filled_boxes": "#c2c2c2", "grabcut": "#7d7d7d"}
_LEARNED = ("unary", "crf", "retrieved")
_CLASSIFIERS = ("#0072B2", "#E07B00", "#7B4FA3", "#8A6D1A", "#2AA6C4")
_NETWORKS = ("#009E73", "#C2185B", "#5B8C00", "#882255", "#44AA99", "#B2182B", "#117733", "#D6498F")


@paper
def class_bars(scores: Sequence[ClassScores], missing: Sequence[str] = ()) -> Plate:
    """Draw the mean and each class: one bar per kind of label of each run, and one per segmentation run.

    Args:
        scores: Labels first, then predictions.
        missing: Reasons for what is not there.
    """
    known = [each for each in without_repetition(scores) if each.kind != AGREEING]
    series, left_out = known[:_MOST_SERIES], known[_MOST_SERIES:]
    missing = [
        *missing,
        *(f"{each.label}: more than {_MOST_SERIES} bars per class; see the table" for each in left_out),
    ]
    title, names = "IoU by class", class_names(series)
    if not series:
        return Plate(name="class-iou", title=title, caption="", missing=missing)
    figure = _figure(series, names)
    alt = f"IoU of {len(names)} classes for {', '.join(each.label for each in series)}"
    return Plate(
        name="class-iou", title=title, caption=_caption(series, names), panels=[Panel("", alt, figure)], missing=missing
    )


@paper
def class_curves(records: Sequence[Record]) -> Plate:
    """Draw the IoU of each class at the evaluations, a small panel per class."""
    axis, groups = axis_of(records), sorted(with_arms(records), key=final_rank)
    shown, left_out = groups[:MOST_LINES], groups[MOST_LINES:]
    scores = [prediction_scores(record) for record in records]
    lines_of_class: dict[str, list[Line]] = {}
    for name in class_names([each for each in scores if each is not None]):
        lines = [_curve(group, name, axis) for group in shown]
        if any(line.is_finite for line in lines):
            lines_of_class[name] = lines
    names = list(lines_of_class)[:MOST_PANELS]
    title = "IoU by class over training"
    if not names:
        return Plate(name="class-iou-curves", title=title, caption="")
    figure, panels = panel_grid(len(names))
    for axes, name in zip(panels, names, strict=True):
        for line in lines_of_class[name]:
            draw(axes, line)
        set_scales(axes, counts="x")
    finish_grid(figure, panels, [cut(name, _MOST_LETTERS) for name in names], x=axis_label(axis), y="validation IoU")
    missing = [f"{name}: more than {MOST_PANELS} classes" for name in list(lines_of_class)[MOST_PANELS:]]
    if left_out:
        which = best_final(records)
        missing.append(f"{len(left_out)} of {len(groups)} lines: those with the {which} are shown")
    return Plate(
        name="class-iou-curves",
        title=title,
        caption=f"IoU of each class on the validation images, against {axis}; lines connect the evaluations. "
        f"{shown_text(shown)}",
        panels=[Panel("", f"Validation IoU of {len(names)} classes against {axis}", figure)],
        missing=missing,
    )


def _curve(group: Group, name: str, axis: str) -> Line:
    look = {"marker": group.look.marker, "markersize": 2.2}
    curve = validation_curve(f"validation_iou_{class_in_metrics(name)}")
    return over_training(group, curve, axis=axis, quantity=f"IoU of {name}", **look)


def colors(series: Sequence[ClassScores]) -> list[tuple[float, float, float] | str]:
    """Return a color for each of the series."""
    classifiers = list(dict.fromkeys(each.run for each in series if each.kind in _LEARNED))
    networks = [each.run for each in series if each.kind == PREDICTION]
    found: list[tuple[float, float, float] | str] = []
    for each in series:
        if each.kind in _BASELINES:
            found.append(_BASELINES[each.kind])
        elif each.kind in _LEARNED:
            color = _CLASSIFIERS[classifiers.index(each.run) % len(_CLASSIFIERS)]
            found.append(shades(color, len(_LEARNED))[_LEARNED.index(each.kind)])
        else:
            found.append(_NETWORKS[networks.index(each.run) % len(_NETWORKS)])
    return found


def _figure(series: Sequence[ClassScores], names: Sequence[str]) -> Figure:
    """Draw the groups of bars in as many lines as they need."""
    groups = ["mean", *names]
    bars = len(series) + _GAP  # of a group
    inner = 2 * WIDTH + 0.2 - _LEFT - _RIGHT
    most = max(1, math.floor(inner / (_BAR * bars)))
    lines = math.ceil(len(groups) / most)
    per_line = math.ceil(len(groups) / lines)
    width = min(inner, max(WIDTH - _LEFT - _RIGHT, per_line * bars * _WIDEST_BAR))
    values = np.array([[each.miou, *(each.iou.get(name, math.nan) for name in names)] for each in series])
    is_turned = max(len(cut(name, _MOST_LETTERS)) for name in groups) * _LETTER > width / per_line
    below = _TURNED_NAMES if is_turned else _NAMES
    figure = Plot(figsize=(width + _LEFT + _RIGHT, _TOP + lines * (_LINE + below)))
    figure.cells = [
        Series(each.label, group, np.array([float(at)]), np.array([value]))
        for each, of_series in zip(series, values, strict=True)
        for at, (group, value) in enumerate(zip(groups, of_series, strict=True))
    ]
    looks = colors(series)
    handles = {plain(each.label): Patch(color=color) for each, color in zip(series, looks, strict=True)}
    legend = fitted_legend(figure, handles, place="lower center")
    whole = figure.get_size_inches()[1] + (0.0 if legend is None else legend.get_window_extent().height / figure.dpi)
    figure.set_size_inches(figure.get_size_inches()[0], whole)
    top = _top(values)
    for line in range(lines):
        at = slice(line * per_line, (line + 1) * per_line)
        bottom = (whole - _TOP - (line + 1) * _LINE - line * below) / whole
        box = (_LEFT / figure.get_size_inches()[0], bottom, width / figure.get_size_inches()[0], _LINE / whole)
        _draw_line(
            figure.add_axes(box, label=f"line {line}"), groups[at], values[:, at], looks, per_line, top, is_turned
        )
    return figure


def _draw_line(
    axes: Axes,
    groups: Sequence[str],
    values: np.ndarray,
    looks: Sequence[tuple[float, float, float] | str],
    per_line: int,
    top: float,
    is_turned: bool,
) -> None:
    """Draw one line of groups; values are (series, groups)."""
    bar = 1 / (len(looks) + _GAP)
    for i, (color, of_series) in enumerate(zip(looks, values, strict=True)):
        places = np.arange(len(groups)) + (i - (len(looks) - 1) / 2) * bar
        known = np.isfinite(of_series)
        axes.bar(places[known], of_series[known], width=0.92 * bar, color=color, linewidth=0)
        for place in places[~known]:
            axes.text(place, 0.01 * top, "-", ha="center", va="bottom", fontsize=6, color="#6a6a6a")
    if groups[0] == "mean":
        axes.axvspan(-0.5, 0.5, color="#f0f0ee", zorder=0, linewidth=0, gid="mean")
    axes.set_xlim(-0.5, per_line - 0.5)
    axes.set_ylim(0, top)
    axes.set_ylabel("IoU")
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", length=0)
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if is_turned else {}
    axes.set_xticks(
        np.arange(len(groups)), [plain(cut(name, _MOST_LETTERS)) for name in groups], fontsize=6.5, **turned
    )
    axes.get_xticklabels()[0].set_fontweight("bold" if groups[0] == "mean" else "normal")


def _top(values: np.ndarray) -> float:
    """Return the end of the axis: the next tenth above all values, at most 1."""
    finite = values[np.isfinite(values)]
    return min(1.0, math.floor(10 * float(finite.max()) + 1) / 10) if len(finite) else 1.0


def _caption(series: Sequence[ClassScores], names: Sequence[str]) -> str:
    sentences = [
        "IoU, intersection over union: the pixels of a class that label and truth have in common, over the pixels that "
        "either gives it; 1 is perfect.",
        "First group: the mean over the classes that occur (mIoU).",
    ]
    if any(each.kind != PREDICTION for each in series):
        sentences.append(
            "Pseudo labels are compared with the masks of training images, which were not used to make them: the boxes "
            "filled with their class, GrabCut in each box, the maps before the CRF (unary), the label of the CRF, and "
            "the label by retrieval."
        )
    if any(each.kind == PREDICTION for each in series):
        sentences.append(
            "Segmentation runs, a bar each, are compared with the masks of validation images at their last evaluation."
        )
    if len({each.kind == PREDICTION for each in series}) == 2:
        sentences.append("Labels and predictions are thus measured on different images.")
    if any(not math.isfinite(each.iou.get(name, math.nan)) for each in series for name in names):
        sentences.append('A "-": the class does not occur there.')
    return " ".join(sentences)
