"""Result of a comparison: which arm is best and by how much, the claims of the paper, and the loss by learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.figures.heat_map import heat_map
from analysis.figures.training import learning_rate
from analysis.metrics import LOSS, ValidationMetric
from analysis.page.contents import Section, number_text
from analysis.report.arms import (
    Arm,
    Cell,
    are_comparable,
    ranked,
)
from analysis.report.claims import claims, difference_text, trios
from analysis.report.details import details
from analysis.report.extremes import extremes
from analysis.report.paired import at_best
from analysis.report.ranking import Result, equal_rates, ranking, titled, tokens_per_parameter
from analysis.style import Panel, Plate

_FEW = 6  # arms that a sentence lists


def sections(result: Result, heading: str = "") -> list[Section]:
    """Return the section with the result, and one with the details that it rests on."""
    is_comparable, is_sweep = are_comparable(result.arms), len(result.rates) > 1
    plates = [*_claims(result), *([loss_map(result)] if is_sweep else [])] if is_comparable else []
    return [
        Section(
            title=f"{heading}Result",
            prose=sentences(result),
            notes=notes(result) if is_comparable else [],
            tables=[ranking(result)] if is_comparable else [],
            plates=[*plates, *([learning_rate(result.records)] if is_sweep else [])],
        ),
        Section(
            title=f"{heading}Details of the result",
            tables=[*details(ranked(result.arms)), *([equal_rates(result)] if is_comparable and is_sweep else [])],
        ),
    ]


def sentences(result: Result) -> list[str]:
    """Return the result in one sentence, and for single runs at several learning rates how these change the score."""
    change = extremes(result.arms) if are_comparable(result.arms) else ""
    return [sentence(result), *([change] if change else [])]


def sentence(result: Result) -> str:
    """Return the result in one sentence: the best arm and its paired difference, or that it cannot be told."""
    if not are_comparable(result.arms):
        return f"The arms were validated on different data, so their {_plural(result.metric)} cannot be compared."
    order, phrase = [arm for arm in ranked(result.arms) if arm.best is not None], result.metric.phrase
    if len(order) < 2:
        who = f"only {order[0].name} has" if order else "no arm has"
        return f"It cannot be told which arm is best: {who} a finished run with a {phrase}."
    first, second = order[:2]
    found = at_best(first, second)
    among = "among the arms with finished runs, " if len(order) < len(result.arms) else ""
    if found.count < 2:
        each = ", each at its best learning rate" if len(result.rates) > 1 else ""
        text = f"{among}in order of final {phrase}{each}: {_listed(order, result.unit)}; "
        return _capital(text + _too_few(order, found.count))
    name = f"the runner-up, {second.name}," if len(order) > 2 else second.name
    numbers = f"{difference_text(found, result.unit)}{_budget([first, second])}"
    highest = f"{result.metric.best_word} mean final {phrase}"
    best = f"{first.name} has the {highest}{_at_best(result)}, {_score(first, result.unit)}"
    further = ""
    if result.baseline not in (first, second) and result.baseline in order:
        further = f"from {result.baseline.name} {difference_text(at_best(first, result.baseline), result.unit)}"
    if found.sign != -result.metric.sign:
        side = "above" if result.metric.sign < 0 else "below"
        text = (
            f"It cannot be told which arm is best: {among}{best}, but its paired difference from {name} is not clearly "
            f"{side} zero: {numbers}"
        )
        return f"{text}; {further}." if further else f"{text}."
    text = f"{among}{best}; its paired difference from {name} is {numbers}"
    return _capital(f"{text}, and {further}." if further else f"{text}.")


def notes(result: Result) -> list[str]:
    """Return what limits the result: arms without a finished run, chosen rates at the edge, and unpaired runs."""
    found = []
    for arm in result.arms:
        states = ", ".join(
            f"{count} {state}"
            for state in ("diverged", "unfinished")
            if (count := sum(run.outcome == state for run in arm.runs))
        )
        if arm.best is None:
            found.append(
                f"{arm.name} has no finished run with a {result.metric.phrase} ({states or 'nothing validated'})."
            )
        elif not arm.best.is_complete:
            found.append(
                f"{arm.name}: at no learning rate are all runs finished; at {arm.best.rate:g}, which counts as its "
                f"best, {arm.best.remark}."
            )
    edges = [text for arm in result.arms if (text := _edge(arm))]
    if edges:
        found.append(f"At the edge of the learning rates tried, a better one may lie beyond: {'; '.join(edges)}.")
    if any(arm.rates != result.arms[0].rates for arm in result.arms):
        found.append("The arms were trained at different learning rates; sensitivity is compared over the common ones.")
    for arm in result.arms:
        other = at_best(arm, result.baseline).other_data if arm is not result.baseline else 0
        if other:
            runs = "1 run has" if other == 1 else f"{other} runs have"
            found.append(
                f"{arm.name}: {runs} the seeds of a run of {result.baseline.name} but not its samples (samples_hash), "
                "so no pair."
            )
    return found


def loss_map(result: Result) -> Plate:
    """Draw the mean final score of every arm at every learning rate."""
    arms, metric = ranked(result.arms), result.metric
    is_loss = metric.sign > 0
    cells: dict[tuple[int, int], float | str] = {}
    framed = []
    for row, arm in enumerate(arms):
        for at, rate in enumerate(result.rates):
            cell = arm.at(rate)
            if cell is None:
                continue
            cells[row, at] = cell.remark or cell.mean
            if cell is arm.best and len(arm.cells) > 1:
                framed.append((row, at))
    figure = heat_map(
        [arm.name for arm in arms],
        [f"{rate:g}" for rate in result.rates],
        cells,
        positions=result.rates,
        x="peak learning rate",
        color=titled(metric.words, result.unit),
        framed=framed,
        **({} if is_loss else {"saturates": np.inf}),
    )
    saturating = " Colors saturate, so that one large loss does not hide the other differences." if is_loss else ""
    return Plate(
        name="loss-map",
        title=f"{_capital(metric.words)} by arm and learning rate",
        caption=f"Final {metric.phrase}, mean over the seeds; framed: the best learning rate of an arm. A cell with "
        "words has runs that diverged or are unfinished; an empty one has no runs."
        f"{saturating}",
        panels=[Panel("", f"Final {metric.phrase} of every arm at every learning rate", figure)],
    )


def plain_text(result: Result) -> str:
    """Return the sentences and the table of arms by learning rates, as text for a terminal."""
    arms = ranked(result.arms)
    star = any(len(arm.cells) > 1 for arm in arms)
    has_seeds = any(len(cell.runs) > 1 for arm in arms for cell in arm.cells)
    counts = "mean over seeds" if has_seeds else "one run each"
    what = titled(f"Final {result.metric.phrase}", result.unit)
    title = f"{what} by peak learning rate, {counts}"
    header = ["", *(f"{rate:g}" for rate in result.rates)]
    rows = [[arm.name, *(_plain(arm, arm.at(rate), star) for rate in result.rates)] for arm in arms]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True))])
        for row in (header, *rows)
    ]
    title += "; * marks an arm's best" if star else ""
    return "\n".join(["\n\n".join(sentences(result)), "", title, *(line.rstrip() for line in lines)])


def _claims(result: Result) -> list[Plate]:
    found = trios(result.arms)
    plates = []
    for i, trio in enumerate(found):
        several = f": {trio.peri.name} and {trio.pre.name}" if len(found) > 1 else ""
        judged = [claim.sentence for claim in claims(trio, result.unit)]
        title = f"Claims of the Peri-LN paper (arXiv 2502.02732){several}"
        plates.append(Plate(name=f"claims-{i + 1}", title=title, caption="", findings=judged, is_open=True))
    return plates


def _budget(arms: Sequence[Arm]) -> str:
    text = tokens_per_parameter(arms)
    return f" at {text} tokens per parameter" if text else ""


def _edge(arm: Arm) -> str:
    if arm.best is None or len(arm.cells) < 2:
        return ""
    which = {arm.rates[0]: "lowest", arm.rates[-1]: "highest"}.get(arm.best.rate)
    return f"{arm.name} ({which}, {arm.best.rate:g})" if which else ""


def _at_best(result: Result) -> str:
    return " at its best learning rate" if len(result.rates) > 1 else ""


def _listed(order: Sequence[Arm], unit: str) -> str:
    names = ", ".join(f"{arm.name} {number_text(arm.best.mean)}" for arm in order[:_FEW] if arm.best)
    more = f" and {len(order) - _FEW} more" if len(order) > _FEW else ""
    return f"{names}{more}{f' ({unit})' if unit else ''}{_budget(order)}"


def _too_few(order: Sequence[Arm], pairs: int) -> str:
    if all(arm.best is not None and len(arm.best.runs) == 1 for arm in order):
        return "one run per arm cannot tell which is better."
    if pairs:
        return "one pair of runs cannot tell which of the first two is better."
    return "it cannot be told which of the first two is better, as no runs of theirs have the same seeds and samples."


def _score(arm: Arm, unit: str) -> str:
    return " ".join(filter(None, (number_text(arm.best.mean) if arm.best else "", unit)))


def _plain(arm: Arm, cell: Cell | None, star: bool) -> str:
    if cell is None:
        return ""
    number = f"{cell.mean:.4f}" if 0.1 <= abs(cell.mean) < 1e4 else number_text(cell.mean)
    mark = ("*" if cell is arm.best and len(arm.cells) > 1 else " ") if star else ""
    return f"{cell.remark or number}{mark}"


def _plural(metric: ValidationMetric) -> str:
    return "losses" if metric == LOSS else f"{metric.phrase} values"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
