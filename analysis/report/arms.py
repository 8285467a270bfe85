"""Arms of a comparison: runs that agree in everything but learning rate and seeds, and each arm's best learning rate.

An arm is usually a placement; two runs that differ in any other setting that matters are in different arms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from analysis.figures.training import outcome
from analysis.groups import Group, group_records, leaves
from analysis.metrics import LOSS, ValidationMetric, final, main_metric
from analysis.runs import InputError, Record, column, setting
from analysis.setting_facts import SettingFacts, merged
from analysis.style import NAMES

RATE = "optim.lr"


class Run(NamedTuple):
    """One run of an arm.

    Attributes:
        record: Its data.
        seeds: Text that is equal for runs with the same seeds.
        outcome: "finished", "unfinished" or "diverged".
        score: Final value of the task's main metric, such as the validation loss; NaN if there is none.
        first_loss: First finite training loss: that of the initial weights. NaN if there is none.
    """

    record: Record
    seeds: str
    outcome: str
    score: float
    first_loss: float

    @property
    def has_final_score(self) -> bool:
        """Whether the run is finished and has a value of the main metric."""
        return self.outcome == "finished" and bool(np.isfinite(self.score))

    @property
    def capped_loss(self) -> float:
        """The final loss, or the first where that is lower or the run diverged; NaN for unfinished runs.

        It has a meaning only where the loss is the main metric.
        """
        if self.outcome == "diverged":
            return float(np.nanmin([self.score, self.first_loss])) if np.isfinite(self.first_loss) else np.nan
        return min(self.score, self.first_loss) if self.has_final_score else np.nan


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The runs of an arm at one learning rate."""

    rate: float
    group: Group
    runs: tuple[Run, ...]

    @property
    def metric(self) -> ValidationMetric:
        """The metric that the scores are of."""
        return main_metric(self.group.records)

    @cached_property
    def scores(self) -> np.ndarray:
        """Final scores of the finished runs."""
        return np.array([run.score for run in self.runs if run.has_final_score])

    @property
    def mean(self) -> float:
        """Mean final score of the finished runs; NaN if there is none."""
        return float(self.scores.mean()) if len(self.scores) else np.nan

    @property
    def rank(self) -> float:
        """The mean, negated where higher is better: the lowest rank is the best."""
        return self.metric.sign * self.mean

    @property
    def is_complete(self) -> bool:
        """Whether every run is finished and has a score."""
        return len(self.scores) == len(self.runs)

    def count(self, outcome: str) -> int:
        """Return the number of runs with an outcome."""
        return sum(run.outcome == outcome for run in self.runs)

    @property
    def remark(self) -> str:
        """Why the cell is incomplete: "diverged", "1 of 3 diverged", "unfinished", "no loss"; else empty."""
        lacking = f"no {self.metric.words}"
        if self.is_complete:
            return ""
        for state in ("diverged", "unfinished"):
            if count := self.count(state):
                return state if count == len(self.runs) else f"{count} of {len(self.runs)} {state}"
        count = len(self.runs) - len(self.scores)
        return lacking if not len(self.scores) else f"{count} of {len(self.runs)} {lacking}"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Runs that agree in everything but learning rate and seeds; `cells` are by ascending learning rate."""

    name: str
    group: Group
    cells: tuple[Cell, ...]

    @property
    def placement(self) -> str:
        """The placement that all runs share."""
        return self.group.placement

    @property
    def metric(self) -> ValidationMetric:
        """The metric by which arms are ranked."""
        return main_metric(self.group.records)

    @property
    def runs(self) -> list[Run]:
        """The runs at all learning rates."""
        return [run for cell in self.cells for run in cell.runs]

    @property
    def rates(self) -> list[float]:
        """The learning rates, ascending."""
        return [cell.rate for cell in self.cells]

    def at(self, rate: float) -> Cell | None:
        """Return the cell at a learning rate, or None if there is none."""
        return next((cell for cell in self.cells if cell.rate == rate), None)

    @cached_property
    def best(self) -> Cell | None:
        """The cell with the best mean final score, or None if no run is finished.

        A learning rate at which a run diverged or is unfinished is chosen only if all are like that.
        """
        scored = [cell for cell in self.cells if np.isfinite(cell.mean)]
        complete = [cell for cell in scored if cell.is_complete]
        return min(complete or scored, key=lambda cell: cell.rank, default=None)


def arms_of(records: Sequence[Record]) -> list[Arm]:
    """Return the arms among runs, in the order of the runs; runs without a learning rate belong to none."""
    facts = merged(record.setting_facts for record in records)
    rated = [record for record in records if _rate(record) is not None]
    arms = []
    for group in group_records(rated, also_ignored=(RATE,)):
        by_rate: dict[float, list[Run]] = {}
        for record in group.records:
            by_rate.setdefault(_rate(record) or 0.0, []).append(_run(record, facts))
        cells = tuple(_cell(group, rate, by_rate[rate]) for rate in sorted(by_rate))
        arms.append(Arm(name=group.name, group=group, cells=cells))
    return arms


def ranked(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms by mean final score at their best learning rate, the best first; those without one come last."""
    return sorted(arms, key=lambda arm: (arm.best is None, arm.best.rank if arm.best else 0.0, arm.name))


def find(arms: Sequence[Arm], name: str, *, option: str = "--arms") -> list[Arm]:
    """Return the arms of a name: an arm's own, or those of a placement ("peri" or "Peri-LN").

    Args:
        arms: All arms.
        name: Name, in upper or lower case.
        option: Option that gave it, for the message.

    Raises:
        InputError: There is none.
    """
    matches = _called(arms, name)
    if not matches:
        known = "; ".join(_known(arm) for arm in arms) or "none"
        raise InputError(f"{option} {name.strip()}: no arm has this name; there are: {known}")
    return matches


def baseline_of(arms: Sequence[Arm], name: str | None = None) -> Arm:
    """Return the arm that the others are compared with: the named one, else the first with Pre-LN, else the first."""
    named = [] if name is None else _called(arms, name)
    return (named or [arm for arm in arms if arm.placement == "pre"] or list(arms))[0]


def check_baseline(records: Sequence[Record], name: str | None) -> None:
    """Refuse a baseline that no task's arms have, or several of a task.

    Raises:
        InputError: The name fits no arm, or several arms of one task.
    """
    if name is None:
        return
    by_task = _arms_by_task(records)
    find([arm for arms in by_task for arm in arms], name, option="--baseline")
    for arms in by_task:
        matches = _called(arms, name)
        if len(matches) > 1:
            names = "; ".join(arm.name for arm in matches)
            raise InputError(f"--baseline {name}: fits {len(matches)} arms; give one of their names: {names}")


def chosen_records(records: Sequence[Record], names: Sequence[str]) -> list[Record]:
    """Return the runs of the named arms, in their order.

    Args:
        records: All runs, of one or several tasks.
        names: Names as in `find`; a name that fits no arm may be several, separated by commas.

    Raises:
        InputError: A name fits no arm.
    """
    arms = [arm for of_task in _arms_by_task(records) for arm in of_task]
    labels = {arm.name.lower() for arm in arms}
    single = [part for name in names for part in ([name] if name.strip().lower() in labels else name.split(","))]
    chosen = {id(run.record) for name in single for arm in find(arms, name) for run in arm.runs}
    return [record for record in records if id(record) in chosen]


def are_comparable(arms: Sequence[Arm]) -> bool:
    """Return whether all arms were validated on the same data, so that their losses can be compared."""
    facts = merged(run.record.setting_facts for arm in arms for run in arm.runs)
    judged = {
        repr(sorted((key, str(value)) for key, value in leaves(arm.runs[0].record.config).items() if facts.judges(key)))
        for arm in arms
    }
    return len(judged) <= 1


def common_rates(arms: Sequence[Arm]) -> list[float]:
    """Return the learning rates at which every arm has runs, none of them unfinished; none if not the loss ranks."""
    if any(arm.metric != LOSS for arm in arms):
        return []
    settled = [
        {cell.rate for cell in arm.cells if all(np.isfinite(run.capped_loss) for run in cell.runs)} for arm in arms
    ]
    return sorted(set.intersection(*settled)) if settled else []


def sensitivity(arm: Arm, rates: Sequence[float]) -> float | None:
    """Return the learning-rate sensitivity over `rates`, or None for fewer than two or where the arm lacks one.

    It is the mean over the rates of min(final loss, first loss), less the lowest of them (arXiv 2309.14322, section 2);
    at each rate the mean over the seeds counts.
    """
    cells = [arm.at(rate) for rate in rates]
    if len(rates) < 2 or not all(cells):
        return None
    losses = np.array([np.mean([run.capped_loss for run in cell.runs]) for cell in cells if cell is not None])
    return float(losses.mean() - losses.min()) if np.isfinite(losses).all() else None


def _arms_by_task(records: Sequence[Record]) -> list[list[Arm]]:
    kinds = dict.fromkeys(record.kind for record in records)
    return [arms_of([record for record in records if record.kind == kind]) for kind in kinds]


def _called(arms: Sequence[Arm], name: str) -> list[Arm]:
    wanted = name.strip().lower()
    exact = [arm for arm in arms if arm.name.lower() == wanted]
    return exact or [arm for arm in arms if wanted in (arm.placement, NAMES[arm.placement].lower())]


def _run(record: Record, facts: SettingFacts) -> Run:
    seeds = sorted((key, str(value)) for key, value in leaves(record.config).items() if facts.role(key) == "seed")
    losses = column(record.training, "loss")
    finite = losses[np.isfinite(losses)]
    return Run(
        record=record,
        seeds=repr(seeds),
        outcome=outcome(record),
        score=final(record, main_metric([record]).column),
        first_loss=float(finite[0]) if len(finite) else np.nan,
    )


def _cell(group: Group, rate: float, runs: Sequence[Run]) -> Cell:
    by_seeds = sorted(runs, key=lambda run: (run.seeds, str(run.record.folder)))
    records = tuple(run.record for run in by_seeds)
    return Cell(rate=rate, group=replace(group, records=records), runs=tuple(by_seeds))


def _rate(record: Record) -> float | None:
    rate = setting(record.config, RATE)
    return float(rate) if isinstance(rate, int | float) and not isinstance(rate, bool) else None


def _known(arm: Arm) -> str:
    return arm.name if arm.placement in ("unknown", "mixed") else f"{arm.placement} ({arm.name})"
