"""Probe values against full tensors in fp64, however the step was computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.ranks import Ranks
from tests.tiny import tiny_file
from train.checkpoint.checkpoint import CheckpointReader
from train.config.facts.run_layout import step_name
from train.config.load import load
from train.config.run import RunConfig
from train.config.tasks.kinds import LARGEST_LR_FACTORS
from train.config.tasks.language_model import LanguageModelConfig
from train.data.order import SampleOrder
from train.engine.schedule import learning_rate
from train.rank import train_rank
from train.tasks.language_model import LanguageModel
from train.tasks.task import ParameterGroup

PROBES = ["probes.activations_every=1", "probes.gradients_every=1"]
SHORT = ["steps=3", "checkpoint.every=1", "evaluate_every=3"]


def train(config_file: str, overrides: list[str]) -> None:
    assert train_rank(load(config_file, overrides)) == 0


def rows(folder: Path, name: str, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs" / name / f"{file}.jsonl").read_text().splitlines()]


class Reference:
    """A step of a run, repeated in fp64 on the whole global batch with the weights of the checkpoint before it."""

    def __init__(self, config: RunConfig, step: int) -> None:
        assert isinstance(config.task, LanguageModelConfig)
        task = LanguageModel(config.task, optim=config.optim, seed=config.seed)
        folder = Path(config.output_dir) / config.name / "checkpoints"
        self.model = task.build_model().double()
        self.weights = {}
        for name, parameter in self.model.named_parameters():
            before = parameter if step == 1 else _weight(folder / step_name(step - 1), name, parameter)
            self.weights[name] = before.detach().double().clone()
            parameter.data.copy_(self.weights[name])
        self.updates = {
            name: _weight(folder / step_name(step), name, weight).double() - weight
            for name, weight in self.weights.items()
        }
        self.activations: dict[tuple[int | None, str], Tensor] = {}
        for key, (module, takes) in _places(self.model).items():
            module.register_forward_hook(self._keep(key, takes))
        order = SampleOrder(
            task.num_training_samples, seed=config.task.data.seed, global_batch_size=config.global_batch_size
        )
        batch = task.batch(order.of_step(step), split="training", step=step)
        task.step(self.model, batch).loss_sum.double().div(task.weight(batch)).backward()

    def _keep(self, key: tuple[int | None, str], takes: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            value = args if takes == "input" else output
            self.activations[key] = (value[0] if isinstance(value, tuple) else value).detach()

        return hook


def _weight(checkpoint: Path, name: str, like: Tensor) -> Tensor:
    return CheckpointReader(checkpoint).whole("weight", name).view(like.shape)


def _places(model: Any) -> dict[tuple[int | None, str], tuple[nn.Module, str]]:
    """What the sites mean, written down a second time."""
    found: dict[tuple[int | None, str], tuple[nn.Module, str]] = {
        (None, "embedding"): (model.model.layers[0].attention, "input"),
        (None, "final_norm"): (model.model.norm, "output"),
    }
    for index, layer in enumerate(model.model.layers):
        for name, part in (("attention", layer.attention), ("mlp", layer.mlp)):
            found[index, f"{name}.output"] = part.branch, "output"
            found[index, f"{name}.stream"] = part, "output"
            if part.placement in ("peri", "output"):
                found[index, f"{name}.normed_output"] = part.output_norm, "output"
    return found


def statistics(values: Tensor) -> dict[str, float]:
    """The figures of a site from its full tensor."""
    magnitudes = values.abs().flatten(0, -2)
    middle = (magnitudes.shape[1] + 1) // 2
    ratios = magnitudes.amax(dim=1) / magnitudes.kthvalue(middle, dim=1).values
    return {
        "numel": values.numel(),
        "variance": float(values.var(correction=0)),
        "mean_abs": float(magnitudes.mean()),
        "max_abs": float(magnitudes.max()),
        "rms": float(values.square().mean().sqrt()),
        "fp16_overflow_share": float((magnitudes > 65504).double().mean()),
        "top1_over_median": float(ratios.max()),
    }


def deviation(found: Mapping[str, float], expected: Mapping[str, float]) -> float:
    """Largest relative deviation over figures; where nothing is expected, the value itself."""
    return max(abs(found[key] - value) / (abs(value) or 1.0) for key, value in expected.items())


def worst_deviations(config: RunConfig, folder: Path) -> tuple[float, float, float]:
    """Of activations, gradient and parameter norms, update ratios; over the steps 1 and 3."""
    activations, gradients = rows(folder, config.name, "activations"), rows(folder, config.name, "gradients")
    worst_activation = worst_gradient = worst_update = 0.0
    for step in (1, 3):
        reference = Reference(config, step)
        seen = {(row["layer"], row["site"]): row for row in activations if row["step"] == step}
        assert seen.keys() == reference.activations.keys()
        assert len(seen) == sum(row["step"] == step for row in activations)  # each site once
        for key, values in reference.activations.items():
            worst_activation = max(worst_activation, deviation(seen[key], statistics(values)))
        described = {row["parameter"]: row for row in gradients if row["step"] == step}
        parameters = dict(reference.model.named_parameters())
        assert described.keys() == parameters.keys()
        for name, parameter in parameters.items():
            weight = reference.weights[name]
            assert parameter.grad is not None
            expected = {
                "numel": weight.numel(),
                "norm": float(parameter.grad.norm()),
                "parameter_norm": float(weight.norm()),
            }
            if "norm" in name:
                scales = {"scale_min": weight.min(), "scale_mean": weight.mean(), "scale_max": weight.max()}
                expected |= {key: float(value) for key, value in scales.items()}
            else:
                assert "scale_min" not in described[name]
            worst_gradient = max(worst_gradient, deviation(described[name], expected))
            ratio = {"update_ratio": float(reference.updates[name].norm() / weight.norm())}
            worst_update = max(worst_update, deviation(described[name], ratio))
    return worst_activation, worst_gradient, worst_update


PLACEMENTS = {0: "pre", 1: "peri", 2: "post", 3: "output"}


CASES = [
    (stage, size, accumulation, checkpointing)
    for stage in (0, 1, 2, 3)
    for size in (1, 2)
    for accumulation in (1, 4)
    for checkpointing in ("false", "true")
]
QUICK = {
    (0, 2, 4, "true"),
    (1, 1, 1, "false"),
    (1, 2, 4, "true"),
    (2, 2, 4, "false"),
    (3, 2, 1, "true"),
    (3, 1, 4, "false"),
}
SLOW = {(0, 1, 1, "false"), (2, 1, 1, "true")}  # with QUICK: every stage beside each of the other values


@pytest.mark.parametrize(
    ("stage", "size", "accumulation", "checkpointing"),
    [
        case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow if case in SLOW else pytest.mark.nightly)
        for case in CASES
    ],
)
def test_values_equal_full_tensors_in_fp64(
    ranks: Ranks, tmp_path: Path, stage: int, size: int, accumulation: int, checkpointing: str
) -> None:
    # Worst cases measured over all 32 and the compiled: activations 1.5e-6, norms 5.6e-7, update ratios 1.3e-6.
    path = str(tiny_file(tmp_path))
    overrides = [
        f"engine.zero_stage={stage}",
        f"micro_batch_size={8 // size // accumulation}",
        f"engine.activation_checkpointing={checkpointing}",
        f"task.model.norm_placement={PLACEMENTS[stage]}",
        *PROBES,
        *SHORT,
    ]
    ranks(size, train, path, overrides)
    found = worst_deviations(load(path, overrides), tmp_path)
    assert max(found) < 1e-5, found


# The rate of SGD is so large that the rounding of the weights in fp32 is small beside their change.
CONSTANT = ["optim.schedule=constant", "optim.warmup=0"]
ADAMW = ["optim.optimizer=adamw", "optim.lr=0.01", *CONSTANT]
SGD = ["optim.optimizer=sgd", "optim.lr=10", "optim.momentum=0.8", "optim.weight_decay=0.001", *CONSTANT]


FACTORS = {"embed_tokens": 2.0, "norm": 20.0, "mlp": 0.5}  # of parameters whose name contains this, else 1


def with_factors(self: LanguageModel, model: nn.Module) -> list[ParameterGroup]:
    """Cut the groups up by factors of the learning rate."""
    return [
        ParameterGroup(
            f"{group.name} x{factor}",
            {name: p for name, p in group.parameters.items() if factor_of(name) == factor},
            group.weight_decay,
            factor,
        )
        for group in OWN_GROUPS(self, model)
        for factor in (1.0, *FACTORS.values())
    ]


OWN_GROUPS = LanguageModel.parameter_groups


def factor_of(name: str) -> float:
    return next((factor for part, factor in FACTORS.items() if part in name), 1.0)


def train_with_factors(config_file: str, overrides: list[str], declared: float) -> str:
    """Train with factors of the learning rate, of which `declared` is said to be the largest; return what is wrong."""
    LanguageModel.parameter_groups = with_factors  # type: ignore[method-assign]
    LARGEST_LR_FACTORS["language_model"] = declared
    try:
        train(config_file, overrides)
    except AssertionError as error:
        return str(error)
    finally:
        LanguageModel.parameter_groups = OWN_GROUPS  # type: ignore[method-assign]
        del LARGEST_LR_FACTORS["language_model"]
    return ""


@pytest.mark.parametrize("optim", [ADAMW, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize(
    ("stage", "size"),
    [(1, 2), (3, 2), *(pytest.param(stage, 1, marks=pytest.mark.slow) for stage in (0, 2))],
)
def test_updates_at_rates_of_their_groups_are_the_change_of_the_weights(
    ranks: Ranks, tmp_path: Path, stage: int, size: int, optim: list[str]
) -> None:
    """Worst cases measured: activations 8.9e-7, norms 4.7e-7, update ratios 1.5e-7; with one rate for all over 0.9."""
    path, overrides = str(tiny_file(tmp_path)), [f"engine.zero_stage={stage}", *optim, *PROBES, *SHORT]
    assert not any(ranks(size, train_with_factors, path, overrides, 20.0))
    config = load(path, overrides)
    found = worst_deviations(config, tmp_path)
    assert max(found) < 1e-5, found
    logged = {row["step"]: row["lr"] for row in rows(tmp_path, "tiny", "metrics") if "loss" in row}
    assert logged == {step: learning_rate(step, optim=config.optim, steps=3) for step in (1, 2, 3)}


def test_a_factor_above_the_declared_one_is_refused(ranks: Ranks, tmp_path: Path) -> None:
    assert "LARGEST_LR_FACTORS" in ranks(1, train_with_factors, str(tiny_file(tmp_path)), SHORT, 19.0)[0]


COMPILED = [(1, 1, 8, "false"), (1, 2, 1, "true"), (0, 1, 2, "true"), (2, 2, 4, "false"), (2, 2, 1, "true")]


@pytest.mark.parametrize(
    ("stage", "size", "micro_batch_size", "checkpointing"),
    [
        COMPILED[0],
        pytest.param(*COMPILED[1], marks=pytest.mark.slow),
        *(pytest.param(*case, marks=pytest.mark.nightly) for case in COMPILED[2:]),
    ],
)
def test_values_of_compiled_blocks_equal_full_tensors(
    ranks: Ranks, tmp_path: Path, stage: int, size: int, micro_batch_size: int, checkpointing: str
) -> None:
    path = str(tiny_file(tmp_path))
    overrides = [
        "name=compiled",
        "engine.compile=true",
        "engine.deterministic=false",
        f"engine.zero_stage={stage}",
        f"micro_batch_size={micro_batch_size}",
        f"engine.activation_checkpointing={checkpointing}",
        *PROBES,
        *SHORT,
    ]
    ranks(size, train, path, overrides)
    found = worst_deviations(load(path, overrides), tmp_path)
    assert max(found) < 1e-5, found


def compiled_frames(config_file: str, overrides: list[str]) -> int:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train(config_file, overrides)
    return torch._dynamo.utils.counters["frames"]["total"]


def test_measuring_compiles_nothing_again(ranks: Ranks, tmp_path: Path) -> None:
    path = str(tiny_file(tmp_path))
    compiled = ["engine.compile=true", "engine.deterministic=false"]
    never = ["name=never", "probes.activations_every=null", "probes.gradients_every=null"]
    plain = ranks(1, compiled_frames, path, [*compiled, *never])
    assert plain[0] > 0
    assert ranks(1, compiled_frames, path, [*compiled, "name=probed", "probes.activations_every=3"]) == plain


def counted_passes(config_file: str, overrides: list[str]) -> list[int]:
    """Passes of the decoder forward, of its first block forward and backward, while training."""
    from modeling.decoder.modeling_periln import DecoderLayer, PeriLNForCausalLM

    counts = [0, 0]
    originals = PeriLNForCausalLM.forward, DecoderLayer.forward

    def count(index: int, original: Any) -> Any:
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            counts[index] += 1
            return original(self, *args, **kwargs)

        return forward

    PeriLNForCausalLM.forward, DecoderLayer.forward = (count(i, f) for i, f in enumerate(originals))  # type: ignore[method-assign]
    try:
        train(config_file, overrides)
    finally:
        PeriLNForCausalLM.forward, DecoderLayer.forward = originals  # type: ignore[method-assign]
    return counts


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_measuring_takes_no_pass_of_its_own_and_changes_no_bit(
    ranks: Ranks, tmp_path: Path, checkpointing: str
) -> None:
    path = str(tiny_file(tmp_path))
    settings = [f"engine.activation_checkpointing={checkpointing}"]
    off = ["name=off", "probes.activations_every=null", "probes.gradients_every=null"]
    without = ranks(2, counted_passes, path, [*settings, *off])
    measured = ranks(2, counted_passes, path, [*settings, *PROBES, "name=on"])
    assert measured == without
    figures = ("loss", "grad_norm", "validation_loss")
    seen = [[[row.get(key) for key in figures] for row in rows(tmp_path, name, "metrics")] for name in ("off", "on")]
    assert seen[0] == seen[1]
    assert not (tmp_path / "runs/off/activations.jsonl").exists()
    assert not (tmp_path / "runs/off/gradients.jsonl").exists()


@pytest.mark.parametrize(("stage", "size"), [(0, 1), (1, 2), (2, 2), (3, 2)])
def test_norms_add_up_to_the_runs_gradient_norm(ranks: Ranks, tmp_path: Path, stage: int, size: int) -> None:
    # Worst case measured: 4e-7 relative.
    path = str(tiny_file(tmp_path))
    for precision in ("fp32", "bf16"):
        half = ["engine.gradient_dtype=bf16"] if stage == 0 and precision == "bf16" else []
        overrides = [f"engine.zero_stage={stage}", f"engine.precision={precision}", *half, f"name={precision}", *PROBES]
        ranks(size, train, path, overrides)
        logged = {row["step"]: row["grad_norm"] for row in rows(tmp_path, precision, "metrics") if "loss" in row}
        for step, norm in logged.items():
            norms = [row["norm"] for row in rows(tmp_path, precision, "gradients") if row["step"] == step]
            total = sum(value**2 for value in norms) ** 0.5
            assert total == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloaded_state_is_measured_alike(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    path = str(tiny_file(tmp_path))
    for name, where in (("kept", "none"), ("offloaded", "optimizer")):
        settings = [f"engine.zero_stage={stage}", f"engine.offload={where}", "micro_batch_size=2"]
        ranks(2, train, path, [*settings, f"name={name}", *PROBES, *SHORT])
    for kept, offloaded in zip(
        rows(tmp_path, "kept", "gradients"), rows(tmp_path, "offloaded", "gradients"), strict=True
    ):
        for key in ("norm", "parameter_norm", "update_ratio"):
            assert offloaded[key] == pytest.approx(kept[key], rel=1e-5), (kept["step"], kept["parameter"], key)


def test_steps_are_measured_at_their_interval_first_and_last(ranks: Ranks, tmp_path: Path) -> None:
    path = str(tiny_file(tmp_path))
    ranks(1, train, path, ["probes.activations_every=3", "probes.gradients_every=100"])
    measured = {file: {row["step"] for row in rows(tmp_path, "tiny", file)} for file in ("activations", "gradients")}
    assert measured == {"activations": {1, 3, 6, 8}, "gradients": {1, 8}}


def test_a_resumed_run_writes_the_same_rows(ranks: Ranks, tmp_path: Path) -> None:
    from tests.train.test_resume import train as train_until

    path = str(tiny_file(tmp_path))
    probes = ["probes.activations_every=2", "probes.gradients_every=1"]
    ranks(2, train, path, [*probes, "name=unbroken"])
    ranks(2, train_until, path, probes, 5)
    ranks(2, train, path, probes)
    for file in ("activations", "gradients"):
        assert rows(tmp_path, "tiny", file) == rows(tmp_path, "unbroken", file)


def test_a_skipped_step_moved_no_weight(ranks: Ranks, tmp_path: Path) -> None:
    path = str(tiny_file(tmp_path))
    ranks(1, train_with_a_bad_step, path, [*PROBES, "engine.zero_stage=1"])
    skipped = [row for row in rows(tmp_path, "tiny", "gradients") if row["step"] == 2]
    assert {row["update_ratio"] for row in skipped} == {0.0}
    assert all(row["norm"] is None for row in skipped)
    assert all(row["parameter_norm"] > 0 for row in skipped)


def train_with_a_bad_step(config_file: str, overrides: list[str]) -> None:
    original = LanguageModel.step

    def poisoned(self: LanguageModel, model: nn.Module, batch: Any) -> Any:
        output = original(self, model, batch)
        if poisoned.left == 0:  # type: ignore[attr-defined]
            output = output._replace(loss_sum=output.loss_sum * float("nan"))
        poisoned.left -= 1  # type: ignore[attr-defined]
        return output

    poisoned.left = 2  # type: ignore[attr-defined]  # two passes a step: the first of step 2
    LanguageModel.step = poisoned  # type: ignore[method-assign]
    try:
        train(config_file, overrides)
    finally:
        LanguageModel.step = original  # type: ignore[method-assign]


def test_tensorboard_has_the_same_scalars_and_histograms(ranks: Ranks, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ranks(2, train, str(tiny_file(tmp_path)), PROBES)
    board = EventAccumulator(str(tmp_path / "runs/tiny/tensorboard"), size_guidance={"scalars": 0, "histograms": 0})
    board.Reload()
    for row in rows(tmp_path, "tiny", "activations"):
        place = row["site"] if row["layer"] is None else f"layer_{row['layer']:03d}.{row['site']}"
        drawn = {event.step: event.value for event in board.Scalars(f"variance/{place}")}
        assert drawn[row["step"]] == pytest.approx(row["variance"], rel=1e-6)
        if row["site"].endswith("stream"):
            histogram = {event.step: event.histogram_value for event in board.Histograms(f"log2_magnitude/{place}")}
            assert histogram[row["step"]].num == row["numel"]
    for row in rows(tmp_path, "tiny", "gradients"):
        drawn = {event.step: event.value for event in board.Scalars(f"gradient_norm/{row['parameter']}")}
        assert drawn[row["step"]] == pytest.approx(row["norm"], rel=1e-6)
