"""The score at the lowest and the highest learning rate in one sentence, for arms with one run at each rate."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.metrics import ValidationMetric
from analysis.report.arms import Arm, ranked

_FEW = 6  # arms that the sentence lists


def extremes(arms: Sequence[Arm]) -> str:
    """Return how much each arm's score changes from the lowest to the highest learning rate, and who is best at each.

    Args:
        arms: Arms validated on the same data.

    Returns:
        The sentence. Empty with a single learning rate, with several runs at one (then claims compare pairs), and if
        no arm has a finished run at both ends.
    """
    rates = sorted({rate for arm in arms for rate in arm.rates})
    if len(rates) < 2 or any(len(cell.runs) > 1 for arm in arms for cell in arm.cells):
        return ""
    low, high = rates[0], rates[-1]
    metric, at_low, at_high = arms[0].metric, _scores(arms, low), _scores(arms, high)
    changes = sorted((at_high[name] - at_low[name], name) for name in at_low if name in at_high)
    if not changes:
        return ""
    changing = f"From learning rate {low:g} to {high:g} the {metric.words} changes by {_listed(changes)}"
    failed = "".join(f"; {text}" for rate in (low, high) for text in _failures(arms, rate))
    return f"{changing}; {_best(at_low, low, metric)}, {_best(at_high, high, metric)}{failed} (one run each)."


def _scores(arms: Sequence[Arm], rate: float) -> dict[str, float]:
    """Return the final scores of the arms with a finished run at a learning rate."""
    cells = [(arm.name, arm.at(rate)) for arm in arms]
    return {name: cell.mean for name, cell in cells if cell is not None and cell.is_complete}


def _listed(changes: Sequence[tuple[float, str]]) -> str:
    texts = [f"{_signed(change)} for {name}" for change, name in changes[:_FEW]]
    if len(changes) > _FEW:
        return f"{', '.join(texts)} and {len(changes) - _FEW} more"
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _signed(change: float) -> str:
    return f"{change:+#.3g}".rstrip(".")  # with its last zeros: +0.540 beside +1.69


def _best(scores: dict[str, float], rate: float, metric: ValidationMetric) -> str:
    arm = min(scores, key=lambda name: metric.sign * scores[name])
    if len(scores) == 1:
        return f"only {arm} has a finished run at {rate:g}"
    return f"{arm} is {metric.best_word} at {rate:g}"


def _failures(arms: Sequence[Arm], rate: float) -> list[str]:
    words = {"diverged": "diverged", "unfinished": "is unfinished"}
    cells = [(arm.name, arm.at(rate)) for arm in ranked(arms)]
    return [
        f"{name} {words.get(cell.remark, f'has {cell.remark}')} at {rate:g}"
        for name, cell in cells
        if cell and cell.remark
    ]
