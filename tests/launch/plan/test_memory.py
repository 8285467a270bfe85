"""Memory that `plan` predicts against memory in use: DeepSpeed's state, activations, the whole peak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._utils import _flatten_dense_tensors
from torch.profiler import ProfilerActivity, profile

from launch.plan import memory as planned
from launch.plan.case import Case, case_of
from launch.plan.decoder import DecoderWorkload
from launch.plan.decoder_layer import kept_per_token
from launch.plan.workload import workload_of
from modeling.decoder.facts_periln import LOSS_CHUNK_ELEMENTS
from modeling.decoder.facts_placements_periln import PLACEMENTS
from tests.launch.plan.operations import OperationCounter
from tests.ranks import Ranks
from tests.train.engine.test_engine import here
from train.config.facts.optimizers import OPTIMIZERS
from train.config.load import load
from train.config.run import EngineConfig, OptimConfig, RunConfig
from train.config.tasks.language_model import DecoderConfig, LanguageModelConfig, TextDataConfig
from train.engine.engine import BatchPlan, Engine, wrap
from train.tasks.language_model import decoder
from train.tasks.task import ParameterGroup

# LayerNorm, because on the CPU RMSNorm is several operations that keep more than a GPU's fused one.
MODEL: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 256,
    "norm_kind": "layernorm",
}
LENGTH = 256
# gloo's threads are now and then the last to hold what was reduced, and the profiler does not see what they free: the
# bucket, or gloo's clone of it, then counts to the end of a recording (seen in one of six on a busy machine, up to 13 %
# of the peak). This can only add, so the lowest of several recordings is the peak.
RECORDINGS = 5


def run_config(
    engine: dict[str, Any], *, micro_batch_size: int = 4, attention: str = "sdpa", **model: Any
) -> RunConfig:
    return RunConfig(
        name="memory",
        steps=1,
        global_batch_size=4 * micro_batch_size,
        micro_batch_size=micro_batch_size,
        task=LanguageModelConfig(
            model=DecoderConfig(**(MODEL | model)),
            data=TextDataConfig(sources=(), tokenizer="byte-bpe", sequence_length=LENGTH),
            attention=attention,  # type: ignore[arg-type]
        ),
        optim=OptimConfig(lr=1e-3),
        engine=EngineConfig(**engine),
    )


def case(config: RunConfig, gpus: int) -> Case:
    return case_of(config, gpus=gpus, micro_batch_size=config.micro_batch_size)


def work_of(config: RunConfig) -> DecoderWorkload:
    work = workload_of(config)
    assert isinstance(work, DecoderWorkload)
    return work


def start(config: RunConfig, accumulation: int) -> Engine:
    torch.manual_seed(0)
    model = decoder(work_of(config).task)
    roles = model.parameter_roles()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        ParameterGroup(role, {name: p for name, p in named.items() if roles[name] == role}, 0.0)
        for role in ("matrix", "embedding", "output_norm", "norm_or_bias")
    ]
    plan = BatchPlan(config.micro_batch_size, accumulation)
    return wrap(model, groups, engine=config.engine, optim=config.optim, world=here(), plan=plan)


def micro_step(engine: Engine, config: RunConfig) -> None:
    tokens = torch.randint(0, 2000, (config.micro_batch_size, LENGTH + 1))
    output = engine.model(input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:], num_items_in_batch=1)
    engine.backward(output.loss, total_weight=torch.tensor(float(tokens[:, 1:].numel())))


def allocated_peak(recorded: profile) -> int:
    """Return the highest point of what was allocated and not yet freed while recording, in bytes."""
    assert recorded.profiler is not None
    found = recorded.profiler.kineto_results
    assert found is not None
    events = sorted((e.start_ns(), e.nbytes()) for e in found.events() if e.name() == "[memory]")  # type: ignore[attr-defined]
    now = highest = 0
    for _, change in events:
        now += change
        highest = max(highest, now)
    return highest


def measure(engine_settings: dict[str, Any]) -> dict[str, float]:
    """Take steps of two passes; returns what is held before the last pass, and the peak of a step."""
    LOSS_CHUNK_ELEMENTS["cpu"] = LOSS_CHUNK_ELEMENTS["cuda"]  # as on a GPU
    config = run_config(engine_settings)
    engine = start(config, 2)
    for _ in range(2):
        micro_step(engine, config)
    engine.step(1e-3)
    idle = sum(engine.held_bytes().values())
    held: dict[str, float] = {}
    peaks: list[int] = []
    for _ in range(RECORDINGS):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            micro_step(engine, config)
            held |= engine.held_bytes()
            micro_step(engine, config)
            engine.step(1e-3)
        peaks.append(allocated_peak(recorded))
    engine.close()
    return held | {"peak": idle + min(peaks)}


def cases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for stage in (0, 1, 2, 3):
        for precision, gradients in (("bf16", "fp32"), ("bf16", "bf16"), ("fp32", "fp32")):
            if stage == 0 and precision == "bf16" and gradients == "fp32":
                continue
            found.append({"zero_stage": stage, "precision": precision, "gradient_dtype": gradients})
    return found


SLOW = pytest.mark.slow
FEW = [(2, 2, "bf16", "fp32", False)]
ALL = [
    (n, c["zero_stage"], c["precision"], c["gradient_dtype"], a) for n in (1, 2) for a in (False, True) for c in cases()
]


def _mark(gpus: int, stage: int, precision: str, gradients: str, again: bool) -> pytest.MarkDecorator:
    """Return when to run a combination: each number of ranks with each stage once among the slow tests, in turn with
    and without recomputing activations; all others in the night.
    """
    usual = precision == "bf16" and gradients == ("fp32" if stage else "bf16")
    return SLOW if usual and again == ((gpus + stage) % 2 == 0) else pytest.mark.nightly


RUNS = [*FEW, *(pytest.param(*run, marks=_mark(*run)) for run in ALL if run not in FEW)]


@pytest.mark.parametrize(("gpus", "stage", "precision", "gradients", "again"), RUNS)
def test_the_plan_meets_what_is_held_and_the_peak(
    ranks: Ranks, gpus: int, stage: int, precision: str, gradients: str, again: bool
) -> None:
    """Measured, planned / real peak: stages 0-2 0.995 to 1.031, stage 3 0.991 to 1.146, and 1.42 in fp32 on two ranks.

    The same in two to six rounds on a busy machine, but for stage 2 on two ranks (0.003 between the ranks). With
    buckets of a fifth of the model: 0.992 to 1.274, and stage 2 in fp32 with checkpointing 0.913 to 0.956.
    """
    engine = {"zero_stage": stage, "precision": precision, "gradient_dtype": gradients}
    engine["activation_checkpointing"] = again
    config = run_config(engine)
    real = ranks(gpus, measure, engine)[0]
    plan = planned.memory(config, case(config, gpus))
    own_masters = 4 * work_of(config).parameters if (stage, precision) == (0, "fp32") else 0
    # At stage 3 small matrices stay whole, at stage 2 a gradient that touches a rank's share does.
    assert real["parameters"] == pytest.approx(plan.weights, rel=0.4 if stage == 3 else 0.01)
    assert real["gradients"] == pytest.approx(plan.gradients, rel=0.2 if stage == 2 else 0.01)
    assert real["optimizer"] - own_masters == pytest.approx(plan.optimizer, rel=0.01)
    ratio = (plan.peak - plan.context - plan.margin) / (real["peak"] - own_masters)
    assert 0.97 < ratio < (1.45 if stage == 3 else 1.05)


def held_with(optimizer: str, engine_settings: dict[str, Any]) -> dict[str, int]:
    """Return what is held with an optimizer, whose state exists from the start."""
    config = replace(run_config(engine_settings), optim=OptimConfig(lr=1e-3, optimizer=optimizer))  # type: ignore[arg-type]
    engine = start(config, 1)
    held = engine.held_bytes()
    engine.close()
    return held


@pytest.mark.parametrize(("gpus", "stage", "precision"), [(1, 2, "fp32"), (2, 3, "bf16")])
def test_the_plan_meets_the_state_of_every_optimizer(ranks: Ranks, gpus: int, stage: int, precision: str) -> None:
    engine = {"zero_stage": stage, "precision": precision}
    for name in OPTIMIZERS:
        config = replace(run_config(engine), optim=OptimConfig(lr=1e-3, optimizer=name))  # type: ignore[arg-type]
        real = sum(held["optimizer"] for held in ranks(gpus, held_with, name, engine)) / gpus
        # Measured: equal; a tensor more or less is a third or more. Ranks may be padded.
        assert real == pytest.approx(planned.memory(config, case(config, gpus)).optimizer, rel=1e-3)


def saved_bytes(config: RunConfig, *, checkpointing: bool = False, compiled: bool = False) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, weights apart."""
    torch.manual_seed(0)
    model = decoder(work_of(config).task).train()
    nn.Module.to(model, torch.bfloat16 if config.engine.precision == "bf16" else torch.float32)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if compiled:
        model.compile_blocks()
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(0, 2000, (config.micro_batch_size, LENGTH + 1))
    inputs = {"input_ids": tokens[:, :-1], "shift_labels": tokens[:, 1:], "num_items_in_batch": 1}
    if compiled:
        model(**inputs).loss.backward()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs)
    return sum(kept.values())


def kept_by_a_layer(engine: dict[str, Any], attention: str = "sdpa", **options: Any) -> tuple[float, int]:
    """Return what a third layer keeps per token, measured and planned."""
    how = {name: options.pop(name) for name in ("checkpointing", "compiled") if name in options}
    two, three = (
        run_config(engine, micro_batch_size=2, attention=attention, num_hidden_layers=n, **options) for n in (2, 3)
    )
    measured = (saved_bytes(three, **how) - saved_bytes(two, **how)) / (2 * LENGTH)
    model = work_of(three).model
    reckoned = kept_per_token(
        model,
        str(model.norm_placement),
        itemsize=2 if engine["precision"] == "bf16" else 4,
        compiled=how.get("compiled", False),
        attention=attention,
        sequence_length=LENGTH,
    )
    return measured, reckoned


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("placement", "model"),
    [
        *((name, {}) for name in PLACEMENTS),
        *((name, {"gpas": True, "residual_factor": 0.5}) for name in PLACEMENTS),
        *((name, {"attention_gate": "element", "qk_norm": "head"}) for name in ("pre", "peri")),
        *((name, {"attention_gate": "head", "qk_norm": "projection"}) for name in ("post", "output")),
        *((name, {"norm_kind": "dyt"}) for name in ("pre", "post", "peri", "hybrid", "sub")),
        *((name, {"norm_kind": "layernorm"}) for name in ("keel", "hybrid", "sub")),
        *((name, {"frozen_norm_scales": "all"}) for name in ("pre", "post", "peri", "output")),
    ],
    ids=str,
)
def test_a_layer_keeps_exactly_what_is_planned(precision: str, placement: str, model: dict[str, Any]) -> None:
    measured, reckoned = kept_by_a_layer({"precision": precision}, norm_placement=placement, **model)
    if precision == "fp32" or model.get("norm_kind") == "dyt":  # which has no statistics
        assert measured == reckoned
    else:  # the CPU keeps LayerNorm's statistics in bf16, a GPU in fp32: 0.1 %, with a norm per head 0.4 %
        assert 0.99 * reckoned < measured < reckoned


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_eager_attention_keeps_its_weights(precision: str) -> None:
    measured, reckoned = kept_by_a_layer({"precision": precision}, attention="eager")
    assert measured == pytest.approx(reckoned, rel=0.01)


def test_with_checkpointing_a_layer_keeps_its_input_alone() -> None:
    measured, _ = kept_by_a_layer({"precision": "bf16"}, checkpointing=True)
    assert measured == 2 * MODEL["hidden_size"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch 2.13 warns of itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    "placement",
    [
        *(pytest.param(placement, marks=SLOW) for placement in ("pre", "peri")),
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("post", "output")),
    ],
)
@pytest.mark.parametrize("model", [{}, {"qk_norm": "head"}], ids=str)
def test_a_compiled_layer_keeps_less(placement: str, model: dict[str, Any]) -> None:
    """The compiler drops statistics that it can compute again: measured within 0.3 %, always below the plan."""
    torch.compiler.reset()
    measured, reckoned = kept_by_a_layer({"precision": "bf16"}, norm_placement=placement, compiled=True, **model)
    assert 0.99 * reckoned < measured <= reckoned


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model", [{}, {"norm_placement": "pre", "num_hidden_layers": 2}, {"qk_norm": "head"}], ids=str)
def test_the_kernels_of_a_pass_are_about_as_many_as_planned(checkpointing: bool, model: dict[str, Any]) -> None:
    config = run_config({"precision": "bf16", "activation_checkpointing": checkpointing}, micro_batch_size=1, **model)
    network = decoder(work_of(config).task).train()
    nn.Module.to(network, torch.bfloat16)
    if checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    tokens = torch.randint(0, 2000, (1, LENGTH + 1))
    with OperationCounter() as counter:
        network(input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:], num_items_in_batch=1).loss.backward()
    assert work_of(config).launches(case(config, 1)) == pytest.approx(counter.operations, rel=0.1)


class Reducer:
    """Stands for DeepSpeed's engine: notes what would be flattened into a copy."""

    def __init__(self) -> None:
        self.copied: list[int] = []

    def allreduce_and_copy(self, bucket: list[torch.Tensor], *_: object) -> None:
        self.copied.append(sum(tensor.numel() for tensor in bucket) if len(bucket) > 1 else 0)


@pytest.mark.parametrize("size", ["400m", "1.5b", "3.2b"])
def test_deepspeed_reduces_groups_in_the_buckets_that_are_planned(size: str) -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine

    groups = workload_of(load(f"configs/language_model/{size}.yaml")).groups
    reducer = Reducer()
    tensors = [torch.empty(group, device="meta") for group in groups]
    DeepSpeedEngine.allreduce_no_retain(reducer, tensors, None)  # type: ignore[arg-type]
    assert max(reducer.copied) == planned._largest_copy(groups)
    alone = torch.zeros(8)
    assert _flatten_dense_tensors([alone]).data_ptr() == alone.data_ptr()  # in place, no copy
