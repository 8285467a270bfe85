"""DeepSpeed, wrapped: the only file that imports it.

What the rest of the code sees: a model to call, `backward`, `step`, and `fragments`, the live fp32 state that this
rank holds. Everything that reaches into DeepSpeed's internals stands in the lower half of the file, one class per
way in which DeepSpeed lays out parameters, and tests/train/test_engine.py fails loudly where a new release moves it.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import override

from train.config import EngineConfig, OptimConfig
from train.distributed import World
from train.optim import build_optimizer
from train.tasks.task import ParameterGroup

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


class Fragment(NamedTuple):
    """A run of one parameter's elements: live fp32 views of the weight and of its optimizer state on this rank."""

    name: str
    start: int  # first element, in the flattened parameter
    tensors: dict[str, Tensor]  # "weight", "exp_avg", "exp_avg_sq": (numel,) each

    @property
    def numel(self) -> int:
        """Number of elements in the run."""
        return self.tensors["weight"].numel()

    def narrow(self, offset: int, numel: int) -> Fragment:
        """Return the part of the run that begins `offset` elements in."""
        parts = {key: tensor.narrow(0, offset, numel) for key, tensor in self.tensors.items()}
        return Fragment(self.name, self.start + offset, parts)


class FragmentReader(Protocol):
    """Where restored state comes from: a checkpoint, or the initialised model."""

    def read(self, kind: str, name: str, start: int, numel: int) -> Tensor | None:
        """Return elements [start, start + numel) of a flattened tensor, or None for zeros."""
        ...


class BatchPlan(NamedTuple):
    """How a rank's share of the global batch is cut."""

    micro_batch_size: int
    accumulation_steps: int


def resolve_precision(engine: EngineConfig, device: torch.device) -> str:
    """Return what `auto` means on this device: bf16 on a GPU that computes it, else fp32."""
    if engine.precision != "auto":
        return engine.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


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
        self.updates = 0  # optimizer steps that reached the weights: Adam's own count
        self.config: dict[str, Any] = wrapped.config
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
        return StepResult(grad_norm=grad_norm, applied=applied)

    def _count_micro_steps(self, done: int) -> None:
        """Tell DeepSpeed, before the forward pass as it wants it, whether the next micro-step is the step's last."""
        self._micro_steps = done
        self.model.set_gradient_accumulation_boundary(done >= self.plan.accumulation_steps - 1)

    def owned_fragments(self) -> Iterator[Fragment]:
        """Yield the state that this rank, and no other, is to save; all ranks together hold every element once."""
        for fragment in self._layout.fragments():
            if not self._layout.replicated:
                yield fragment
                continue
            first, last = (
                fragment.numel * rank // self._world.size for rank in (self._world.rank, self._world.rank + 1)
            )
            if last > first:
                yield fragment.narrow(first, last - first)

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
        engine: ZeRO stage, precision and the like.
        optim: optimizer and clipping.
        world: this rank's place.
        plan: micro-batch size and accumulation steps.
    """
    precision = resolve_precision(engine, world.device)
    initial = {name: parameter.detach() for name, parameter in model.named_parameters()}  # DeepSpeed takes new storage
    _prepare_model(model, engine)
    described = deepspeed_config(
        engine,
        optim,
        precision=precision,
        plan=plan,
        world_size=world.size,
        num_parameters=sum(weight.numel() for weight in initial.values()),
    )
    wrapped = _initialize(model, groups, optim=optim, described=described)
    layout = _layout_of(wrapped, groups, zero_stage=engine.zero_stage, precision=precision)
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


# ----------------------------------------------------------------------------------------------------------------
# DeepSpeed's internals, one class per memory layout (deepspeed 0.19.8).


class ParameterLayout:
    """Where one ZeRO stage keeps fp32 weights, optimizer state and gradients."""

    replicated = False  # whether every rank holds all of it

    def __init__(self, wrapped: Any, groups: Sequence[ParameterGroup]):
        self.wrapped = wrapped
        self.optimizer = wrapped.optimizer
        self.groups = [group for group in groups if group.parameters]

    @property
    def inner(self) -> torch.optim.Optimizer:
        """Our own torch optimizer, which DeepSpeed steps."""
        return self.optimizer.optimizer

    @property
    def flat_tensors(self) -> list[Tensor]:
        """The fp32 tensors that the inner optimizer steps."""
        raise NotImplementedError

    def fragments(self) -> Iterator[Fragment]:
        """Yield this rank's live state, in a fixed order."""
        raise NotImplementedError

    def refresh_weights(self) -> None:
        """Bring the model's weights in line with the fp32 masters, on all ranks."""
        raise NotImplementedError

    def gradients(self) -> Iterator[Tensor]:
        """Yield the gradient tensors that this rank holds between backward and step."""
        raise NotImplementedError

    def clip_gradients(self, limit: float) -> Tensor | None:
        """Clip here and return the norm, where DeepSpeed does not; None where it does."""
        return None

    def create_optimizer_state(self, updates: int) -> None:
        """Create AdamW's state as after `updates` steps, with zero moments, for all tensors before any step."""
        fused = self.inner.defaults["fused"]
        for flat in self.flat_tensors:
            device = flat.device if fused else torch.device("cpu")
            self.inner.state[flat] = {
                "step": torch.tensor(float(updates), device=device),
                "exp_avg": torch.zeros_like(flat, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(flat, requires_grad=False),
            }

    def held_bytes(self) -> dict[str, int]:
        """Return bytes held on this rank, by kind."""
        moments = [state[key] for state in self.inner.state.values() for key in ("exp_avg", "exp_avg_sq")]
        return {
            "parameters": sum(_bytes(parameter) for parameter in self.wrapped.module.parameters()),
            "gradients": sum(_bytes(gradient) for gradient in self.gradients()),
            "optimizer": sum(_bytes(tensor) for tensor in [*moments, *self.flat_tensors]),
        }

    def _views(self, flat: Tensor, start: int, numel: int) -> dict[str, Tensor]:
        state = self.inner.state[flat]
        whole = {"weight": flat.detach(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        return {kind: tensor.view(-1).narrow(0, start, numel) for kind, tensor in whole.items()}


class ReplicatedLayout(ParameterLayout):
    """Stage 0 in fp32: the optimizer steps the parameters themselves."""

    replicated = True

    @property
    @override
    def inner(self) -> torch.optim.Optimizer:
        return self.optimizer

    @property
    @override
    def flat_tensors(self) -> list[Tensor]:
        return [parameter for group in self.groups for parameter in group.parameters.values()]

    @override
    def fragments(self) -> Iterator[Fragment]:
        for group in self.groups:
            for name, parameter in group.parameters.items():
                yield Fragment(name, 0, self._views(parameter, 0, parameter.numel()))

    @override
    def refresh_weights(self) -> None:
        pass  # the weights are the masters

    @override
    def gradients(self) -> Iterator[Tensor]:
        return (parameter.grad for parameter in self.flat_tensors if parameter.grad is not None)

    @override
    def clip_gradients(self, limit: float) -> Tensor | None:
        parameters = self.flat_tensors
        norm = nn.utils.get_total_norm(list(self.gradients()))
        if bool(torch.isfinite(norm)):
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        else:
            for parameter in parameters:
                parameter.grad = None  # AdamW passes over parameters without a gradient
        return norm


class ReplicatedHalfLayout(ReplicatedLayout):
    """Stage 0 in bf16 (FP16_UnfusedOptimizer): fp32 masters beside every parameter."""

    @property
    @override
    def inner(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer

    @property
    @override
    def flat_tensors(self) -> list[Tensor]:
        return [master for group in self.optimizer.fp32_groups for master in group]

    @override
    def fragments(self) -> Iterator[Fragment]:
        for group, masters in zip(self.groups, self.optimizer.fp32_groups, strict=True):
            for name, master in zip(group.parameters, masters, strict=True):
                yield Fragment(name, 0, self._views(master, 0, master.numel()))

    @override
    def refresh_weights(self) -> None:
        for group, masters in zip(self.groups, self.optimizer.fp32_groups, strict=True):
            for parameter, master in zip(group.parameters.values(), masters, strict=True):
                parameter.data.copy_(master.data)

    @override
    def gradients(self) -> Iterator[Tensor]:
        return (p.grad for group in self.groups for p in group.parameters.values() if p.grad is not None)

    @override
    def clip_gradients(self, limit: float) -> Tensor | None:
        return None


class PartitionedOptimizerLayout(ParameterLayout):
    """Stages 1 and 2: each rank owns one slice of every group's flattened fp32 parameters."""

    @property
    @override
    def flat_tensors(self) -> list[Tensor]:
        return list(self.optimizer.single_partition_of_fp32_groups)

    @override
    def fragments(self) -> Iterator[Fragment]:
        for group, flat in zip(self.groups, self.flat_tensors, strict=True):
            for name, parameter in group.parameters.items():
                mapping = parameter._hp_mapping  # type: ignore[attr-defined]
                if mapping is None:  # nothing of this parameter lives here
                    continue
                address = mapping.hp_fragment_address
                views = self._views(flat, address.start, address.numel)
                yield Fragment(name, mapping.lp_fragment_address.start, views)

    @override
    def create_optimizer_state(self, updates: int) -> None:
        super().create_optimizer_state(updates)
        self.optimizer._hp_optimizer_states_linked = False
        self.optimizer._lazy_init_hp_params_optimizer_state()

    @override
    def refresh_weights(self) -> None:
        self.optimizer.update_lp_params()

    @override
    def gradients(self) -> Iterator[Tensor]:
        for parameter in self.wrapped.module.parameters():
            if parameter.grad is not None:
                yield parameter.grad
        # During accumulation stage 2 keeps whole parameters that touch its partition; at the end, the partition.
        for held in (self.optimizer.all_grad_tensors, self.optimizer.averaged_gradients):
            for gradients in held.values():
                yield from (gradient for gradient in gradients or [] if gradient is not None)


class BF16OptimizerLayout(PartitionedOptimizerLayout):
    """Stage 1 in bf16 with fp32 gradients (BF16_Optimizer): a full fp32 gradient on every rank."""

    @property
    @override
    def flat_tensors(self) -> list[Tensor]:
        return list(self.optimizer.fp32_groups_flat_partition)

    @override
    def gradients(self) -> Iterator[Tensor]:
        yield from (p.grad for p in self.wrapped.module.parameters() if p.grad is not None)
        yield from self.optimizer.fp32_groups_gradients_flat


class PartitionedParameterLayout(ParameterLayout):
    """Stage 3: each parameter is cut over the ranks; the last piece may be padded."""

    @property
    @override
    def flat_tensors(self) -> list[Tensor]:
        return list(self.optimizer.fp32_partitioned_groups_flat)

    @override
    def fragments(self) -> Iterator[Fragment]:
        for group in self.groups:
            for name, parameter in group.parameters.items():
                key = self.optimizer.get_param_id(parameter)
                index, offset, numel = self.optimizer.grad_position[key]
                start = self.wrapped.global_rank * numel
                valid = min(numel, parameter.ds_numel - start)  # type: ignore[attr-defined]
                if valid > 0:
                    yield Fragment(name, start, self._views(self.flat_tensors[index], offset, valid))

    @override
    def refresh_weights(self) -> None:
        for index in range(len(self.flat_tensors)):
            self.optimizer._reassign_or_swap_out_partitioned_parameters(index)
        persistent = self.optimizer.persistent_parameters
        if persistent:  # small parameters that stay whole on every rank
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)

    @override
    def gradients(self) -> Iterator[Tensor]:
        yield self.optimizer.grad_partitions_flat_buffer

    @override
    def held_bytes(self) -> dict[str, int]:
        held = super().held_bytes()  # counts what is whole here: nothing between steps but the persistent parameters
        held["parameters"] += sum(_bytes(p.ds_tensor) for p in self.wrapped.module.parameters())  # type: ignore[attr-defined]
        return held


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _layout_of(wrapped: Any, groups: Sequence[ParameterGroup], *, zero_stage: int, precision: str) -> ParameterLayout:
    if zero_stage == 3:
        return PartitionedParameterLayout(wrapped, groups)
    if zero_stage == 0:
        return (ReplicatedLayout if precision == "fp32" else ReplicatedHalfLayout)(wrapped, groups)
    if hasattr(wrapped.optimizer, "fp32_groups_flat_partition"):
        return BF16OptimizerLayout(wrapped, groups)
    return PartitionedOptimizerLayout(wrapped, groups)
