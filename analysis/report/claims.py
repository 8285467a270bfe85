"""Claims of the Peri-LN paper (arXiv 2502.02732), each judged by the runs of a report.

A verdict needs evidence that could have spoken against it: a 95 % interval over paired runs, an exact sign test, or a
test of two paired variances. Without, or where the data do not decide, the verdict is "cannot be told".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from analysis.figures.layers import last_mean
from analysis.figures.training import spikes
from analysis.fits import Growth
from analysis.groups import leaves
from analysis.page.contents import number_text
from analysis.report.arms import RATE, Arm, Run, common_rates, sensitivity
from analysis.report.details import gradient_variation, growth_text, growths, largest_variance, overflow_share
from analysis.report.paired import (
    CONFIDENCE,
    Difference,
    at_best,
    difference,
    pairs,
    sensitivity_difference,
    sign_test,
    spread_sign,
)
from analysis.setting_facts import merged

Verdict = Literal["holds here", "does not hold here", "cannot be told"]
HOLDS, FAILS, UNDECIDED = "holds here", "does not hold here", "cannot be told"
_PLACEMENT = "task.model.norm_placement"
_SIGNIFICANT = 0.05
_FEWEST_POINTS = 8  # of a fit with two parameters: four blocks


class Trio(NamedTuple):
    """The arms that the paper compares, alike in all settings but the placement where possible."""

    pre: Arm
    peri: Arm
    post: Arm | None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper, its table, figure or subject there, and what the runs say."""

    text: str
    source: str
    verdict: Verdict
    evidence: str

    @property
    def sentence(self) -> str:
        """The claim with its verdict and the numbers that decide it."""
        return f"{self.text} ({self.source}): {self.verdict}. {self.evidence}"


def trios(arms: Sequence[Arm]) -> list[Trio]:
    """Return the Pre- and Peri-LN arms to compare: those alike in all else, or else the first of each."""
    by_placement = {name: [arm for arm in arms if arm.placement == name] for name in ("pre", "peri", "post")}
    if not by_placement["pre"] or not by_placement["peri"]:
        return []

    def alike(arm: Arm, name: str) -> Arm | None:
        return next((other for other in by_placement[name] if _other_settings(arm) == _other_settings(other)), None)

    found = [Trio(pre, peri, alike(pre, "post")) for pre in by_placement["pre"] if (peri := alike(pre, "peri"))]
    first = Trio(by_placement["pre"][0], by_placement["peri"][0], next(iter(by_placement["post"]), None))
    return found or [first]


def claims(trio: Trio, unit: str) -> list[Claim]:
    """Return the judged claims; `unit` is that of the loss, such as "nats per token", or empty."""
    return [
        _lower_loss(trio, unit),
        _less_sensitive(trio, unit),
        _fewer_divergences(trio),
        _fewer_spikes(trio),
        *_variance(trio),
        _more_uniform(trio),
        _within_fp16(trio),
        _larger_angles(trio),
        _layers_matter(trio, unit),
        _less_spread(trio, unit),
    ]


def difference_text(found: Difference, unit: str) -> str:
    """Return a paired difference in words: "-0.0152 nats per token (95 % interval -0.0214 to -0.00896, 3 pairs)"."""
    if not found.count:
        return f"unknown, as there are no pairs of runs{_other_data(found)}"
    amount = " ".join(filter(None, (_three_digits(found.mean), unit)))
    if found.interval is None:
        return f"{amount} (1 pair, so no interval{_other_data(found)})"
    return f"{amount} ({CONFIDENCE} interval {interval_text(found)}, {found.count} pairs{_other_data(found)})"


def interval_text(found: Difference) -> str:
    """Return an interval in words: "-0.0214 to -0.00896", or "cannot be told" for fewer than two pairs."""
    if found.interval is None:
        return UNDECIDED
    return " to ".join(map(_three_digits, found.interval))


def _three_digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")  # with its last zeros: -0.100 beside -0.0752


def _other_data(found: Difference) -> str:
    if not found.other_data:
        return ""
    what = "1 run is" if found.other_data == 1 else f"{found.other_data} runs are"
    return f"; {what} not paired, as the samples differ"


def _by_sign(sign: int, *, wanted: int) -> Verdict:
    return UNDECIDED if sign == 0 else HOLDS if sign == wanted else FAILS


def _lower_loss(trio: Trio, unit: str) -> Claim:
    found = at_best(trio.peri, trio.pre)
    return Claim(
        text="Peri-LN reaches a lower loss than Pre-LN",
        source="Table 1",
        verdict=_by_sign(found.sign, wanted=-1),
        evidence=f"Final validation loss, Peri-LN minus Pre-LN, each at its best learning rate: "
        f"{difference_text(found, unit)}.",
    )


def _less_sensitive(trio: Trio, unit: str) -> Claim:
    rates = common_rates([trio.peri, trio.pre])
    found = sensitivity_difference(trio.peri, trio.pre, rates)
    peri, pre = sensitivity(trio.peri, rates), sensitivity(trio.pre, rates)
    evidence = "It takes two learning rates at which both have finished or diverged runs."
    if peri is not None and pre is not None:
        evidence = (
            f"Sensitivity over {len(rates)} learning rates: Peri-LN {number_text(peri)}, Pre-LN {number_text(pre)}; "
            f"difference {difference_text(found, unit)}."
        )
    return Claim(
        text="Peri-LN is less sensitive to the learning rate",
        source="learning rates",
        verdict=_by_sign(found.sign, wanted=-1),
        evidence=evidence,
    )


def _fewer_divergences(trio: Trio) -> Claim:
    matched = [pair for pair in _matched(trio) if all(run.outcome != "unfinished" for run in pair)]
    counts = [(float(a.outcome == "diverged"), float(b.outcome == "diverged")) for a, b in matched]
    verdict, evidence = _counts(counts, ("diverged in", "runs"), "at the same learning rates and seeds")
    text = "Fewer Peri-LN runs diverge than Pre-LN runs"
    return Claim(text=text, source="stability", verdict=verdict, evidence=evidence)


def _fewer_spikes(trio: Trio) -> Claim:
    matched = [pair for pair in _matched(trio) if all(run.outcome == "finished" for run in pair)]
    counts = [(float(len(spikes(a.record))), float(len(spikes(b.record)))) for a, b in matched]
    where = "loss and gradient norm, finished runs at the same learning rates and seeds"
    verdict, evidence = _counts(counts, ("has", "spikes in"), where)
    text = "Peri-LN has fewer spikes of loss and gradient norm than Pre-LN"
    return Claim(text=text, source="stability", verdict=verdict, evidence=evidence)


def _matched(trio: Trio) -> Iterator[tuple[Run, Run]]:
    """Yield pairs of Peri- and Pre-LN runs at all learning rates that both have."""
    for cell in trio.peri.cells:
        other = trio.pre.at(cell.rate)
        if other is not None:
            yield from pairs(cell, other)[0]


def _counts(counts: Sequence[tuple[float, float]], words: tuple[str, str], where: str) -> tuple[Verdict, str]:
    """Judge counts of pairs (Peri, Pre) by the sign test; return the verdict and the numbers in words."""
    if not counts:
        return UNDECIDED, "No pairs of runs at the same learning rate and seeds."
    peri, pre = (int(sum(values)) for values in zip(*counts, strict=True))
    differences = [one - other for one, other in counts]
    p = sign_test(differences)
    verb, noun = words
    if noun == "runs":
        numbers = f"Peri-LN {verb} {peri} and Pre-LN in {pre} of {len(counts)} runs each"
    else:
        numbers = f"Peri-LN {verb} {peri} and Pre-LN {pre} {noun} {len(counts)} runs each"
    uneven = sum(value != 0 for value in differences)
    test = f"{uneven} of {len(counts)} pairs differ, sign test p = {p:.2g}" if uneven else "no pair differs"
    decided = p < _SIGNIFICANT and peri != pre
    verdict: Verdict = (HOLDS if peri < pre else FAILS) if decided else UNDECIDED
    return verdict, f"{numbers} ({where}; {test})."


def _variance(trio: Trio) -> list[Claim]:
    judged = [
        _growth_claim(
            trio.pre,
            "Pre-LN's variance grows exponentially over depth in training",
            holds={"exponential"},
            fails={"linear", "constant"},
        ),
        _growth_claim(
            trio.peri,
            "Peri-LN's variance stays linear or bounded over depth",
            holds={"linear", "constant"},
            fails={"exponential"},
        ),
    ]
    if trio.post is not None:
        text = "Post-LN's variance stays constant over depth"
        judged.append(_growth_claim(trio.post, text, holds={"constant"}, fails={"linear", "exponential", "either"}))
    return judged


def _growth_claim(arm: Arm, text: str, *, holds: set[str], fails: set[str]) -> Claim:
    verdict: Verdict = UNDECIDED
    evidence = "The variance was not measured after training in a finished run."
    growth = _last_growth(arm)
    if growth is not None and arm.best is not None:
        # A falling exponential is no growth, whatever fits it.
        kind = "linear" if growth.verdict == "exponential" and growth.exponential.rate < 0 else growth.verdict
        verdict = HOLDS if kind in holds else FAILS if kind in fails else UNDECIDED
        are_few = growth.points < _FEWEST_POINTS and kind != "constant"
        verdict = UNDECIDED if are_few else verdict
        evidence = f"At the last measured step: {growth_text(growth)}"
        if largest := largest_variance(arm.best):
            first, last = map(number_text, largest)
            evidence += f"; the largest variance over depth went from {first} to {last}"
        evidence += f"; {growth.points} depths are too few to tell curves apart." if are_few else "."
    return Claim(text=text, source="Figures 1 and 6", verdict=verdict, evidence=evidence)


def _last_growth(arm: Arm) -> Growth | None:
    """Return the fits at the last of at least two measured steps: the claims are about training."""
    fits = growths(arm.best) if arm.best else []
    return fits[-1].growth if len(fits) > 1 else None


def _more_uniform(trio: Trio) -> Claim:
    return _compared(
        trio,
        text="Peri-LN's gradients are more uniform over layers than Pre-LN's",
        source="Figure 7",
        value=gradient_variation,
        wanted=-1,
        words="Standard deviation over mean of the layers' gradient norms at the last measured step",
    )


def _within_fp16(trio: Trio) -> Claim:
    text = "Peri-LN stays within the range of fp16 where Pre-LN leaves it"
    peri, pre = (overflow_share(arm.best.runs) if arm.best else None for arm in (trio.peri, trio.pre))
    if peri is None or pre is None:
        return Claim(text=text, source="Figure 11", verdict=UNDECIDED, evidence="It was not measured for both.")
    verdict: Verdict = FAILS if peri > 0 else HOLDS if pre > 0 else UNDECIDED
    anywhere = [number_text(overflow_share(arm.runs)) for arm in (trio.peri, trio.pre)]
    evidence = (
        f"Largest share of a site's elements beyond fp16 at the best learning rate: Peri-LN {number_text(peri)}, "
        f"Pre-LN {number_text(pre)}; at any learning rate: {anywhere[0]} and {anywhere[1]}."
    )
    return Claim(text=text, source="Figure 11", verdict=verdict, evidence=evidence)


def _larger_angles(trio: Trio) -> Claim:
    return _compared(
        trio,
        text="Peri-LN's layers turn the stream further than Pre-LN's",
        source="redundancy of layers",
        value=lambda run: last_mean(run.record, "angle"),
        wanted=1,
        words="Angular distance between a layer's input and output, mean over layers, in units of pi",
    )


def _layers_matter(trio: Trio, unit: str) -> Claim:
    return _compared(
        trio,
        text="Leaving out a layer costs Peri-LN more loss than Pre-LN",
        source="redundancy of layers",
        value=lambda run: last_mean(run.record, "loss"),
        wanted=1,
        words="Increase of the validation loss without a layer, mean over layers",
        unit=unit,
    )


def _compared(
    trio: Trio,
    *,
    text: str,
    source: str,
    value: Callable[[Run], float | None],
    wanted: int,
    words: str,
    unit: str = "",
) -> Claim:
    """Judge a quantity of the runs at the best learning rates by its paired differences."""
    if trio.peri.best is None or trio.pre.best is None:
        return Claim(text=text, source=source, verdict=UNDECIDED, evidence="An arm has no finished run.")
    means = []
    for arm in (trio.peri.best, trio.pre.best):
        known = [found for run in arm.runs if (found := value(run)) is not None]
        means.append(float(np.mean(known)) if known else None)
    if None in means:
        return Claim(text=text, source=source, verdict=UNDECIDED, evidence="It was not measured for both.")
    found = difference(trio.peri.best, trio.pre.best, value)
    peri, pre = map(number_text, means)
    evidence = f"{words}: Peri-LN {peri}, Pre-LN {pre}; difference {difference_text(found, unit)}."
    return Claim(text=text, source=source, verdict=_by_sign(found.sign, wanted=wanted), evidence=evidence)


def _less_spread(trio: Trio, unit: str) -> Claim:
    text = "Peri-LN's loss varies less between seeds than Pre-LN's"
    matched = pairs(trio.peri.best, trio.pre.best)[0] if trio.peri.best and trio.pre.best else []
    losses = [(a.score, b.score) for a, b in matched if a.has_final_score and b.has_final_score]
    if len(losses) < 3:
        number = "is 1" if len(losses) == 1 else f"are {len(losses)}"
        evidence = f"It takes three pairs of finished runs; there {number}."
        return Claim(text=text, source="Table 1", verdict=UNDECIDED, evidence=evidence)
    peri, pre = (np.array(values) for values in zip(*losses, strict=True))
    sign = spread_sign(peri, pre)
    deviations = [number_text(float(np.std(values, ddof=1))) for values in (peri, pre)]
    evidence = (
        f"Standard deviation of the final validation loss at the best learning rate: Peri-LN {deviations[0]}, Pre-LN "
        f"{deviations[1]}{' ' + unit if unit else ''} ({len(losses)} pairs; Pitman-Morgan test of equal variances "
        f"at {CONFIDENCE})."
    )
    return Claim(text=text, source="Table 1", verdict=_by_sign(sign, wanted=-1), evidence=evidence)


def _other_settings(arm: Arm) -> str:
    """Return the settings that distinguish an arm, without its placement."""
    record = arm.runs[0].record
    facts = merged(run.record.setting_facts for run in arm.runs)
    return repr(
        sorted(
            (key, str(value))
            for key, value in leaves(record.config).items()
            if value is not None
            and facts.role(key) == "distinguishes"
            and key not in (RATE, _PLACEMENT)
            and not key.startswith(f"{_PLACEMENT}.")
        )
    )
