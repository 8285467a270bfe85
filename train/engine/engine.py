"""DeepSpeed wrapper; the only file that imports deepspeed.

It exposes a model to call, `backward`, `step`, and the live fp32 state and gradients held by this rank, as fragments.
train/engine/zero_layouts.py knows where those are stored inside DeepSpeed.
"""

from __future__ import annotations

import contextlib
import io
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

# Read by DeepSpeed at import: skip probing the machine and logging the result.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch deprecations inside DeepSpeed, which users cannot act on
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger as deepspeed_logger

logger = logging.getLogger(__name__)


class StepResult(NamedTuple):
    """Outcome of an optimizer step."""

    grad_norm: float | Tensor  # over all parameters, before clipping; not finite if the step was skipped
    applied: bool


class FragmentReader(Protocol):
    """Source of state to restore: a checkpoint or the initialized model."""

    def read(self, kind: str, name: str, start: int, numel: int) -> Tensor | None:
        """Return elements [start, start + numel) of a flattened tensor, or None for zeros."""
        ...


class BatchPlan(NamedTuple):
    """Division of a rank's share of the global batch."""

    micro_batch_size: int
    accumulation_steps: int


def resolve_precision(engine: EngineConfig, task: Task, device: torch.device) -> Literal["bf16", "fp32"]:
    """Resolve `auto`: bf16 if both the task and the GPU support it, else fp32."""
    if engine.precision != "auto":
        return engine.precision
    gpu_supports_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bf16" if gpu_supports_bf16 and task.supports_bf16 else "fp32"


def deepspeed_config(
    engine: EngineConfig,
    optim: OptimConfig,
    *,
    precision: str,
    plan: BatchPlan,
    world_size: int,
    num_parameters: int,
) -> dict[str, Any]:
    """Return the full DeepSpeed configuration, with every default that affects numbers or speed set explicitly.

    DeepSpeed's defaults have changed between releases without notice (gradient clipping, bf16 overflow checks). Bucket
    sizes do not exceed the model, as DeepSpeed allocates whole buckets; that of all-gathers is even, for its alignment.
    """
    clipping = optim.gradient_clipping or 0.0
    # fp32 gradients are fp32 throughout: accumulation, reduction and averaging.
    gradient_dtype = "fp32" if precision == "fp32" else engine.gradient_dtype
    config: dict[str, Any] = {
        "train_batch_size": plan.micro_batch_size * plan.accumulation_steps * world_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        # At stage 0 in fp32 DeepSpeed neither reports the norm nor detects NaN, so the engine clips itself.
        "gradient_clipping": 0.0 if engine.zero_stage == 0 and precision == "fp32" else clipping,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": gradient_dtype,
        "data_types": {"grad_accum_dtype": gradient_dtype},
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": True, "immediate_grad_update": True},
        "fp16": {"enabled": False},
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # waits for the device around every micro-batch
        "disable_allgather": False,
        "zero_allow_untested_optimizer": True,  # all of ours are compared with plain torch at every stage
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW also runs on the CPU and needs no compiler
        "zero_optimization": {"stage": engine.zero_stage},
    }
    if engine.zero_stage > 0:
        config["zero_optimization"].update(
            _zero_options(engine, min(engine.reduce_bucket_size, num_parameters + num_parameters % 2))
        )
    return config


def _zero_options(engine: EngineConfig, bucket_size: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "reduce_bucket_size": bucket_size,
        "allgather_bucket_size": bucket_size + bucket_size % 2,
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
            # Would save memory with a custom linear layer that has its own autocast rules; we keep torch's.
            memory_efficient_linear=False,
        )
    return options


class Engine:
    """A model being trained with DeepSpeed ZeRO; tasks call `model`."""

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
        self.updates = 0  # optimizer steps that reached the weights, as counted by Adam
        self.config: dict[str, Any] = wrapped.config
        self.running_statistics = RunningStatistics(module)
        self._layout = layout
        self._world = world
        self._clipping = clipping
        self._count_micro_steps(0)

    def backward(self, loss_sum: Tensor, *, total_weight: Tensor) -> None:
        """Accumulate the gradient of `loss_sum / total_weight`, summed over the step's micro-batches and ranks.

        DeepSpeed averages over ranks; the factor here undoes that. A non-finite loss is turned into a NaN gradient, as
        cross-entropy can be infinite where its gradient is finite, and neither may reach the weights.
        """
        scale = self._world.size / total_weight
        loss_sum = loss_sum * torch.where(torch.isfinite(loss_sum.detach()), scale, math.nan)
        self.model.backward(loss_sum, scale_wrt_gas=False)
        self._count_micro_steps(self._micro_steps + 1)

    def step(self, lr: float) -> StepResult:
        """Clip and apply the accumulated gradient, or skip it if it is not finite.

        Args:
            lr: The learning rate; each parameter group's is this times its `lr_factor`.
        """
        for group in self.model.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        clipped = self._layout.clip_gradients(self._clipping)
        skipped_before = self.model.skipped_steps
        self.model.step()
        self._count_micro_steps(0)
        if clipped is not None:
            applied, grad_norm = clipped.is_finite, clipped.norm
        else:
            applied, grad_norm = self.model.skipped_steps == skipped_before, self.model.get_global_grad_norm()
        self.updates += int(applied)
        self.running_statistics.settle(applied=applied)
        return StepResult(grad_norm=grad_norm, applied=applied)

    def _count_micro_steps(self, done: int) -> None:
        """Set in DeepSpeed, before the forward pass, whether the next micro-step is the last one of the step."""
        self._micro_steps = done
        self.model.set_gradient_accumulation_boundary(done >= self.plan.accumulation_steps - 1)

    @property
    def precision(self) -> str:
        """The precision of the network: bf16 or fp32."""
        return "bf16" if self.config["bf16"]["enabled"] else "fp32"

    def parameter_shapes(self) -> dict[str, list[int]]:
        """Return the full shape of every trained parameter, also under ZeRO-3."""
        return {
            name: list(getattr(parameter, "ds_shape", parameter.shape))
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad
        }

    @property
    def weight_decays(self) -> dict[str, float]:
        """The weight decay of every trained parameter, by name."""
        return {name: group.weight_decay for group in self._layout.groups for name in group.parameters}

    @property
    def lr_factors(self) -> dict[str, float]:
        """The factor of the learning rate of every trained parameter, by name."""
        return {name: group.lr_factor for group in self._layout.groups for name in group.parameters}

    def owned_fragments(self) -> Iterator[Fragment]:
        """Yield the state owned by this rank; every element is owned by exactly one rank."""
        for fragment in self._layout.fragments():
            first, last = self._share(fragment.numel)
            if last > first:
                yield fragment.narrow(first, last - first)

    def owned_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the owned part of the step's gradient as flat fragments with their parameter's name.

        Valid between the last `backward` of a step and `step`: reduced over ranks, not yet clipped.
        """
        for name, gradient in self._layout.gradient_fragments():
            first, last = self._share(gradient.numel())
            if last > first:
                yield name, gradient.reshape(-1)[first:last]

    def _share(self, numel: int) -> tuple[int, int]:
        """Return the range of a fragment that this rank owns: all of it, or its part if every rank holds a copy."""
        if not self._layout.replicated:
            return 0, numel
        return numel * self._world.rank // self._world.size, numel * (self._world.rank + 1) // self._world.size

    def load(self, reader: FragmentReader, *, updates: int) -> None:
        """Restore weights and optimizer state from `reader` on every rank, and set the number of updates."""
        self._layout.create_optimizer_state(updates)
        for fragment in self._layout.fragments():
            for kind, tensor in fragment.tensors.items():
                restored = reader.read(kind, fragment.name, fragment.start, fragment.numel)
                tensor.zero_() if restored is None else tensor.copy_(restored)
        self._layout.refresh_weights()
        self.updates = updates

    def weights_are_finite(self) -> bool:
        """Look at every weight that this rank owns, and return whether all of them are finite."""
        return all(is_finite(fragment.tensors["weight"]) for fragment in self.owned_fragments())

    def held_bytes(self) -> dict[str, int]:
        """Return the bytes of parameters, gradients and optimizer state currently held on this rank."""
        return self._layout.held_bytes()

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers."""
        self.model.destroy()


def is_finite(tensor: Tensor) -> bool:
    """Return whether no value is NaN or infinite, in one pass without a copy."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(bound)) for bound in torch.aminmax(tensor))


class ModelReader:
    """The initialized model as a source of state: fp32 weights and zero optimizer state.

    Restoring it at step 0 yields fp32 masters that were never rounded to bf16, and undoes the initial optimizer step
    with zero gradients (but with weight decay) that DeepSpeed takes at stage 0 in bf16.
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
    """Wrap an fp32 model with DeepSpeed; the fp32 masters equal the model's weights exactly.

    Args:
        model: The model, initialized in fp32 and equal on all ranks.
        groups: Parameter groups; every trainable parameter is in exactly one.
        engine: ZeRO stage, precision (bf16 or fp32) and related settings.
        optim: Optimizer and clipping.
        world: This rank's position.
        plan: Micro-batch size and accumulation steps.
    """
    assert engine.precision != "auto", "call resolve_precision first"
    initial = {
        name: parameter.detach() for name, parameter in model.named_parameters()
    }  # DeepSpeed reallocates parameters
    _prepare_model(model, engine)
    config = deepspeed_config(
        engine,
        optim,
        precision=engine.precision,
        plan=plan,
        world_size=world.size,
        num_parameters=sum(weight.numel() for weight in initial.values()),
    )
    wrapped = _initialize(model, groups, optim=optim, config=config)
    layout = layout_of(
        wrapped,
        groups,
        optimizer=OPTIMIZERS[optim.optimizer],
        zero_stage=engine.zero_stage,
        precision=engine.precision,
    )
    if world.size == 1 and layout.sums_whole_gradients:
        wrapped.enable_backward_allreduce = False  # a sum over one rank: two passes over all gradients for nothing
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
    model: nn.Module, groups: Sequence[ParameterGroup], *, optim: OptimConfig, config: dict[str, Any]
) -> Any:
    # The shared-memory op is only used for inference; building it takes 40 s and a C++ compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # type: ignore[attr-defined]
    deepspeed_logger.setLevel(logging.ERROR)
    # Its bf16 optimizer prints memory use at every stage of its start, whatever the level of its log.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        wrapped, *_ = deepspeed.initialize(
            model=model,
            optimizer=build_optimizer(groups, optim=optim),
            config=config,
            dist_init_required=False,
        )
    return wrapped
