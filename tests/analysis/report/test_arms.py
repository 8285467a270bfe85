"""Arms and their best learning rates."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.report.arms import arms_of, baseline_of, check_baseline, chosen_records, common_rates, ranked, sensitivity
from analysis.runs import InputError
from tests.analysis.report.swept import FIRST_LOSS, run


def test_an_arm_is_all_rates_and_seeds_of_a_placement() -> None:
    records = [run(p, 3.0, lr=lr, seed=s) for p in ("pre", "peri") for lr in (1e-3, 3e-3) for s in (0, 1)]
    arms = arms_of(records)
    assert [arm.name for arm in arms] == ["Pre-LN", "Peri-LN"]
    assert [len(arm.runs) for arm in arms] == [4, 4]
    assert arms[0].rates == [1e-3, 3e-3]


def test_runs_that_differ_in_another_setting_are_two_arms() -> None:
    arms = arms_of([run(lr=1e-3), run(lr=3e-3), run(lr=1e-3, optim__warmup=0.1)])
    assert [arm.name for arm in arms] == ["Peri-LN, warmup None", "Peri-LN, warmup 0.1"]


def test_a_rate_at_which_a_run_diverged_or_is_unfinished_is_not_the_best() -> None:
    (arm,) = arms_of([
        run(loss=3.0, lr=1e-3), run(loss=3.1, lr=1e-3, seed=1),
        run(loss=2.0, lr=3e-3), run(loss=None, lr=3e-3, seed=1),
        run(loss=1.0, lr=1e-2, steps_done=5), run(loss=2.0, lr=1e-2, seed=1),
    ])  # fmt: skip
    assert arm.best is not None
    assert arm.best.rate == 1e-3
    assert arm.best.mean == pytest.approx(3.05)
    assert [cell.remark for cell in arm.cells] == ["", "1 of 2 diverged", "1 of 2 unfinished"]


def test_without_a_complete_rate_the_finished_runs_count() -> None:
    (arm,) = arms_of([run(loss=3.0, lr=lr, seed=0) for lr in (1e-3, 1e-2)] + [
        run(loss=None, lr=lr, seed=1) for lr in (1e-3, 1e-2)
    ])  # fmt: skip
    assert arm.best is not None
    assert arm.best.remark == "1 of 2 diverged"
    (arm,) = arms_of([run(loss=None), run(loss=3.0, steps_done=5, seed=1)])
    assert arm.best is None


def test_a_run_that_ends_above_its_first_loss_diverged() -> None:
    (arm,) = arms_of([run(loss=FIRST_LOSS + 1)])
    assert arm.best is None
    assert arm.cells[0].remark == "diverged"


def test_sensitivity_is_the_mean_above_the_best() -> None:
    """Losses 3.0, 3.6 and 7 (diverged, so the first): mean 4.5333, less 3."""
    arms = arms_of([run("pre", 3.0, lr=1e-3), run("pre", 3.6, lr=3e-3), run("pre", None, lr=1e-2),
                    run("peri", 3.0, lr=1e-3), run("peri", 3.1, lr=3e-3), run("peri", 3.2, lr=1e-2),
                    run("peri", 9.0, lr=1.0)])  # fmt: skip
    rates = common_rates(arms)
    assert rates == [1e-3, 3e-3, 1e-2]
    assert sensitivity(arms[0], rates) == pytest.approx((3.0 + 3.6 + FIRST_LOSS) / 3 - 3.0)
    assert sensitivity(arms[1], rates) == pytest.approx(0.1)
    assert sensitivity(arms[1], rates[:1]) is None
    assert sensitivity(arms[0], [1e-3, 1.0]) is None


def test_a_rate_with_an_unfinished_run_is_not_common() -> None:
    arms = arms_of(
        [run("pre", 3.0, lr=lr) for lr in (1e-3, 3e-3)] + [run("peri", 3.0), run("peri", lr=3e-3, steps_done=4)]
    )
    assert common_rates(arms) == [1e-3]


def test_arms_are_chosen_by_placement_title_or_name() -> None:
    records = [run("pre"), run("peri"), run("post"), run("peri", optim__warmup=0.1)]
    chosen = [record.placement for record in chosen_records(records, ["pre,PERI-LN"])]
    assert chosen == ["pre", "peri", "peri"]
    assert chosen_records(records, ["Peri-LN, warmup 0.1", "post"]) == records[2:]
    with pytest.raises(InputError, match=r"--arms per: no arm has this name; there are: pre \(Pre-LN, warmup None\)"):
        chosen_records(records, ["pre,per"])


def test_the_baseline_is_pre_ln_unless_named() -> None:
    records = [run("peri"), run("pre"), run("post"), run("post", optim__warmup=0.1)]
    arms = arms_of(records)
    assert baseline_of(arms).placement == "pre"
    assert baseline_of(arms, "peri").placement == "peri"
    assert baseline_of([arm for arm in arms if arm.placement == "post"]).placement == "post"
    with pytest.raises(InputError, match="--baseline mine: no arm has this name"):
        check_baseline(records, "mine")
    with pytest.raises(InputError, match="fits 2 arms; give one of their names: Post-LN, warmup None; Post-LN, warmup"):
        check_baseline(records, "post")
    check_baseline(records, None)


def test_arms_without_a_loss_are_ranked_last() -> None:
    arms = arms_of([run("pre", None), run("peri", 3.0), run("post", 2.0)])
    assert [arm.placement for arm in ranked(arms)] == ["post", "peri", "pre"]
    assert np.isnan(arms[0].cells[0].mean)
