"""Contributions of layers against models that lack a layer, however the run computed them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.ranks import Ranks
from tests.tiny import tiny_file, tiny_run
from tests.train.tasks.test_task_contract import validations
from tests.train.test_resume import losses, rows, train
from train.config.facts.run_layout import is_finished, step_name
from train.config.load import load
from train.config.run import RunConfig
from train.config.tasks.language_model import LanguageModelConfig
from train.engine.eager import uncompiled
from train.evaluate.layers import layer_contributions, layer_faults, left_out
from train.evaluate.validation import first_of, validation_chunks
from train.export.model_folder import load_model
from train.ranks.distributed import World
from train.tasks.language_model import LanguageModel

ALONE = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"))
WINDOWS = 11  # no multiple of a micro-batch, nor of two ranks
LAYERS = 3
SHORT = ["steps=5"]
MEASURED = [
    "probes.layers_every=3",
    f"probes.layer_windows={WINDOWS}",
    f"task.model.num_hidden_layers={LAYERS}",
    "task.data.validation_windows=20",
]


def task_of(config: RunConfig) -> LanguageModel:
    assert isinstance(config.task, LanguageModelConfig)
    return LanguageModel(config.task, optim=config.optim, seed=config.seed)


def contributions(task: LanguageModel, model: Any, **arguments: Any) -> list[dict[str, Any]] | None:
    chunks = validation_chunks([WINDOWS], size=4, ranks=1)
    return layer_contributions(task, model, chunks, layers=task.layers(model), world=ALONE, **arguments)


# ------------------------------------------------------------------------------------------------------- the reference


@torch.no_grad()
def reference(task: LanguageModel, model: Any) -> list[dict[str, float]]:
    """The rows in fp64, from logits of models that lack a layer, and from arccos of the cosine."""
    model = copy.deepcopy(model).double().eval()
    windows = task.batch(np.arange(WINDOWS), split="validation", step=0)["tokens"]
    streams: list[np.ndarray] = []
    embedding = model.model.layers[0].register_forward_pre_hook(lambda _, args: streams.append(args[0].numpy()))
    outputs = [
        layer.register_forward_hook(lambda *called: streams.append(called[-1].numpy())) for layer in stack(model)
    ]
    loss = mean_loss(model, windows)
    for handle in (embedding, *outputs):
        handle.remove()
    assert len(streams) == LAYERS + 1
    return [
        {"loss": loss, "loss_without": mean_loss(without(model, index), windows), "angular_distance": turned}
        for index in range(LAYERS)
        for turned in [angle(streams[index], streams[index + 1])]
    ]


def stack(model: Any) -> nn.ModuleList:
    return model.model.layers


def without(model: Any, index: int) -> Any:
    shorter = copy.deepcopy(model)
    del shorter.model.layers[index]
    return shorter


def mean_loss(model: Any, windows: torch.Tensor) -> float:
    logits = model(input_ids=windows[:, :-1]).logits
    return float(F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


def angle(before: np.ndarray, after: np.ndarray) -> float:
    norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    return float(np.arccos(np.clip((before * after).sum(-1) / norms, -1, 1)).mean() / np.pi)


def worst_deviation(found: list[dict[str, Any]], expected: Sequence[Mapping[str, float]]) -> float:
    assert [row["layer"] for row in found] == list(range(LAYERS))
    pairs = zip(found, expected, strict=True)
    return max(abs(row[key] - value) / abs(value) for row, values in pairs for key, value in values.items())


PLACEMENTS = ("pre", "post", "peri", "output", "[peri,pre,post]")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_row_is_that_of_a_model_without_the_layer(tmp_path: Path, placement: str) -> None:
    # Worst case measured: 1.3e-7. The contributions themselves are 2e-3 to 4e-2 of the loss.
    wide = ["task.model.initializer_range=0.3", "task.model.z_loss_coefficient=0.1"]
    task = task_of(tiny_run(tmp_path, *MEASURED, *wide, f"task.model.norm_placement={placement}"))
    model = task.build_model().eval()
    found = contributions(task, model)
    assert found is not None
    expected = reference(task, model)
    assert worst_deviation(found, expected) < 1e-6
    assert all(abs(row["loss_without"] / row["loss"] - 1) > 1e-3 for row in expected)
    assert all(row["angular_distance"] > 0.1 for row in expected)


def test_a_layer_that_adds_nothing_contributes_nothing(tmp_path: Path) -> None:
    task = task_of(tiny_run(tmp_path, *MEASURED, "task.model.norm_placement=pre"))
    model = task.build_model().eval()
    for name in ("attention.branch.o_proj", "mlp.branch.down_proj"):
        nn.init.zeros_(stack(model)[1].get_submodule(name).weight)  # type: ignore[arg-type]
    found = contributions(task, model)
    assert found is not None
    assert found[1] == {"layer": 1, "loss": found[0]["loss"], "loss_without": found[0]["loss"], "angular_distance": 0.0}
    assert all(row["loss_without"] != row["loss"] and row["angular_distance"] > 0 for row in (found[0], found[2]))


def test_the_first_windows_are_those_of_the_first_sets() -> None:
    assert first_of([5, 3, 9], 16) == [5, 3, 8]
    assert first_of([5, 3, 9], 4) == [4, 0, 0]
    assert first_of([5, 3, 9], 99) == [5, 3, 9]


# ---------------------------------------------------------------------------------------------------------------- runs

CASES = [(0, 2, "false"), (3, 2, "true")]
SLOW = [(0, 1, "false"), (1, 2, "true"), (2, 2, "false")]


@pytest.mark.parametrize(
    ("stage", "size", "checkpointing"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_rows_do_not_depend_on_stage_or_ranks(
    ranks: Ranks, tmp_path: Path, stage: int, size: int, checkpointing: str
) -> None:
    # Worst case measured: 5.2e-8, against fp64 and the weights of the checkpoint.
    settings = [*MEASURED, *SHORT, f"engine.zero_stage={stage}", f"engine.activation_checkpointing={checkpointing}"]
    path = str(tiny_file(tmp_path))
    ranks(size, train, path, settings)
    config = load(path, settings)
    task, found = task_of(config), rows(tmp_path, file="layers.jsonl")
    assert [(row["step"], row["layer"]) for row in found] == [(s, i) for s in (3, 5) for i in range(LAYERS)]
    assert all(list(row) == ["step", "layer", "loss", "loss_without", "angular_distance"] for row in found)
    for step in (3, 5):
        model = load_model(task, config.folder / "checkpoints" / step_name(step))
        here = [row for row in found if row["step"] == step]
        assert worst_deviation(here, reference(task, model)) < 1e-6


@pytest.mark.slow
def test_rows_of_compiled_blocks_are_those_of_the_weights(ranks: Ranks, tmp_path: Path) -> None:
    settings = [*MEASURED, *SHORT, "engine.compile=true", "engine.deterministic=false"]
    path = str(tiny_file(tmp_path))
    ranks(1, train, path, settings)
    config = load(path, settings)
    model = load_model(task_of(config), config.folder / "checkpoints" / step_name(5))
    here = [row for row in rows(tmp_path, file="layers.jsonl") if row["step"] == 5]
    assert worst_deviation(here, reference(task_of(config), model)) < 1e-6


@pytest.mark.slow
def test_rows_in_bf16_are_near_those_of_the_weights(ranks: Ranks, tmp_path: Path) -> None:
    # Measured: 1.2e-3; bf16 has 8 bits.
    settings = [*MEASURED, *SHORT, "engine.precision=bf16", "engine.zero_stage=3"]
    path = str(tiny_file(tmp_path))
    ranks(2, train, path, settings)
    config = load(path, settings)
    model = load_model(task_of(config), config.folder / "checkpoints" / step_name(5))
    here = [row for row in rows(tmp_path, file="layers.jsonl") if row["step"] == 5]
    assert worst_deviation(here, reference(task_of(config), model)) < 2e-2


@pytest.mark.parametrize(("stage", "size"), [pytest.param(1, 1, marks=pytest.mark.slow), (3, 2)])
def test_measuring_layers_does_not_change_training(ranks: Ranks, tmp_path: Path, stage: int, size: int) -> None:
    path = str(tiny_file(tmp_path))
    settings = [*MEASURED, *SHORT, f"engine.zero_stage={stage}", "engine.activation_checkpointing=true"]
    ranks(size, train, path, [*settings, "name=measured", "probes.layers_every=1"])
    ranks(size, train, path, [*settings, "name=plain", "probes.layers_every=null", "probes.layer_windows=16"])
    for table in (losses, validations):
        assert table(tmp_path, "measured") == table(tmp_path, "plain")
    assert {row["step"] for row in rows(tmp_path, "measured", "layers.jsonl")} == {1, 2, 3, 4, 5}
    assert not (tmp_path / "runs/plain/layers.jsonl").exists()


def test_a_resumed_run_writes_the_same_rows(ranks: Ranks, tmp_path: Path) -> None:
    path = str(tiny_file(tmp_path))
    settings = [*MEASURED, "probes.layers_every=1"]
    ranks(2, train, path, [*settings, "name=unbroken"])
    ranks(2, train, path, settings, 5)
    assert max(row["step"] for row in rows(tmp_path, file="layers.jsonl")) == 4
    ranks(2, train, path, settings)
    assert rows(tmp_path, file="layers.jsonl") == rows(tmp_path, "unbroken", "layers.jsonl")


# ---------------------------------------------------------------------------------------------------- stops and errors


def stopped_at_the_last_layer(config_file: str, overrides: list[str]) -> int:
    """Train, with a signal that arrives in the first pass without the last layer; returns the exit code."""
    from train.evaluate import layers
    from train.rank import train_rank
    from train.ranks.stopping import StopSignal

    stop, original, calls = StopSignal(), layers.left_out, [0]

    def left_out(layer: nn.Module) -> Any:
        calls[0] += 1
        if calls[0] == LAYERS:
            stop.name = "SIGTERM"
        return original(layer)

    layers.left_out = left_out  # type: ignore[assignment]
    try:
        return train_rank(load(config_file, overrides), stop)
    finally:
        layers.left_out = original


def test_a_measurement_that_is_broken_off_is_made_up_for(ranks: Ranks, tmp_path: Path) -> None:
    """Together with the evaluation of the step: both are done, or neither."""
    path, run = str(tiny_file(tmp_path)), tmp_path / "runs/tiny"
    settings = [*MEASURED, "probes.layers_every=100", "evaluate_every=100", "checkpoint.every=100"]
    assert ranks(2, stopped_at_the_last_layer, path, settings) == [75, 75]
    assert sorted(losses(tmp_path)) == list(range(1, 9))
    assert validations(tmp_path) == []
    assert not (run / "layers.jsonl").exists()
    assert not is_finished(run, 8)
    ranks(2, train, path, settings)
    ranks(2, train, path, [*settings, "name=unbroken"])
    assert len(validations(tmp_path)) == 1
    assert rows(tmp_path, file="layers.jsonl") == rows(tmp_path, "unbroken", "layers.jsonl")
    assert is_finished(run, 8)


def test_a_stop_is_looked_for_before_every_pass(tmp_path: Path) -> None:
    task = task_of(tiny_run(tmp_path, *MEASURED))
    model, calls = task.build_model().eval(), [0]

    def is_stopped() -> bool:
        calls[0] += 1
        return calls[0] > allowed

    passes = (1 + LAYERS) * (2 + 3)  # two of four windows and three of one
    for allowed in (0, 7, passes - 1, passes):
        calls[0] = 0
        assert (contributions(task, model, is_stopped=is_stopped) is None) == (allowed < passes)
        assert hooks_of(model) == 0


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def failing_evaluation(config_file: str, overrides: list[str]) -> tuple[bool, int]:
    """Measure layers with a loss that fails; returns whether the model trains afterwards, and the hooks that stay."""
    from train import loop
    from train.rank import train_rank

    engines: list[Any] = []
    hooks: list[int] = []
    original, evaluate = loop.measure_layers, LanguageModel.evaluate

    def failing(self: LanguageModel, model: nn.Module, batch: Any) -> Any:
        model(input_ids=batch["tokens"])
        raise ZeroDivisionError

    def measure(run: Any, step: int) -> Any:
        engines.append(run.engine)
        hooks.append(hooks_of(run.engine.module))
        LanguageModel.evaluate = failing  # type: ignore[method-assign]
        return original(run, step)

    loop.measure_layers = measure
    try:
        train_rank(load(config_file, overrides))
    except ZeroDivisionError:
        module = engines[0].module
        trains = engines[0].model.training and all(part.training for part in module.modules())
        return trains, hooks_of(module) - hooks[0]
    finally:
        loop.measure_layers, LanguageModel.evaluate = original, evaluate  # type: ignore[method-assign]
    raise AssertionError("the loss did not fail")


def test_an_error_leaves_no_hook_and_a_model_that_trains(ranks: Ranks, tmp_path: Path) -> None:
    settings = [*MEASURED, "probes.layers_every=1", "engine.zero_stage=0"]
    assert ranks(1, failing_evaluation, str(tiny_file(tmp_path)), settings) == [(True, 0)]


def test_hooks_and_eager_passes_end_with_an_error() -> None:
    layer = nn.Linear(2, 2)
    layer._compiled_call_impl = compiled = lambda *given: given  # type: ignore[assignment]

    def fail() -> None:
        with uncompiled(nn.Sequential(layer)), left_out(layer):
            assert torch.equal(layer(torch.ones(1, 2)), torch.ones(1, 2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert layer._compiled_call_impl is compiled
    assert not layer._forward_hooks


def test_what_is_not_finite_is_null(ranks: Ranks, tmp_path: Path) -> None:
    ranks(2, train_with_a_broken_layer, str(tiny_file(tmp_path)), [*MEASURED, "steps=1", "checkpoint.every=1"])
    text = (tmp_path / "runs/tiny/layers.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    assert [row["loss"] for row in found] == [None] * LAYERS
    assert [row["loss_without"] is None for row in found] == [True, False, True]
    assert [row["angular_distance"] is None for row in found] == [False, True, True]


def train_with_a_broken_layer(config_file: str, overrides: list[str]) -> None:
    """Train, and measure with a second layer that returns infinities."""
    from train import loop

    original = loop.layer_contributions

    def broken(*arguments: Any, layers: Any, **named: Any) -> Any:
        handle = layers[1].register_forward_hook(lambda *called: called[-1] * math.inf)
        try:
            return original(*arguments, layers=layers, **named)
        finally:
            handle.remove()

    loop.layer_contributions = broken
    try:
        train(config_file, overrides)
    finally:
        loop.layer_contributions = original


def test_a_task_without_layers_is_refused(tmp_path: Path) -> None:
    from tests.train.tasks.test_task_defaults import Doubling

    task = Doubling()
    assert layer_faults(None, task, task.build_model()) == []
    (fault,) = layer_faults(3, task, task.build_model())
    assert fault.startswith("probes.layers_every: has no effect because")
    decoder = task_of(tiny_run(tmp_path))
    assert layer_faults(3, decoder, decoder.outline()) == []
