"""The printed plan: counts, tables of memory, the configured and a recommended setting, sizes on disk and host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from launch.plan.case import Case, at_stage
from launch.plan.decoder import DecoderWorkload
from launch.plan.image_filter import FilterWorkload
from launch.plan.machine import Machine
from launch.plan.memory import GIB, memory
from launch.plan.recommend import (
    Plan,
    fits,
    largest_micro_batch,
    own_case,
    plan_of,
    recommend,
    recomputations,
    settings,
)
from launch.plan.step_time import LAUNCH, RECOMPUTING, UNCOMPILED, can_overlap, expected_mfu, num_passes, transfers
from launch.plan.workload import Workload, workload_of
from train.config.facts.optimizers import OPTIMIZERS
from train.config.run import RunConfig

# Measured by tests/launch/plan/test_memory.py: 44 combinations of stage, precision, ranks and checkpointing.
_DECODER_ACCURACY = (
    "Accuracy of the memory: against the real peak of a small uncompiled decoder on the CPU, 1 % too low to 15 % too",
    "  high, context and margin excluded (exceptions, with checkpointing in fp32: 42 % too high at stage 3, 9 % too",
    "  low at stage 2 with buckets smaller than the model).",
)
# Measured by tests/launch/plan/test_image_filter.py.
_FILTER_ACCURACY = (
    "Accuracy of the memory: what a pass keeps is exact; the peak of an uncompiled pass on the CPU was met within 1 %.",
    "  Workspaces of cuDNN's convolutions are not counted.",
)
# Measured by tests/launch/plan/test_segmentation.py.
_SEGMENTATION_ACCURACY = (
    "Accuracy of the memory: what a pass keeps is exact; the peak of the tensors of an uncompiled pass was met within",
    "  1 %. Workspaces of cuDNN's convolutions are not counted.",
)
_ON_A_GPU = (
    "Neither memory nor time was compared with a GPU yet: allow for 10 % of memory, and watch peak_memory_gib and mfu",
    "  in metrics.jsonl.",
)
_COLUMNS = ("weights", "gradients", "optimizer", "buffers", "activations", "loss", "update", "context", "margin")


def report(config: RunConfig, machine: Machine) -> Iterator[str]:
    """Yield the lines of the plan."""
    own = plan_of(config, own_case(config, machine), machine)
    work = workload_of(config)
    precision = "bf16" if own.case.bf16 else "fp32"
    where = f"{_count(machine.gpus, 'GPU')} of {machine.memory_gib:g} GiB ({machine.card.name})"
    yield f"{config.name} on {where}, {precision}, {work.samples_in_words}"
    yield ""
    yield from _counts(config)
    yield ""
    yield from _parts(config, machine)
    yield ""
    yield from _peaks(config, machine)
    yield from _measured_steps(own.case, config)
    yield ""
    yield from _own_setting(own, config, machine)
    yield from _recommended(recommend(config, machine), config, machine)
    yield from work.remarks()
    yield ""
    yield from _assumptions(own.case, config, machine)
    yield from _sizes(config, machine)
    yield from _accuracy(work)
    yield from _ON_A_GPU


def _accuracy(work: Workload) -> tuple[str, ...]:
    if isinstance(work, DecoderWorkload):
        return _DECODER_ACCURACY
    return _FILTER_ACCURACY if isinstance(work, FilterWorkload) else _SEGMENTATION_ACCURACY


def _counts(config: RunConfig) -> Iterator[str]:
    work, batch = workload_of(config), config.global_batch_size
    yield from work.count_lines()
    if work.tokens is None:
        yield f"{'images in total':30}{batch * config.steps:>18,}  ({config.steps:,} steps of {batch:,})"
        return
    tokens = batch * work.tokens
    yield f"{'tokens per step':30}{tokens:>18,}  ({batch:,} windows)"
    yield f"{'tokens in total':30}{tokens * config.steps:>18,}  ({config.steps:,} steps)"
    yield f"{'tokens per parameter':30}{tokens * config.steps / work.parameters:>18,.3g}"


# ------------------------------------------------------------------------------------------------------------- memory


def _parts(config: RunConfig, machine: Machine) -> Iterator[str]:
    own = own_case(config, machine)
    size, (unit, name_of_unit) = own.micro_batch_size, _unit(config, own)
    widths = [max(9, len(name) + 2) for name in _COLUMNS]
    yield f"{name_of_unit} per GPU by part at micro_batch_size {size} (ckpt: engine.activation_checkpointing)"
    yield (
        "stage  ckpt" + "".join(f"{name:>{width}}" for name, width in zip(_COLUMNS, widths, strict=True)) + "     peak"
    )
    for case in _rows(config, machine):
        parts = memory(config, case)
        values = [getattr(parts, name) / unit for name in _COLUMNS]
        cells = "".join(f"{value:{width}.1f}" for value, width in zip(values, widths, strict=True))
        yield f"{_row_name(case)}{cells}{parts.peak / unit:9.1f}"
    yield "peak = weights + gradients + optimizer + max(buffers + activations + loss, update) + context + margin"


def _peaks(config: RunConfig, machine: Machine) -> Iterator[str]:
    share = config.global_batch_size // machine.gpus
    sizes = [size for size in (1, 2, 4, 8, 16, 32) if share % size == 0]
    unit, name_of_unit = _unit(config, own_case(config, machine))
    yield f"Peak {name_of_unit} per GPU by micro_batch_size (!: does not fit)"
    yield "stage  ckpt" + "".join(f"{size:>9} " for size in sizes) + "  largest that fits"
    for case in _rows(config, machine):
        peaks = [memory(config, replace(case, micro_batch_size=size)) for size in sizes]
        cells = "".join(f"{each.peak / unit:9.1f}{' ' if fits(each, machine) else '!'}" for each in peaks)
        largest = largest_micro_batch(config, case, machine)
        yield f"{_row_name(case)}{cells}  {largest or 'none'}{_note(case, config)}"


def _unit(config: RunConfig, case: Case) -> tuple[int, str]:
    """Return the unit of the tables, and its name: MiB where all but the context takes less than one GiB."""
    needed = memory(config, case)
    return (GIB, "GiB") if needed.peak - needed.context >= GIB else (2**20, "MiB")


def _rows(config: RunConfig, machine: Machine) -> Iterator[Case]:
    own = own_case(config, machine)
    for stage in (0, 1, 2, 3):
        for checkpointing in recomputations(config):
            yield at_stage(replace(own, checkpointing=checkpointing), stage)


def _row_name(case: Case) -> str:
    return f"{case.zero_stage:>5}  {'yes' if case.checkpointing else 'no':>4}"


def _note(case: Case, config: RunConfig) -> str:
    words = [word for word in settings(case, config) if word.startswith(("engine.gradient_dtype", "engine.compile"))]
    return f"  (needs {' '.join(words)})" if words else ""


def _measured_steps(case: Case, config: RunConfig) -> Iterator[str]:
    """Yield what measuring costs: step 1 is always measured, and measured blocks run uncompiled."""
    more = (memory(config, case).peak - memory(config, replace(case, measured=False)).peak) / GIB
    if more >= 0.05:
        yield f"Measured steps run uncompiled: {more:+.1f} GiB as configured; probes.activations_every=null avoids it."


# ------------------------------------------------------------------------------------------ settings and their time


def _own_setting(own: Plan, config: RunConfig, machine: Machine) -> Iterator[str]:
    words = f"stage {own.case.zero_stage}, micro_batch_size {own.case.micro_batch_size}"
    words += ", checkpointing" * own.case.checkpointing + ", optimizer offloaded" * own.case.offload
    verdict = "fits" if fits(own.memory, machine) else "does not fit"
    yield f"As configured ({words}): {own.memory.peak / GIB:.1f} of {machine.memory_gib:g} GiB; {verdict}."
    if fits(own.memory, machine):
        yield from _time(own, config)


def _recommended(best: Plan | None, config: RunConfig, machine: Machine) -> Iterator[str]:
    if best is None:
        yield "Recommended: nothing fits, not even stage 3 with the optimizer offloaded; use more GPUs (--gpus) or"
        yield f"  smaller samples ({_sample_size(config)})."
        return
    words = " ".join(settings(best.case, config))
    if not words:
        yield "Recommended: the configuration as is."
        return
    yield f"Recommended: {words}: {best.memory.peak / GIB:.1f} of {machine.memory_gib:g} GiB."
    yield from _time(best, config)
    if best.case.offload:
        state = best.case.optimizer.checkpoint_bytes * workload_of(config).parameters / GIB
        yield f"  Host memory for the optimizer state of all GPUs: {state:.1f} GiB; copying it is not in these seconds."


def _sample_size(config: RunConfig) -> str:
    return "task.data.crop" if workload_of(config).tokens is None else "task.data.sequence_length"


def _time(plan: Plan, config: RunConfig) -> Iterator[str]:
    work, case, time = workload_of(config), plan.case, plan.time
    counts = ((case.gpus, "GPU"), (num_passes(config, case), "pass"), (case.micro_batch_size, work.sample))
    yield f"  per step: {' x '.join(_count(number, word) for number, word in counts)}"
    yield f"  {_seconds(time.total)} a step: {_seconds(time.computation)} of computation{_waiting(plan)}"
    rate, unit = config.global_batch_size / time.total, f"{work.sample}s"
    if work.tokens is not None:
        rate, unit = rate * work.tokens, "tokens"
    yield f"  {_rate(rate)} {unit}/s, {_rate(rate / case.gpus)} per GPU; {_duration(config.steps * time.total)} in all"


def _waiting(plan: Plan) -> str:
    time = plan.time
    if not time.communication:
        return ""
    hidden = time.communication - time.exposed
    words = f" + {_seconds(time.exposed)} of communication ({100 * time.exposed / time.total:.0f} %)"
    return words + (f", {_seconds(hidden)} more hidden behind it" if hidden > 0 else "")


def _assumptions(case: Case, config: RunConfig, machine: Machine) -> Iterator[str]:
    work, card = workload_of(config), machine.card
    mfu = expected_mfu(config, case, machine)
    source = "as given" if machine.mfu is not None else "a guess; set your own with --mfu"
    yield f"Computation: an MFU of {mfu:.2g} ({source}) of the {card.name}'s {card.peak_flops / 1e12:g} TFLOP/s."
    yield f"  Assumed of other settings: {UNCOMPILED:g} of the speed without engine.compile{_if_recomputed(config)}."
    yield f"  A pass takes no less than launching its kernels: about {work.launches(case):,}, {1e6 * LAUNCH:g} us each."
    exchanged = transfers(work, case, passes=num_passes(config, case))
    if not exchanged:
        return
    yield "Communication: rings through all GPUs at the speed of the slowest link, without latency;"
    yield f"  {'computation hides what it can' if can_overlap(case) else 'no overlap with computation'}."
    yield from (f"  {words}" for words in machine.links_in_words())
    for transfer in exchanged:
        words = f"{transfer.what}, {_size(transfer.size)}"
        yield f"  {words:60}{_seconds(transfer.seconds(machine)):>10} a step"


def _if_recomputed(config: RunConfig) -> str:
    return f", {RECOMPUTING:g} with checkpointing" if len(recomputations(config)) > 1 else ""


# ------------------------------------------------------------------------------------------------------- sizes


def _sizes(config: RunConfig, machine: Machine) -> Iterator[str]:
    work, optimizer = workload_of(config), OPTIMIZERS[config.optim.optimizer]
    state = optimizer.checkpoint_bytes * work.parameters + 4 * work.buffers
    keep = config.checkpoint.keep
    saves = -(-config.steps // config.checkpoint.every)
    most = saves if keep is None else min(saves, keep + 1)
    yield f"Checkpoint: {_size(state)} (weight and {optimizer.state_in_words} in fp32)."
    yield f"  On disk: at most {most} at a time (checkpoint.keep plus the one being written): {_size(most * state)}."
    ranks = min(machine.gpus, machine.gpus_per_node)
    yield f"  In host memory, until written: {_size(state * ranks / machine.gpus)} per node of {_count(ranks, 'GPU')}."
    exported = work.exported_itemsize * (work.parameters + work.buffers)
    yield f"  As {'a bf16' if work.exported_itemsize == 2 else 'an fp32'} folder: {_size(exported)}."


def _size(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _duration(seconds: float) -> str:
    for unit, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.1f} seconds"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{('es' if word == 'pass' else 's') * (number != 1)}"
