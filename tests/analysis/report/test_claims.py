"""Verdicts on the paper's claims, each on runs that decide it, contradict it, or leave it open."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from analysis.report.arms import arms_of
from analysis.report.claims import claims, trios
from analysis.runs import Record
from tests.analysis.report.swept import run
from tests.analysis.synthetic import activation_rows, gradient_rows

SEEDS = (0, 1, 2)


def verdicts(records: Iterable[Record]) -> dict[str, str]:
    (trio,) = trios(arms_of(list(records)))
    return {claim.text: claim.verdict for claim in claims(trio, "nats per token")}


def sentence(records: Iterable[Record], text: str) -> str:
    (trio,) = trios(arms_of(list(records)))
    return next(claim.sentence for claim in claims(trio, "nats per token") if claim.text.startswith(text))


def both(peri: dict, pre: dict, *, seeds: Iterable[int] = SEEDS) -> list[Record]:
    """Return runs of both placements; a list that holds no rows of a file has a value per seed."""

    def of_seed(value: Any, seed: int) -> Any:
        return value[seed] if isinstance(value, list) and not isinstance(value[0], dict) else value

    return [
        run(placement, seed=seed, **{key: of_seed(value, seed) for key, value in values.items()})
        for placement, values in (("peri", peri), ("pre", pre))
        for seed in seeds
    ]


def test_a_lower_loss_is_decided_by_pairs() -> None:
    text = "Peri-LN reaches a lower loss"
    far = [3.0, 4.0, 5.0]  # between seeds, the loss varies far more than between the arms
    lower = both({"loss": [2.9, 3.91, 4.89]}, {"loss": far})
    assert sentence(lower, text) == (
        "Peri-LN reaches a lower loss than Pre-LN (Table 1): holds here. Final validation loss, Peri-LN minus Pre-LN, "
        "each at its best learning rate: -0.100 nats per token (95 % interval -0.125 to -0.0752, 3 pairs)."
    )
    assert "does not hold here." in sentence(both({"loss": far}, {"loss": [2.9, 3.91, 4.89]}), text)
    assert "cannot be told." in sentence(both({"loss": [2.9, 4.1, 5.0]}, {"loss": far}), text)
    assert sentence(both({"loss": 2.9}, {"loss": 3.0}, seeds=[0]), text).endswith(
        "cannot be told. Final validation loss, Peri-LN minus Pre-LN, each at its best learning rate: -0.100 nats per "
        "token (1 pair, so no interval)."
    )


def test_sensitivity_takes_two_common_rates() -> None:
    text = "Peri-LN is less sensitive"
    one = both({}, {})
    assert sentence(one, text).endswith(
        "cannot be told. It takes two learning rates at which both have finished or diverged runs."
    )
    steep = both({"loss": [3.2, 3.3, 3.4], "lr": 1e-2}, {"loss": [4.0, 4.1, 4.3], "lr": 1e-2})
    assert ": holds here." in sentence([*one, *steep], text)


def test_few_divergences_decide_nothing_and_six_do() -> None:
    text = "Fewer Peri-LN runs diverge than Pre-LN runs"
    assert verdicts(both({}, {}))[text] == "cannot be told"
    three = both({"loss": 3.0}, {"loss": [None] * 3})
    assert sentence(three, text).endswith(
        "cannot be told. Peri-LN diverged in 0 and Pre-LN in 3 of 3 runs each (at the same learning rates and seeds; 3 "
        "of 3 pairs differ, sign test p = 0.25)."
    )
    six = [*three, *both({"loss": 3.0, "lr": 1e-2}, {"loss": [None] * 3, "lr": 1e-2})]
    assert verdicts(six)[text] == "holds here"


def test_equal_numbers_of_spikes_decide_nothing() -> None:
    text = "Peri-LN has fewer spikes of loss and gradient norm than Pre-LN"
    assert verdicts(both({"spikes": 2}, {"spikes": 2}))[text] == "cannot be told"
    many = [r for lr in (1e-3, 1e-2) for r in both({"spikes": 2, "lr": lr}, {"spikes": 1, "lr": lr})]
    assert verdicts(many)[text] == "does not hold here"


def test_growth_of_the_variance_is_judged_by_the_last_fits() -> None:
    def measured(placement: str) -> dict:
        return {"activations": activation_rows([1, 10], 12, placement)}

    records = [*both(measured("peri"), measured("pre")), *(run("post", seed=s, **measured("post")) for s in SEEDS)]
    found = verdicts(records)
    assert found["Pre-LN's variance grows exponentially over depth in training"] == "holds here"
    assert found["Peri-LN's variance stays linear or bounded over depth"] == "holds here"
    assert found["Post-LN's variance stays constant over depth"] == "holds here"
    swapped = verdicts(both(measured("pre"), measured("peri")))
    assert swapped["Pre-LN's variance grows exponentially over depth in training"] == "does not hold here"
    assert swapped["Peri-LN's variance stays linear or bounded over depth"] == "does not hold here"
    assert "Post-LN's variance stays constant over depth" not in swapped
    at_start = {"activations": activation_rows([1], 12, "pre")}
    untrained = sentence(both(measured("peri"), at_start), "Pre-LN's variance")
    assert untrained.endswith("cannot be told. The variance was not measured after training in a finished run.")


def test_two_layers_are_too_few_for_a_curve() -> None:
    peri, pre = ({"activations": activation_rows([1, 10], 2, placement)} for placement in ("peri", "pre"))
    text = sentence(both(peri, pre), "Pre-LN's variance")
    assert ": cannot be told. At the last measured step: exponential" in text
    assert text.endswith("; 4 depths are too few to tell curves apart.")


def test_gradients_are_judged_by_their_variation_over_layers() -> None:
    uneven = gradient_rows([1, 10], 4, "pre")
    text = "Peri-LN's gradients are more uniform over layers than Pre-LN's"
    scaled = [[{**r, "norm": r["norm"] * (1 + (0.01 + 0.001 * s) * r["layer"])} if r["layer"] else r for r in uneven]
              for s in SEEDS]  # fmt: skip
    assert verdicts(both({"gradients": scaled}, {"gradients": uneven}))[text] == "holds here"
    assert verdicts(both({"gradients": uneven}, {"gradients": scaled}))[text] == "does not hold here"
    assert verdicts(both({"gradients": uneven}, {"gradients": uneven}))[text] == "cannot be told"
    assert "It was not measured for both." in sentence(both({"gradients": uneven}, {}), text)


@pytest.mark.parametrize(
    ("peri", "pre", "verdict"),
    [(0.0, 1e-4, "holds here"), (1e-4, 0.0, "does not hold here"), (1e-4, 1e-3, "does not hold here"),
     (0.0, 0.0, "cannot be told")],
)  # fmt: skip
def test_fp16_is_judged_by_shares_beyond_it(peri: float, pre: float, verdict: str) -> None:
    def measured(placement: str, share: float) -> dict:
        return {"activations": [{**r, "fp16_overflow_share": share} for r in activation_rows([1, 10], 2, placement)]}

    text = "Peri-LN stays within the range of fp16 where Pre-LN leaves it"
    assert verdicts(both(measured("peri", peri), measured("pre", pre)))[text] == verdict


def test_layers_are_judged_by_angle_and_by_loss_without() -> None:
    def measured(angle: float, more: float) -> dict:
        rows = [[{"step": 10, "layer": layer, "loss": 3.0, "loss_without": 3.0 + more * (1 + 0.01 * s),
                  "angular_distance": angle * (1 + 0.01 * s)} for layer in range(3)] for s in SEEDS]  # fmt: skip
        return {"layers": rows}

    found = verdicts(both(measured(0.3, 0.1), measured(0.2, 0.2)))
    assert found["Peri-LN's layers turn the stream further than Pre-LN's"] == "holds here"
    assert found["Leaving out a layer costs Peri-LN more loss than Pre-LN"] == "does not hold here"
    assert verdicts(both({}, {}))["Leaving out a layer costs Peri-LN more loss than Pre-LN"] == "cannot be told"


def test_spread_over_seeds_takes_three_pairs() -> None:
    text = "Peri-LN's loss varies less between seeds than Pre-LN's"
    tight, wide = [3.0, 3.0005, 3.001], [3.0, 3.4, 3.8]
    assert verdicts(both({"loss": tight}, {"loss": wide}))[text] == "holds here"
    assert verdicts(both({"loss": wide}, {"loss": tight}))[text] == "does not hold here"
    two = both({"loss": tight}, {"loss": wide}, seeds=[0, 1])
    assert sentence(two, text).endswith("cannot be told. It takes three pairs of finished runs; there are 2.")


def test_the_claims_compare_arms_that_differ_in_placement_alone() -> None:
    records = [run("pre"), run("peri"), run("pre", optim__warmup=0.1), run("peri", optim__warmup=0.1)]
    found = trios(arms_of(records))
    assert [(trio.pre.name, trio.peri.name) for trio in found] == [
        ("Pre-LN, warmup None", "Peri-LN, warmup None"), ("Pre-LN, warmup 0.1", "Peri-LN, warmup 0.1"),
    ]  # fmt: skip
    assert not trios(arms_of([run("pre"), run("post")]))


def test_no_sentence_is_missing_a_value() -> None:
    (trio,) = trios(arms_of(both({"loss": None}, {"loss": None})))
    for claim in claims(trio, ""):
        assert claim.verdict == "cannot be told"
        assert "nan" not in claim.sentence
        assert "None" not in claim.sentence
