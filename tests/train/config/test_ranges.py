"""Every number of a configuration has two limits, and whatever is written beyond them is one message."""

from __future__ import annotations

import faulthandler
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import torch

from modeling.decoder.attention_periln import RotaryEmbedding
from modeling.decoder.facts_rope_periln import ROPE_KEYS, ROPE_RANGES
from tests.modeling.decoder.tiny_decoder import tiny_config
from tests.tiny import tiny_file
from tests.tiny_filter import tiny_filter_file
from tests.tiny_task import tiny_task_file
from train.config.errors import ConfigError
from train.config.load import load
from train.config.run import LARGEST_SEED, LONGEST, SMALLEST_NORMAL, RunConfig
from train.config.setting import Entry, entries, is_union
from train.config.tasks.kinds import TaskConfig

OTHERS = (0, -1, 10**30, 1e-50, math.nan, math.inf)


def kinds(entry: Entry) -> set[Any]:
    """Return the types of a setting's values, or of the entries of its list."""
    members = get_args(entry.type) if is_union(entry.type) else (entry.type,)
    return {each for kind in members for each in (get_args(kind) if get_origin(kind) is tuple else (kind,))}


NUMBERS = {
    f"{entry.owner.__name__}.{entry.field.name}": entry
    for entry in reversed(list(entries(RunConfig)))  # of those that several paths share, the first stays
    if not entry.is_section and kinds(entry) & {int, float}
}


@pytest.mark.parametrize("entry", NUMBERS.values(), ids=NUMBERS)
def test_every_number_has_two_limits(entry: Entry) -> None:
    low, high = limits(entry)
    assert -3.5e38 < low < high < 3.5e38 or high == LARGEST_SEED
    assert all(bound in entry.setting.range_text for bound in (" to ", "from ")) or "above" in entry.setting.range_text


def limits(entry: Entry) -> tuple[float, float]:
    setting = entry.setting
    low = setting.above if setting.at_least is None else setting.at_least
    high = setting.below if setting.at_most is None else setting.at_most
    assert low is not None
    assert high is not None
    return low, high


def numbers_around(entry: Entry) -> Iterator[float]:
    """Yield both limits, their neighbors on both sides, and numbers that break other programs."""
    for limit in limits(entry):
        yield from (limit, limit - 1, limit + 1)
    yield from OTHERS


def written(number: float) -> str:
    return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(str(number), str(number))


def kind_of(entry: Entry) -> str:
    """Return the first task that has a setting."""
    for task in get_args(TaskConfig):
        if any(each.owner is entry.owner for each in entries(task, "task.")):
            return task.kind
    assert not entry.path.startswith("task."), entry.owner
    return "language_model"


@pytest.mark.parametrize("entry", NUMBERS.values(), ids=NUMBERS)
def test_no_number_ends_in_a_traceback(entry: Entry, tmp_path: Path) -> None:
    path = tiny_task_file(tmp_path, kind_of(entry))
    low, high = limits(entry)
    for number in numbers_around(entry):
        faults = faults_of(path, entry, number)
        if not low <= number <= high:  # nan too
            assert any(fault.startswith(entry.path) for fault in faults), (number, faults)


def faults_of(path: Path, entry: Entry, number: float) -> list[str]:
    value = f"[{written(number)}, {written(number)}]" if get_origin(list_type(entry)) is tuple else written(number)
    try:
        load(path, [f"{entry.path}={value}"])
    except ConfigError as error:
        return error.faults
    return []


def list_type(entry: Entry) -> Any:
    members = get_args(entry.type) if is_union(entry.type) else (entry.type,)
    return next((kind for kind in members if get_origin(kind) is tuple), None)


@pytest.mark.parametrize(
    ("overrides", "fragment"),
    [
        (["optim.eps=1e-50"], "optim.eps: 1e-50 is too small; write a number from 1.2e-38 to 1"),
        (["task.model.norm_eps=1e-40"], "task.model.norm_eps: 1e-40 is too small"),
        (["seed=18446744073709551615"], "seed: 18446744073709551615 is too large; write a number from 0 to"),
        (["seed=1e30"], "9_223_372_036_854_775_807"),
        (["watchdog.save=1e15"], "watchdog.save: 1000000000000000.0 is too large"),
        (["checkpoint.stop_deadline=1e15"], "checkpoint.stop_deadline"),
        (["probes.spike_window=1e30"], "probes.spike_window"),
        (["task.model.num_attention_heads=99999999999999999999999"], "write a number from 1 to 100_000"),
        (["steps=1e9", "global_batch_size=1e7", "task.data.sequence_length=32768"], "more than 64 bits can count"),
        (
            ["task.model.hidden_size=1e6", "task.model.intermediate_size=1e7", "task.model.num_hidden_layers=1e4"],
            "task.model: 3.3e+17 parameters are more than any machine trains (1e+15)",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_numbers_that_used_to_fail_in_the_run_are_refused(tmp_path: Path, overrides: list[str], fragment: str) -> None:
    positions = ["task.model.max_position_embeddings=1e5"]
    with pytest.raises(ConfigError) as error:
        load(tiny_file(tmp_path), [*positions, *overrides])
    assert fragment in str(error.value), str(error.value)
    assert len(error.value.faults) == 1


def test_the_limits_are_those_of_torch_and_the_clock() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(LARGEST_SEED + 1 + 10**6)  # of the rank with that number
    assert LONGEST < threading.TIMEOUT_MAX
    faulthandler.dump_traceback_later(LONGEST + 60)
    faulthandler.cancel_dump_traceback_later()
    assert torch.tensor(SMALLEST_NORMAL) >= torch.finfo(torch.float32).tiny
    assert math.isfinite(torch.tensor(smallest_norm_eps()) ** -1.5), "the gradient of a norm of zeros"


def smallest_norm_eps() -> float:
    return limits(NUMBERS["DecoderConfig.norm_eps"])[0]


def test_units_that_make_every_error_zero_are_refused(tmp_path: Path) -> None:
    for units in ("0", "-1", "1e-50"):
        with pytest.raises(ConfigError, match=r"task.data.validation_sources.0.units_per_value: .* is too small"):
            load(tiny_filter_file(tmp_path), [f"task.data.validation_sources.0.units_per_value={units}"])


# --------------------------------------------------------------------------------------------------------------- RoPE

ROPE: dict[str, tuple[str, str]] = {
    "theta 1": ("{rope_type: yarn, factor: 2, rope_theta: 1}", "rope_theta: 1 is not a number from 1.001"),
    "theta .inf": ("{rope_theta: .inf}", "rope_theta: inf is not a number"),
    "theta .nan": ("{rope_theta: .nan}", "rope_theta: nan is not a number"),
    "theta 0": ("{rope_theta: 0}", "rope_theta: 0 is not"),
    "theta text": ("{rope_theta: '1e4'}", "rope_theta: '1e4' is not a number"),
    "theta null": ("{rope_theta: null}", "rope_theta: None is not a number"),
    "factor .inf": ("{rope_type: linear, factor: .inf}", "factor: inf is not a number"),
    "factor 0": ("{rope_type: dynamic, factor: 0}", "factor: 0 is not"),
    "factor below 1": ("{rope_type: linear, factor: 0.5}", "factor: 0.5 is not a number from 1 to"),
    "factor true": ("{rope_type: linear, factor: true}", "factor: True is not"),
    "factor list": ("{rope_type: linear, factor: [2]}", "factor: [2] is not"),
    "truncate": ("{rope_type: yarn, factor: 2, truncate: maybe}", "truncate: 'maybe' is not a truth value"),
    "betas": ("{rope_type: yarn, factor: 2, beta_fast: 1, beta_slow: 4}", "beta_fast: 1 is not above beta_slow (4)"),
    "beta": ("{rope_type: yarn, factor: 2, beta_slow: 40}", "beta_fast: 32 is not above beta_slow (40)"),
    "attention": ("{rope_type: yarn, factor: 2, attention_factor: -1}", "attention_factor: -1 is not"),
    "mscale": ("{rope_type: yarn, factor: 2, mscale: 1}", "mscale: has no effect without mscale_all_dim"),
    "original": (
        "{rope_type: yarn, factor: 2, original_max_position_embeddings: 64}",
        "original_max_position_embeddings: 64 exceeds max_position_embeddings (32)",
    ),
    "fraction": (
        "{rope_type: yarn, factor: 2, original_max_position_embeddings: 8.5}",
        "original_max_position_embeddings: 8.5 is not a whole number",
    ),
    "llama3": (
        "{rope_type: llama3, factor: 2, low_freq_factor: 4, high_freq_factor: 1}",
        "high_freq_factor: 1 is not above low_freq_factor (4)",
    ),
    "missing": ("{rope_type: llama3, factor: 2, low_freq_factor: 4}", "high_freq_factor: rope_type 'llama3' needs it"),
    "unknown": (
        "{rope_type: yarn, factor: 2, beta_fats: 4}",
        "beta_fats: rope_type 'yarn' does not read it; did you mean rope_parameters.beta_fast?",
    ),
    "longrope": ("{rope_type: longrope}", "rope_type: 'longrope' is none of default, linear"),
}


@pytest.mark.parametrize("case", ROPE)
def test_rotary_positions_that_cannot_work_name_their_key(case: str, tmp_path: Path) -> None:
    path, (value, fragment) = tiny_file(tmp_path), ROPE[case]
    path.write_text(
        path.read_text().replace("    num_hidden_layers", f"    rope_parameters: {value}\n    num_hidden_layers")
    )
    with pytest.raises(ConfigError) as error:
        load(path)
    assert f"task.model.rope_parameters.{fragment}" in str(error.value)
    assert len(error.value.faults) == 1, error.value.faults


def test_a_head_of_two_is_too_narrow_for_dynamic_positions(tmp_path: Path) -> None:
    overrides = ["task.model.rope_parameters={rope_type: dynamic, factor: 2}", "task.model.head_dim=2"]
    with pytest.raises(ConfigError, match=r"task.model.rope_parameters.rope_type: 'dynamic' divides by"):
        load(tiny_file(tmp_path), overrides)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("kind", ROPE_KEYS)
def test_rotary_positions_at_their_limits_are_finite(kind: str, side: int) -> None:
    """Each number at its smallest or largest value, the others as usual: the frequencies are finite."""
    usual = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    lowest, highest = ("low_freq_factor", "beta_slow"), ("high_freq_factor", "beta_fast")
    keys = ("rope_theta", *ROPE_KEYS[kind][0], *ROPE_KEYS[kind][1])
    needed = {key: usual[key] for key in ROPE_KEYS[kind][0]}
    for key in keys:
        extreme = ROPE_RANGES.get(key, (True, True))[side]
        extreme = min(int(extreme), 64) if key == "original_max_position_embeddings" else extreme
        rope = {"rope_type": kind, "rope_theta": 1e4} | needed | {key: extreme}
        rope |= {"mscale": extreme, "mscale_all_dim": extreme} if key.startswith("mscale") else {}
        if key in (highest, lowest)[side]:  # the other side of the same number conflicts with its partner
            continue
        config = tiny_config(rope_parameters=rope, max_position_embeddings=64)
        assert RotaryEmbedding(config).inv_freq.isfinite().all(), key
