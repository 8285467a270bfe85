"""Plots over training: gradient norm, validation metrics, and sensitivity to the learning rate."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analysis.figures.heat_map import limits
from analysis.figures.lines import Line, is_wide, line_figure, over_training, shown_text
from analysis.groups import Curve, Group, axis_of, group_records, progress, with_arms
from analysis.metrics import CONTROLS, LOSS, METHODS, ValidationMetric, final, main_metric, own_metrics, title_with_unit
from analysis.runs import Record, column, setting
from analysis.style import Panel, Plate, Series, finish, keep, new_axes, paper
from analysis.validation import baselines, comparisons

_MOST_SENTENCES = 6
_SATURATES = 6.0  # distances of the median from the least loss that an axis shows
_MOST_TICKS = 6
_MOST_MARKS = 500  # events of one kind and run
SEEDS = (
    "Runs that differ only in seed are averaged into one line, with a band showing their range; there is a gap where "
    "one of them has no finite value."
)

BASELINES = "Horizontal lines: baselines without training, on the same validation samples."


def spikes(record: Record) -> list[Mapping]:
    """Return the spikes of a run, each (step, quantity) once: a step repeated after a resume may be logged twice."""
    events = [event for event in record.events if event.get("event") == "spike"]
    return list({(event["step"], str(event.get("quantity"))): event for event in events}.values())


def skipped_steps(record: Record) -> list[int]:
    """Return the distinct steps whose update was skipped because a loss or gradient was not finite."""
    return sorted({event["step"] for event in record.events if event.get("event") == "skip"})


def training_curve(name: str) -> Curve:
    """Return the curve of a training quantity over steps; step 1 belongs to the initial weights."""
    return lambda record: (column(record.training, "step"), column(record.training, name))


def validation_curve(name: str) -> Curve:
    """Return the curve of a validation metric over steps, empty if a run lacks it."""

    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        if name not in record.metrics.columns:
            return np.empty(0), np.empty(0)
        rows = record.validation
        return column(rows, "step"), column(rows, name)

    return curve


def axis_label(axis: str) -> str:
    """Return the label of an axis of progress."""
    return {"tokens": "training tokens", "samples": "training samples", "step": "optimizer step"}[axis]


@paper
def gradient_norm(records: Sequence[Record]) -> Plate:
    """Draw the global gradient norm before clipping, with spikes and skipped steps."""
    axis, groups = axis_of(records), with_arms(records)
    lines = [over_training(group, training_curve("grad_norm"), axis=axis, linewidth=0.8) for group in groups]

    def mark(axes: Axes, own: Sequence[Line]) -> None:
        for line in own:
            for record in line.group.records:
                _mark_events(axes, line.group, record, axis)

    figure = line_figure(lines, x=axis_label(axis), y="gradient norm", log="y", counts="x", decorate=mark)
    return Plate(
        name="gradient-norm",
        title="Gradient norm",
        caption=f"Global gradient norm against {axis}, after reduction over ranks and before clipping. "
        f"{_marks_text(records)}{shown_text([line.group for line in lines if line.is_finite])}",
        panels=[] if figure is None else [Panel("", f"Gradient norm against {axis}", figure)],
        findings=_event_sentences(records),
        missing=without_rows(records, "grad_norm", "gradient norm"),
    )


def _marks_text(records: Sequence[Record]) -> str:
    """Return what the marks of events mean, of those kinds that these runs have."""
    kinds = {str(event.get("quantity")) for record in records for event in spikes(record)}
    words = {
        "Triangles on the curves: gradient-norm spikes": "grad_norm" in kinds,
        "Triangles at the top: loss spikes": bool(kinds - {"grad_norm"}),
        "Crosses at the bottom: updates skipped because a loss or gradient was not finite": any(
            skipped_steps(record) for record in records
        ),
    }
    sentences = [f"{sentence}. " for sentence, is_shown in words.items() if is_shown]
    return "".join([*sentences, "A spike is a value far above the median of a running window. " if kinds else ""])


@paper
def validation(records: Sequence[Record]) -> Plate:
    """Draw every validation metric except the loss, one panel each."""
    axis, groups = axis_of(records), with_arms(records)
    panels, shown = [], {}
    for metric in own_metrics(records):
        if metric.name == "loss":
            continue
        lines = [line for group in groups for line in _metric_lines(group, metric, axis)]
        figure = line_figure(
            lines,
            x=axis_label(axis),
            y=f"validation {title_with_unit(metric, records)}",
            log="y" if is_wide([line.band.mean for line in lines]) else "",
            counts="x",
            decorate=lambda axes, _, metric=metric: draw_baselines(axes, records, metric),
        )
        if figure is not None:
            shown |= {line.group.label: line.group for line in lines if line.is_finite}
            file = metric.name.replace("_", "-")
            panels.append(Panel(file, f"Validation {metric.words} against {axis}", figure))
    has_baselines = any(
        baselines(comparison, m.name) for comparison in comparisons(records) for m in own_metrics(records)
    )
    return Plate(
        name="validation",
        title="Validation",
        caption=f"The task's metrics on its validation samples, against {axis}; lines connect the evaluations. "
        f"{f'{BASELINES} ' if has_baselines else ''}{shown_text(list(shown.values()))}",
        panels=panels,
        missing=[] if panels else ["no run has a validation metric besides the loss"],
    )


def _metric_lines(group: Group, metric: ValidationMetric, axis: str) -> list[Line]:
    """Return the lines of the trained model and of its controls, which are hollow."""
    look = {"marker": group.look.marker, "markersize": 4}
    hollow = {**look, "markerfacecolor": "white", "linestyle": ":"}
    lines = [over_training(group, validation_curve(metric.column), axis=axis, quantity=metric.words, **look)]
    for control, words in CONTROLS.items():
        curve = validation_curve(ValidationMetric(control, metric.name).column)
        label, quantity = f"{group.label}, {words}", f"{metric.words}, {words}"
        line = over_training(group, curve, axis=axis, label=label, quantity=quantity, **hollow)
        lines.append(replace(line, is_reference=False))
    return lines


@paper
def learning_rate(records: Sequence[Record]) -> Plate:
    """Draw the final value of the main metric against the peak learning rate, if runs differ in it."""
    metric = main_metric(records)
    plate = Plate(
        name="learning-rate",
        title="Learning-rate sensitivity",
        caption=f"Final {metric.phrase} against the peak learning rate, one line per arm through the finished "
        "runs (mean over seeds; bars show the range). Crosses at the top: diverged runs, whose last loss is not finite "
        f"or above their first. Hollow: unfinished runs, at their latest {metric.phrase}. {SEEDS}",
    )
    rated = [record for record in records if isinstance(setting(record.config, "optim.lr"), int | float)]
    if len({setting(record.config, "optim.lr") for record in rated}) < 2:
        return _missing(plate, "all runs have the same peak learning rate (optim.lr)")
    unit = " (nats per token)" if axis_of(records) == "tokens" and metric == LOSS else ""
    axes = new_axes(x="peak learning rate", y=f"final {metric.phrase}{unit}")
    sentences: list[str] = []
    for group in group_records(rated, also_ignored=("optim.lr",)):
        sentences += _draw_sensitivity(axes, group)
    if not axes.get_lines():
        return _missing(plate, f"no run has a {metric.phrase} yet")
    figure = finish(axes, log="xy" if metric.sign > 0 and _is_wide(axes) else "x")
    sentences += _cut_off(axes) if metric.sign > 0 else []
    rates = sorted({float(setting(record.config, "optim.lr")) for record in rated})
    if len(rates) <= _MOST_TICKS:
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    return Plate(
        name=plate.name,
        title=plate.title,
        caption=plate.caption,
        panels=[Panel("", f"Final {metric.phrase} against the peak learning rate", figure)],
        findings=sentences,
    )


def outcome(record: Record) -> str:
    """Return "finished", "unfinished" or "diverged".

    A run has diverged if its last training or validation loss is not finite, or if it ended above its first training
    loss. In an unfinished run, a loss above the first may be noise.
    """
    losses = column(record.training, "loss")
    ends = column(record.validation, "validation_loss")
    is_done = record.steps_done >= (record.steps_asked or 0)
    # A task may have no validation loss: a column of gaps only means that, not divergence.
    last = [*losses[-1:], *(ends[-1:] if np.isfinite(ends).any() else [])]
    finite = losses[np.isfinite(losses)]
    if not np.isfinite(last).all() or (is_done and len(finite) and losses[-1] > finite[0]):
        return "diverged"
    return "finished" if is_done else "unfinished"


def draw_baselines(axes: Axes, records: Sequence[Record], metric: ValidationMetric) -> None:
    """Draw the baselines as horizontal lines.

    Runs validated on different data have separate baselines.
    """
    looks = itertools.cycle([(0, (1, 1)), (0, (4, 2)), (0, (4, 1, 1, 1)), (0, (8, 2))])
    for comparison in comparisons(records):
        for method, value in baselines(comparison, metric.name).items():
            label = ", ".join(filter(None, (METHODS[method], comparison.label)))
            line = {"color": "#8a8a8a", "linewidth": 0.9, "gid": f"{method} baseline"}
            axes.axhline(value, label=label, linestyle=next(looks), zorder=1.5, **line)


def _draw_sensitivity(axes: Axes, group: Group) -> list[str]:
    """Draw one arm, and return a sentence on each run that is not finished."""
    sentences: list[str] = []
    finished: dict[float, list[float]] = {}
    for record in group.records:
        rate, state, value = (
            float(setting(record.config, "optim.lr")),
            outcome(record),
            final(record, main_metric([record]).column),
        )
        if state == "finished" and np.isfinite(value):
            finished.setdefault(rate, []).append(value)
            continue
        lacking = "" if np.isfinite(value) else f", no {main_metric([record]).phrase}"
        sentences.append(f"{record.label} (lr {rate:g}): {state} at step {record.steps_done:,}{lacking}.")
        at_top = state == "diverged" or not np.isfinite(value)
        axes.plot(
            [rate],
            [0.97 if at_top else value],
            transform=axes.get_xaxis_transform() if at_top else axes.transData,
            marker="x" if at_top else group.look.marker,
            color=group.look.color,
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
        look = {"color": group.look.color, "linestyle": group.look.line, "marker": group.look.marker}
        axes.plot(rates, means, label=group.name, **look)
        if spread.any():
            axes.errorbar(rates, means, yerr=spread, fmt="none", ecolor=group.look.color, capsize=2, elinewidth=0.8)
    return sentences


def _cut_off(axes: Axes) -> list[str]:
    """End a linear axis where a few large losses would hide the differences between the others, and name its end."""
    if axes.get_yscale() == "log":
        return []
    drawn = [np.asarray(line.get_ydata(), float) for line in axes.get_lines() if line.get_transform() == axes.transData]
    values = np.concatenate([*drawn, np.empty(0)])
    low, high = limits(values, saturates=_SATURATES)
    if not np.isfinite(values).any() or np.nanmax(values) <= high:
        return []
    axes.set_ylim(low - 0.05 * (high - low), high)
    return [f"The axis ends at {high:.3g}; larger losses are off the plot."]


def _mark_events(axes: Axes, group: Group, record: Record, axis: str) -> None:
    """Mark gradient-norm spikes on the curve, loss spikes at the top and skipped steps at the bottom."""
    edge = axes.get_xaxis_transform()
    events = spikes(record)[:_MOST_MARKS]
    on_curve = [
        (e["step"], e["value"]) for e in events if e.get("quantity") == "grad_norm" and _is_number(e.get("value"))
    ]
    at_top = [e["step"] for e in events if (e["step"], e.get("value")) not in on_curve]
    look = {"color": group.look.color, "linestyle": "none", "label": "_", "markersize": 4}

    def plot(kind: str, x: np.ndarray, y: np.ndarray, **style: Any) -> None:
        (marks,) = axes.plot(x, y, gid=kind, **style, **look)
        is_at_edge = style.get("transform") is edge
        keep(axes, marks, Series(record.label, kind, x, np.full(len(x), np.nan) if is_at_edge else y))

    if on_curve:
        steps, values = np.array(on_curve, dtype=float).T
        plot("spike", progress(record, steps, axis), values, marker="^")
    if at_top:
        x = progress(record, np.array(at_top), axis)
        plot("loss spike", x, np.full(len(x), 0.98), marker="v", transform=edge)
    if skipped := skipped_steps(record)[:_MOST_MARKS]:
        x = progress(record, np.array(skipped), axis)
        plot("skip", x, np.full(len(x), 0.02), marker="x", transform=edge)


def _event_sentences(records: Sequence[Record]) -> list[str]:
    sentences = []
    for record in records:
        events, skipped = spikes(record), skipped_steps(record)
        if events or skipped:
            of_loss = sum(event.get("quantity") == "loss" for event in events)
            sentences.append(
                f"{record.label}: {len(events) - of_loss} gradient-norm spikes, {of_loss} loss spikes, "
                f"{len(skipped)} skipped steps."
            )
    if len(sentences) > _MOST_SENTENCES:
        return [
            f"{len(sentences)} of {len(records)} runs have spikes or skipped steps; see the table of facts for counts."
        ]
    return sentences


def without_rows(records: Sequence[Record], name: str, words: str) -> list[str]:
    """Return a reason for each run without a finite value in a column of metrics.jsonl."""
    empty = [record for record in records if not np.isfinite(column(record.metrics, name)).any()]
    return [f"{record.label}: metrics.jsonl has no finite {words}" for record in empty]


def _is_wide(axes: Axes) -> bool:
    """Return whether the lines' values span a range that only a logarithmic axis can show."""
    drawn = [np.asarray(line.get_ydata(), float) for line in axes.get_lines() if line.get_transform() == axes.transData]
    return is_wide(drawn)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _missing(plate: Plate, reason: str) -> Plate:
    return Plate(**{**vars(plate), "missing": [*plate.missing, reason]})
