"""Figures over the course of training: loss, gradient norm, validation figures, and the learning rate's influence."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes

from analysis.groups import Curve, Group, axis_of, band, group_records, progress, thin_out
from analysis.runs import Record, column, setting
from analysis.style import NAMES, Panel, Plate, finish, new_axes, paper, shade
from analysis.validation import CONTROLS, METHODS, Figure, arenas, baselines, final, own_figures, with_unit

WIDE_RANGE = 20.0  # a largest over smallest value beyond which a linear axis hides the small ones
_MOST_SENTENCES = 6
_MOST_TICKS = 6
_MOST_MARKS = 500  # events of one kind and run
SEEDS = (
    "Runs that differ only in seed are one line, their mean, with a band from the least to the greatest; "
    "where one of them has no finite value there is a gap."
)

_BASELINES = "Horizontal lines: methods that do not learn, on the same validation samples."


def spikes(record: Record) -> list[Mapping]:
    """Return the spikes of a run, each (step, quantity) once: a step repeated after a resume may stand there twice."""
    found = [event for event in record.events if event.get("event") == "spike"]
    return list({(event["step"], event.get("quantity")): event for event in found}.values())


def skipped_steps(record: Record) -> list[int]:
    """Return the distinct steps whose update was skipped, because a loss or a gradient was not finite."""
    return sorted({event["step"] for event in record.events if event.get("event") == "skip"})


def training_curve(name: str) -> Curve:
    """Return the curve of a training quantity over steps; the first measured step is that of the initial weights."""
    return lambda record: (column(record.training, "step"), column(record.training, name))


def validation_curve(name: str) -> Curve:
    """Return the curve of a validation figure over steps, empty where a run does not have it."""

    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        if name not in record.metrics.columns:
            return np.empty(0), np.empty(0)
        rows = record.validation
        return column(rows, "step"), column(rows, name)

    return curve


def axis_label(axis: str) -> str:
    """Return the words of an axis of progress."""
    return {"tokens": "training tokens", "samples": "training samples", "step": "optimizer step"}[axis]


def draw_band(axes: Axes, group: Group, curve: Curve, *, axis: str, label: str | None, **line) -> None:
    """Draw a group's mean and the range over its seeds, at most 2,000 points.

    Args:
        axes: Where.
        group: The runs.
        curve: Steps and values of one run.
        axis: What the abscissa counts: "tokens", "samples" or "step".
        label: Entry of the legend, None for none.
        line: Settings of the line.
    """
    found = thin_out(band(group, curve))
    if not np.isfinite(found.mean).any():
        return
    x = progress(group.records[0], found.x, axis)
    line = {"color": group.look.colour, "linestyle": group.look.line, **line}
    axes.plot(x, found.mean, label=label or "_", **line)
    if len(group.records) > 1:
        shade(axes, x, found.low, found.high, colour=group.look.colour)


@paper
def loss(records: Sequence[Record]) -> Plate:
    """Draw training and validation loss against tokens (samples where a run counts no tokens)."""
    axis, groups = axis_of(records), group_records(records)
    plate = Plate(
        name="loss",
        title="Loss",
        caption=f"Loss against {axis}. Thin lines: training loss of the logged step alone; markers: validation loss. "
        + SEEDS,
        missing=_without_rows(records, "loss", "training loss"),
    )
    axes = new_axes(x=axis_label(axis), y="loss (nats per token)" if axis == "tokens" else "loss")
    for group in groups:
        draw_band(axes, group, training_curve("loss"), axis=axis, label=None, linewidth=0.8)
        look = {"linestyle": "none", "marker": group.look.marker, "markersize": 4, "markeredgecolor": "white"}
        draw_band(axes, group, validation_curve("validation_loss"), axis=axis, label=None, markeredgewidth=0.4, **look)
        both = {"color": group.look.colour, "linestyle": group.look.line, "marker": group.look.marker}
        axes.plot([], [], label=group.label, linewidth=0.8, **both)
    if not any(len(np.atleast_1d(line.get_xdata())) for line in axes.get_lines()):
        return plate
    if _draw_baselines(axes, records, Figure("", "loss")):
        plate = replace(plate, caption=f"{plate.caption} {_BASELINES}")
    log = "y" if _is_wide(axes) else ""
    return _with(plate, Panel("", f"Training and validation loss against {axis}", finish(axes, log=log, counts="x")))


@paper
def gradient_norm(records: Sequence[Record]) -> Plate:
    """Draw the global gradient norm before clipping, with spikes and skipped steps."""
    axis, groups = axis_of(records), group_records(records)
    plate = Plate(
        name="gradient-norm",
        title="Gradient norm",
        caption=f"Norm of the whole gradient against {axis}, after reduction over ranks and before clipping. Triangles "
        "on the curves: steps whose gradient norm was a spike; triangles at the top: steps whose loss was one; "
        "crosses at the bottom: steps whose update was skipped because a loss or gradient was not finite. A spike is "
        "a value far above the median of a running window. " + SEEDS,
        findings=_event_sentences(records),
        missing=_without_rows(records, "grad_norm", "gradient norm"),
    )
    axes = new_axes(x=axis_label(axis), y="gradient norm")
    for group in groups:
        draw_band(axes, group, training_curve("grad_norm"), axis=axis, label=group.label, linewidth=0.8)
    if not axes.get_lines():
        return plate
    for group in groups:
        for record in group.records:
            _mark_events(axes, group, record, axis)
    return _with(plate, Panel("", f"Gradient norm against {axis}", finish(axes, log="y", counts="x")))


@paper
def validation(records: Sequence[Record]) -> Plate:
    """Draw every validation figure besides the loss, a panel each."""
    axis, groups = axis_of(records), group_records(records)
    panels = []
    for figure in own_figures(records):
        if figure.name == "loss":
            continue
        axes = new_axes(x=axis_label(axis), y=f"validation {with_unit(figure, records)}")
        for group in groups:
            look = {"marker": group.look.marker, "markersize": 4}
            draw_band(axes, group, validation_curve(figure.column), axis=axis, label=group.label, **look)
            for control, words in CONTROLS.items():
                curve = validation_curve(Figure(control, figure.name).column)
                hollow = {**look, "markerfacecolor": "white", "linestyle": ":"}
                draw_band(axes, group, curve, axis=axis, label=f"{group.label}, {words}", **hollow)
        _draw_baselines(axes, records, figure)
        file = figure.name.replace("_", "-")
        drawn = finish(axes, log="y" if _is_wide(axes) else "", counts="x")
        panels.append(Panel(file, f"Validation {figure.words} against {axis}", drawn))
    return Plate(
        name="validation",
        title="Validation",
        caption=f"What the task measures on its validation samples, against {axis}; lines join the evaluations. "
        f"{_BASELINES} {SEEDS}",
        panels=panels,
        missing=[] if panels else ["no run has a validation figure besides the loss"],
    )


@paper
def learning_rate(records: Sequence[Record]) -> Plate:
    """Draw the final validation loss against the peak learning rate, where runs differ in it."""
    plate = Plate(
        name="learning-rate",
        title="Learning-rate sensitivity",
        caption="Validation loss at the end against the peak learning rate, a line per placement through the finished "
        "runs (mean over seeds, bars from least to greatest). Crosses at the top: runs that diverged, which is a last "
        "loss that is not finite, or an end above the first loss. Hollow: runs that are not finished, at the last "
        "validation loss that they have. " + SEEDS,
    )
    rated = [record for record in records if isinstance(setting(record.config, "optim.lr"), int | float)]
    if len({setting(record.config, "optim.lr") for record in rated}) < 2:
        return _missing(plate, "all runs have the same optim.lr")
    axes = new_axes(x="peak learning rate", y="final validation loss")
    sentences: list[str] = []
    for group in group_records(rated, also_ignored=("optim.lr",)):
        sentences += _draw_sensitivity(axes, group)
    if not axes.get_lines():
        return _missing(plate, "no run has a validation loss yet")
    figure = finish(axes, log="xy" if _is_wide(axes) else "x")
    rates = sorted({float(setting(record.config, "optim.lr")) for record in rated})
    if len(rates) <= _MOST_TICKS:
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    return Plate(
        name=plate.name,
        title=plate.title,
        caption=plate.caption,
        panels=[Panel("", "Final validation loss against the peak learning rate", figure)],
        findings=sentences,
    )


def outcome(record: Record) -> str:
    """Return "finished", "unfinished" or "diverged".

    Diverged is a run whose last training or validation loss is not finite, or that ended above its first training
    loss. While a run goes on, a loss above the first may be noise.
    """
    losses = column(record.training, "loss")
    ends = column(record.validation, "validation_loss")
    is_done = record.steps_done >= (record.steps_asked or 0)
    # A task may have no validation loss at all; a column of nothing but gaps is that, not a divergence.
    last = [*losses[-1:], *(ends[-1:] if np.isfinite(ends).any() else [])]
    finite = losses[np.isfinite(losses)]
    if not np.isfinite(last).all() or (is_done and len(finite) and losses[-1] > finite[0]):
        return "diverged"
    return "finished" if is_done else "unfinished"


def _draw_baselines(axes: Axes, records: Sequence[Record], figure: Figure) -> bool:
    """Draw what methods that do not learn reach, a horizontal line each; return whether there is any.

    Runs that are judged by different data have lines of their own.
    """
    drawn = False
    looks = itertools.cycle([(0, (1, 1)), (0, (4, 2)), (0, (4, 1, 1, 1)), (0, (8, 2))])
    for arena in arenas(records):
        for method, value in baselines(arena, figure.name).items():
            label = ", ".join(filter(None, (METHODS[method], arena.label)))
            line = {"color": "#8a8a8a", "linewidth": 0.9, "gid": f"{method} baseline"}
            axes.axhline(value, label=label, linestyle=next(looks), zorder=1.5, **line)
            drawn = True
    return drawn


def _draw_sensitivity(axes: Axes, group: Group) -> list[str]:
    """Draw one placement, and return a sentence about each run that is not finished."""
    name = NAMES[group.placement] if group.placement != "unknown" else group.label
    sentences: list[str] = []
    finished: dict[float, list[float]] = {}
    for record in group.records:
        rate, state, value = (
            float(setting(record.config, "optim.lr")),
            outcome(record),
            final(record, "validation_loss"),
        )
        if state == "finished" and np.isfinite(value):
            finished.setdefault(rate, []).append(value)
            continue
        shown = "" if np.isfinite(value) else ", no validation loss"
        sentences.append(f"{record.label} (lr {rate:g}): {state} at step {record.steps_done:,}{shown}.")
        at_top = state == "diverged" or not np.isfinite(value)
        axes.plot(
            [rate],
            [0.97 if at_top else value],
            transform=axes.get_xaxis_transform() if at_top else axes.transData,
            marker="x" if at_top else group.look.marker,
            color=group.look.colour,
            markerfacecolor="none",
            linestyle="none",
            markersize=5,
            label="_",
            gid=state,
        )
    if finished:
        rates = sorted(finished)
        means = np.array([np.mean(finished[rate]) for rate in rates])
        spread = np.array([[means[i] - min(finished[r]), max(finished[r]) - means[i]] for i, r in enumerate(rates)]).T
        look = {"color": group.look.colour, "linestyle": group.look.line, "marker": group.look.marker}
        axes.plot(rates, means, label=name, **look)
        if spread.any():
            axes.errorbar(rates, means, yerr=spread, fmt="none", ecolor=group.look.colour, capsize=2, elinewidth=0.8)
    return sentences


def _mark_events(axes: Axes, group: Group, record: Record, axis: str) -> None:
    """Mark spikes of the gradient norm on the curve, those of the loss at the top, skipped steps at the bottom."""
    edge = axes.get_xaxis_transform()
    found = spikes(record)[:_MOST_MARKS]
    on_curve = [
        (e["step"], e["value"]) for e in found if e.get("quantity") == "grad_norm" and _is_number(e.get("value"))
    ]
    at_top = [e["step"] for e in found if (e["step"], e.get("value")) not in on_curve]
    look = {"color": group.look.colour, "linestyle": "none", "label": "_", "markersize": 4}
    if on_curve:
        steps, values = np.array(on_curve, dtype=float).T
        axes.plot(progress(record, steps, axis), values, marker="^", gid="spike", **look)
    if at_top:
        x = progress(record, np.array(at_top), axis)
        axes.plot(x, np.full(len(x), 0.98), marker="v", transform=edge, gid="loss spike", **look)
    if skipped := skipped_steps(record)[:_MOST_MARKS]:
        x = progress(record, np.array(skipped), axis)
        axes.plot(x, np.full(len(x), 0.02), marker="x", transform=edge, gid="skip", **look)


def _event_sentences(records: Sequence[Record]) -> list[str]:
    sentences = []
    for record in records:
        found, skipped = spikes(record), skipped_steps(record)
        if found or skipped:
            of_loss = sum(event.get("quantity") == "loss" for event in found)
            sentences.append(
                f"{record.label}: {len(found) - of_loss} gradient-norm spikes, {of_loss} loss spikes, "
                f"{len(skipped)} skipped steps."
            )
    if len(sentences) > _MOST_SENTENCES:
        return [
            f"{len(sentences)} of {len(records)} runs have spikes or skipped steps; the table of facts counts them."
        ]
    return sentences


def _without_rows(records: Sequence[Record], name: str, words: str) -> list[str]:
    empty = [record for record in records if not np.isfinite(column(record.metrics, name)).any()]
    return [f"{record.label}: metrics.jsonl has no finite {words}" for record in empty]


def _is_wide(axes: Axes) -> bool:
    """Return whether the lines' values span so much that only a logarithmic axis shows them."""
    drawn = [np.asarray(line.get_ydata(), float) for line in axes.get_lines() if line.get_transform() == axes.transData]
    values = np.concatenate([*drawn, np.empty(0)])
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and values.max() / values.min() > WIDE_RANGE)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _with(plate: Plate, panel: Panel) -> Plate:
    return Plate(**{**vars(plate), "panels": [*plate.panels, panel]})


def _missing(plate: Plate, reason: str) -> Plate:
    return Plate(**{**vars(plate), "missing": [*plate.missing, reason]})
