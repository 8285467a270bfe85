"""DeepSpeed, wrapped: the only file that imports it.

What the rest of the code sees: a model to call, `backward`, `step`, and the live fp32 state and gradients that this
rank holds, in fragments. Where those lie inside DeepSpeed is told by train/engine/zero_layouts.py.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from train.config.run import EngineConfig, OptimConfig
from train.engine.buffers import RunningStatistics
from train.engine.optimizers import OPTIMIZERS, build_optimizer
from train.engine.zero_layouts import Fragment, ParameterLayout, layout_of
from train.ranks.distributed import World
from train.tasks.task import ParameterGroup, Task

# Read by DeepSpeed at import: do not probe the machine, do not announce the result.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's deprecations inside DeepSpeed: nothing a user could act on
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger as deepspeed_logger

logger = logging.getLogger(__name__)


class StepResult(NamedTuple):
    """What became of an optimizer step."""

    grad_norm: float | Tensor  # over all parameters, before clipping; not finite when the step was skipped
    applied: bool


class FragmentReader(Protocol):
    """Where restored state comes from: a checkpoint, or the initialised model."""

    def read(self, kind: str, name: str, start: int, numel: int) -> Tensor | None:
        """Return elements [start, start + numel) of a flattened tensor, or None for zeros."""
        ...


class BatchPlan(NamedTuple):
    """How a rank's share of the global batch is cut."""

    micro_batch_size: int
    accumulation_steps: int


def resolve_precision(engine: EngineConfig, task: Task, device: torch.device) -> Literal["bf16", "fp32"]:
    """Return what `auto` means: bf16 for a task that may be computed so, on a GPU that can; else fp32."""
    if engine.precision != "auto":
        return engine.precision
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bf16" if able and task.supports_bf16 else "fp32"


def deepspeed_config(
    engine: EngineConfig,
    optim: OptimConfig,
    *,
    precision: str,
    plan: BatchPlan,
    world_size: int,
    num_parameters: int,
) -> dict[str, Any]:
    """Return the whole DeepSpeed configuration: every default that changes numbers or speed is written out.

    DeepSpeed's own defaults have changed between releases without notice (gradient clipping, bf16 overflow checks).
    A bucket is no larger than the model (DeepSpeed allocates it whole), and even (its alignment).
    """
    clipping = optim.gradient_clipping or 0.0
    # fp32 gradients mean fp32 everywhere: accumulated, reduced, and averaged.
    gradient_dtype = "fp32" if precision == "fp32" else engine.gradient_dtype
    described: dict[str, Any] = {
        "train_batch_size": plan.micro_batch_size * plan.accumulation_steps * world_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        # At stage 0 in fp32 DeepSpeed neither reports the norm nor notices NaN: the engine clips by itself there.
        "gradient_clipping": 0.0 if engine.zero_stage == 0 and precision == "fp32" else clipping,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": gradient_dtype,
        "data_types": {"grad_accum_dtype": gradient_dtype},
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": True, "immediate_grad_update": False},
        "fp16": {"enabled": False},
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "disable_allgather": False,
        "zero_allow_untested_optimizer": False,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW runs on the CPU and needs no compiler
        "zero_optimization": {"stage": engine.zero_stage},
    }
    if engine.zero_stage > 0:
        described["zero_optimization"].update(
            _zero_options(engine, min(engine.reduce_bucket_size, num_parameters + num_parameters % 2))
        )
    return described


def _zero_options(engine: EngineConfig, bucket_size: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "reduce_bucket_size": bucket_size,
        "allgather_bucket_size": bucket_size,
        "overlap_comm": engine.overlap_communication,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "allgather_partitions": True,
        "round_robin_gradients": False,
        "ignore_unused_parameters": True,
        "compute_grad_norm": True,
    }
    if engine.offload == "optimizer":
        options["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if engine.zero_stage == 3:
        options.update(
            sub_group_size=1_000_000_000,
            stage3_prefetch_bucket_size=50_000_000,
            stage3_param_persistence_threshold=100_000,  # elements: norms stay whole on every rank
            stage3_max_live_parameters=1_000_000_000,
            stage3_max_reuse_distance=1_000_000_000,
            # Saves memory by a hand-written linear that runs under autocast rules of its own; ours stays torch's.
            memory_efficient_linear=False,
        )
    return options


class Engine:
    """A model being trained with DeepSpeed ZeRO; `model` is what tasks call."""

    def __init__(
        self,
        module: nn.Module,
        wrapped: Any,
        layout: ParameterLayout,
        *,
        world: World,
        plan: BatchPlan,
        clipping: float,
    ):
        self.module = module
        self.model = wrapped
        self.plan = plan
        self.updates = 0  # optimizer steps that reached the weights: what Adam counts itself
        self.config: dict[str, Any] = wrapped.config
        self.running_statistics = RunningStatistics(module)
        self._layout = layout
        self._world = world
        self._clipping = clipping
        self._count_micro_steps(0)

    def backward(self, loss_sum: Tensor, *, total_weight: Tensor) -> None:
        """Accumulate the gradient of `loss_sum / total_weight`, summed over the step's micro-batches and ranks.

        DeepSpeed averages over ranks; the factor here undoes that. A loss that is not finite becomes a NaN gradient,
        because cross-entropy can be infinite where its gradient is not, and neither may reach the weights.
        """
        scale = self._world.size / total_weight
        loss_sum = loss_sum * torch.where(torch.isfinite(loss_sum.detach()), scale, math.nan)
        self.model.backward(loss_sum, scale_wrt_gas=False)
        self._count_micro_steps(self._micro_steps + 1)

    def step(self, lr: float) -> StepResult:
        """Clip and apply the accumulated gradient at this learning rate, or skip it when it is not finite."""
        for group in self.model.optimizer.param_groups:
            group["lr"] = lr
        own_norm = self._layout.clip_gradients(self._clipping)
        skipped_before = self.model.skipped_steps
        self.model.step()
        self._count_micro_steps(0)
        if own_norm is not None:
            applied, grad_norm = bool(torch.isfinite(own_norm)), own_norm
        else:
            applied, grad_norm = self.model.skipped_steps == skipped_before, self.model.get_global_grad_norm()
        self.updates += int(applied)
        self.running_statistics.settle(applied=applied)
        return StepResult(grad_norm=grad_norm, applied=applied)

    def _count_micro_steps(self, done: int) -> None:
        """Tell DeepSpeed, before the forward pass as it wants it, whether the next micro-step is the step's last."""
        self._micro_steps = done
        self.model.set_gradient_accumulation_boundary(done >= self.plan.accumulation_steps - 1)

    @property
    def precision(self) -> str:
        """What the network computes in: bf16 or fp32."""
        return "bf16" if self.config["bf16"]["enabled"] else "fp32"

    def parameter_shapes(self) -> dict[str, list[int]]:
        """Return the full shape of every trained parameter, under ZeRO-3 too."""
        return {
            name: list(getattr(parameter, "ds_shape", parameter.shape))
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad
        }

    @property
    def weight_decays(self) -> dict[str, float]:
        """The weight decay of every trained parameter, by name."""
        return {name: group.weight_decay for group in self._layout.groups for name in group.parameters}

    def owned_fragments(self) -> Iterator[Fragment]:
        """Yield the state that is this rank's, and no other's; all ranks together hold every element once."""
        for fragment in self._layout.fragments():
            first, last = self._share(fragment.numel)
            if last > first:
                yield fragment.narrow(first, last - first)

    def owned_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the step's gradient, a flat fragment of a named parameter at a time; all ranks hold it once together.

        It is there between the last `backward` of a step and `step`: reduced over ranks, not yet clipped.
        """
        for name, gradient in self._layout.gradient_fragments():
            first, last = self._share(gradient.numel())
            if last > first:
                yield name, gradient.reshape(-1)[first:last]

    def _share(self, numel: int) -> tuple[int, int]:
        """Return which elements of a fragment this rank speaks for: all, or its part of what every rank has."""
        if not self._layout.replicated:
            return 0, numel
        return numel * self._world.rank // self._world.size, numel * (self._world.rank + 1) // self._world.size

    def load(self, reader: FragmentReader, *, updates: int) -> None:
        """Restore weights and optimizer state from `reader`, on every rank, and count `updates` as done."""
        self._layout.create_optimizer_state(updates)
        for fragment in self._layout.fragments():
            for kind, tensor in fragment.tensors.items():
                restored = reader.read(kind, fragment.name, fragment.start, fragment.numel)
                tensor.zero_() if restored is None else tensor.copy_(restored)
        self._layout.refresh_weights()
        self.updates = updates

    def held_bytes(self) -> dict[str, int]:
        """Return the bytes of parameters, gradients and optimizer state on this rank, as they are right now."""
        return self._layout.held_bytes()

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers."""
        self.model.destroy()


class ModelReader:
    """The initialised model as a source of state: fp32 weights, optimizer state at zero.

    Restoring it at step 0 gives fp32 masters that never went through bf16, and undoes the optimizer step with zero
    gradients (but weight decay) that DeepSpeed takes on its own at stage 0 in bf16.
    """

    def __init__(self, weights: Mapping[str, Tensor]):
        self._weights = weights

    def read(self, kind: str, name: str, start: int, numel: int) -> Tensor | None:
        """Return a slice of the initial weight, or None for optimizer state."""
        return self._weights[name].reshape(-1)[start : start + numel] if kind == "weight" else None


def wrap(
    model: nn.Module,
    groups: Sequence[ParameterGroup],
    *,
    engine: EngineConfig,
    optim: OptimConfig,
    world: World,
    plan: BatchPlan,
) -> Engine:
    """Hand an fp32 model to DeepSpeed and return the engine, its fp32 masters exactly the model's weights.

    Args:
        model: initialised in fp32, equal on all ranks.
        groups: every trainable parameter in exactly one.
        engine: ZeRO stage, precision (bf16 or fp32) and the like.
        optim: optimizer and clipping.
        world: this rank's place.
        plan: micro-batch size and accumulation steps.
    """
    assert engine.precision != "auto", "resolve_precision comes first"
    initial = {name: parameter.detach() for name, parameter in model.named_parameters()}  # DeepSpeed takes new storage
    _prepare_model(model, engine)
    described = deepspeed_config(
        engine,
        optim,
        precision=engine.precision,
        plan=plan,
        world_size=world.size,
        num_parameters=sum(weight.numel() for weight in initial.values()),
    )
    wrapped = _initialize(model, groups, optim=optim, described=described)
    layout = layout_of(
        wrapped,
        groups,
        optimizer=OPTIMIZERS[optim.optimizer],
        zero_stage=engine.zero_stage,
        precision=engine.precision,
    )
    result = Engine(model, wrapped, layout, world=world, plan=plan, clipping=optim.gradient_clipping or math.inf)
    result.load(ModelReader(initial), updates=0)
    return result


def _prepare_model(model: nn.Module, engine: EngineConfig) -> None:
    model.train()
    if engine.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    if engine.compile:
        compile_blocks = getattr(model, "compile_blocks", None)
        compile_blocks() if compile_blocks is not None else model.compile(dynamic=False)


def _initialize(
    model: nn.Module, groups: Sequence[ParameterGroup], *, optim: OptimConfig, described: dict[str, Any]
) -> Any:
    # The shared-memory op serves inference only; building it takes 40 s and a C++ compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # type: ignore[attr-defined]
    deepspeed_logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped, *_ = deepspeed.initialize(
            model=model,
            optimizer=build_optimizer(groups, optim=optim),
            config=described,
            dist_init_required=False,
        )
    return wrapped
