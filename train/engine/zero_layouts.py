"""Memory layouts of DeepSpeed's fp32 weights, optimizer state and gradients, one class per layout.

All code that depends on DeepSpeed internals is in this file (deepspeed 0.19.8); tests/train/engine/test_engine.py fails
if a new release changes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from train.config.facts.optimizers import LARGEST_GRADIENT_NORM
from train.engine.optimizers import Optimizer
from train.tasks.task import ParameterGroup


class Fragment(NamedTuple):
    """Consecutive elements of one parameter: live fp32 views of the weight and its optimizer state on this rank."""

    name: str
    start: int  # first element, in the flattened parameter
    tensors: dict[str, Tensor]  # "weight" and the optimizer's state (AdamW: "exp_avg", "exp_avg_sq"): (numel,) each

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.tensors["weight"].numel()

    def narrow(self, offset: int, numel: int) -> Fragment:
        """Return the part of `numel` elements that starts at `offset`."""
        parts = {key: tensor.narrow(0, offset, numel) for key, tensor in self.tensors.items()}
        return Fragment(self.name, self.start + offset, parts)


class Clipped(NamedTuple):
    """Outcome of clipping; a gradient that is not finite has been dropped instead."""

    norm: Tensor  # before clipping
    is_finite: bool


class ParameterLayout:
    """Location of the fp32 weights, optimizer state and gradients of one ZeRO stage."""

    replicated = False  # whether every rank holds a full copy
    sums_whole_gradients = False  # whether all ranks' gradients are only summed, and none is moved to its owner

    def __init__(self, wrapped: Any, groups: Sequence[ParameterGroup], optimizer: Optimizer):
        self.wrapped = wrapped
        self.optimizer = wrapped.optimizer
        self.groups = [group for group in groups if group.parameters]
        self._new_state = optimizer.new_state
        self._state_names = optimizer.facts.state

    @property
    def inner(self) -> torch.optim.Optimizer:
        """The torch optimizer that DeepSpeed steps."""
        return self.optimizer.optimizer

    @property
    def flat_tensors(self) -> list[Tensor]:
        """The fp32 tensors that the inner optimizer steps."""
        raise NotImplementedError

    def fragments(self) -> Iterator[Fragment]:
        """Yield this rank's live state, in a fixed order."""
        raise NotImplementedError

    def refresh_weights(self) -> None:
        """Update the model's weights from the fp32 masters on all ranks."""
        raise NotImplementedError

    def gradients(self) -> Iterator[Tensor]:
        """Yield the gradient tensors that this rank holds between backward and step."""
        raise NotImplementedError

    def gradient_fragments(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the reduced gradient of each fragment with its parameter's name; valid before `step`."""
        raise NotImplementedError

    def clip_gradients(self, limit: float) -> Clipped | None:
        """Clip the gradients if DeepSpeed does not clip them itself; else return None."""
        return None

    def create_optimizer_state(self, updates: int) -> None:
        """Create zero optimizer state for all tensors, with the step count at `updates`."""
        for flat in self.flat_tensors:
            self.inner.state[flat] = self._new_state(flat, updates)

    def held_bytes(self) -> dict[str, int]:
        """Return bytes held on this rank, by kind."""
        states = [state[key] for state in self.inner.state.values() for key in self._state_names]
        return {
            "parameters": sum(_bytes(parameter) for parameter in self.wrapped.module.parameters()),
            "gradients": sum(_bytes(gradient) for gradient in self.gradients()),
            "optimizer": sum(_bytes(tensor) for tensor in [*states, *self.flat_tensors]),
        }

    def _views(self, flat: Tensor, start: int, numel: int) -> dict[str, Tensor]:
        state = self.inner.state[flat]
        whole = {"weight": flat.detach(), **{key: state[key] for key in self._state_names}}
        return {kind: tensor.view(-1).narrow(0, start, numel) for kind, tensor in whole.items()}


class ReplicatedLayout(ParameterLayout):
    """Stage 0 in fp32: the optimizer steps the parameters themselves."""

    replicated = True
    sums_whole_gradients = True

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
    def gradient_fragments(self) -> Iterator[tuple[str, Tensor]]:
        for group in self.groups:
            for name, parameter in group.parameters.items():
                if parameter.grad is not None:
                    yield name, parameter.grad

    @override
    def clip_gradients(self, limit: float) -> Clipped | None:
        parameters = self.flat_tensors
        norm = nn.utils.get_total_norm(list(self.gradients()))
        is_finite = bool(torch.isfinite(norm))
        if is_finite:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        else:
            for parameter in parameters:
                parameter.grad = None  # torch's optimizers skip parameters without a gradient
        return Clipped(norm, is_finite)


class ReplicatedHalfLayout(ReplicatedLayout):
    """Stage 0 in bf16 (FP16_UnfusedOptimizer): an fp32 master for every parameter."""

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
    def clip_gradients(self, limit: float) -> Clipped | None:
        return None


class PartitionedOptimizerLayout(ParameterLayout):
    """Stages 1 and 2: each rank owns one slice of every group's flattened fp32 parameters."""

    @property
    @override
    def flat_tensors(self) -> list[Tensor]:
        return list(self.optimizer.single_partition_of_fp32_groups)

    def _mapped(self) -> Iterator[tuple[Tensor, str, nn.Parameter, Any]]:
        """Yield flat tensor, name, parameter and DeepSpeed's mapping for parameters at least partly on this rank."""
        for group, flat in zip(self.groups, self.flat_tensors, strict=True):
            for name, parameter in group.parameters.items():
                mapping = parameter._hp_mapping  # type: ignore[attr-defined]
                if mapping is not None:
                    yield flat, name, parameter, mapping

    @override
    def fragments(self) -> Iterator[Fragment]:
        for flat, name, _, mapping in self._mapped():
            address = mapping.hp_fragment_address
            yield Fragment(name, mapping.lp_fragment_address.start, self._views(flat, address.start, address.numel))

    @override
    def gradient_fragments(self) -> Iterator[tuple[str, Tensor]]:
        for _, name, parameter, mapping in self._mapped():
            yield name, mapping.get_lp_grad_fragment(parameter._index_in_param_group)  # type: ignore[attr-defined]

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
        # During accumulation, stage 2 keeps whole gradients of parameters that overlap its partition; at the end, only
        # the partition.
        for held in (self.optimizer.all_grad_tensors, self.optimizer.averaged_gradients):
            for gradients in held.values():
                yield from (gradient for gradient in gradients or [] if gradient is not None)


class BF16OptimizerLayout(PartitionedOptimizerLayout):
    """Stage 1 in bf16 with fp32 gradients (BF16_Optimizer): a full fp32 gradient on every rank.

    Each bf16 gradient is added to the fp32 sum and freed as soon as backward has computed it, so no two coexist.
    """

    sums_whole_gradients = True

    def __init__(self, wrapped: Any, groups: Sequence[ParameterGroup], optimizer: Optimizer):
        super().__init__(wrapped, groups, optimizer)
        self.optimizer._update_hp_grad = self._add_gradient  # called by DeepSpeed's gradient hooks

    @torch.no_grad()
    def _add_gradient(self, parameter: nn.Parameter, group: int, index: int, clear_lp_grads: bool = False) -> None:
        """Add a gradient to its fp32 sum in one pass: 10 bytes per element; DeepSpeed makes an fp32 copy first: 18."""
        if parameter.grad is not None:
            total = self.optimizer.fp32_groups_gradients[group][index]
            total.add_(parameter.grad.view(total.shape))
            parameter._hp_grad = total  # type: ignore[attr-defined]
            self.optimizer.fp32_groups_has_gradients[group][index] = True

    @property
    @override
    def flat_tensors(self) -> list[Tensor]:
        return list(self.optimizer.fp32_groups_flat_partition)

    @override
    def gradients(self) -> Iterator[Tensor]:
        yield from (p.grad for p in self.wrapped.module.parameters() if p.grad is not None)
        yield from self.optimizer.fp32_groups_gradients_flat

    @override
    def gradient_fragments(self) -> Iterator[tuple[str, Tensor]]:
        for _, name, parameter, mapping in self._mapped():
            address = mapping.lp_fragment_address
            yield name, parameter._hp_grad.view(-1).narrow(0, address.start, address.numel)  # type: ignore[attr-defined]


class PartitionedParameterLayout(ParameterLayout):
    """Stage 3: each parameter is split across the ranks; the last piece may be padded."""

    def __init__(self, wrapped: Any, groups: Sequence[ParameterGroup], optimizer: Optimizer):
        super().__init__(wrapped, groups, optimizer)
        self._norms = self.optimizer._get_norm_groups
        self.optimizer._get_norm_groups = self._norms_in_fp32_range

    def _norms_in_fp32_range(self) -> list[Tensor]:
        """Return the gradient norms by group, infinite beyond the range of the other stages.

        DeepSpeed computes them in fp64 here and applies a gradient whose squares are infinite in Adam's second moment.
        """
        return [torch.where(norm <= LARGEST_GRADIENT_NORM, norm, math.inf) for norm in self._norms()]

    @property
    @override
    def flat_tensors(self) -> list[Tensor]:
        return list(self.optimizer.fp32_partitioned_groups_flat)

    def _pieces(self) -> Iterator[tuple[str, nn.Parameter, int, int]]:
        """Yield name, parameter, and start and length of this rank's piece, without padding."""
        for group in self.groups:
            for name, parameter in group.parameters.items():
                numel = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
                start = self.wrapped.global_rank * numel
                valid = min(numel, parameter.ds_numel - start)  # type: ignore[attr-defined]
                if valid > 0:
                    yield name, parameter, start, valid

    @override
    def fragments(self) -> Iterator[Fragment]:
        for name, parameter, start, numel in self._pieces():
            index, offset, _ = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
            yield Fragment(name, start, self._views(self.flat_tensors[index], offset, numel))

    @override
    def gradient_fragments(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter, _, numel in self._pieces():
            yield name, self.optimizer.get_local_fp32_grad_for_param(parameter).narrow(0, 0, numel)

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
        held = super().held_bytes()  # whole parameters; between steps, only the persistent ones
        held["parameters"] += sum(_bytes(p.ds_tensor) for p in self.wrapped.module.parameters())  # type: ignore[attr-defined]
        return held


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def layout_of(
    wrapped: Any, groups: Sequence[ParameterGroup], *, optimizer: Optimizer, zero_stage: int, precision: str
) -> ParameterLayout:
    """Return the layout of a wrapped model, by ZeRO stage, precision and DeepSpeed's choice of optimizer."""
    if zero_stage == 3:
        return PartitionedParameterLayout(wrapped, groups, optimizer)
    if zero_stage == 0:
        return (ReplicatedLayout if precision == "fp32" else ReplicatedHalfLayout)(wrapped, groups, optimizer)
    if hasattr(wrapped.optimizer, "fp32_groups_flat_partition"):
        return BF16OptimizerLayout(wrapped, groups, optimizer)
    return PartitionedOptimizerLayout(wrapped, groups, optimizer)
