"""Resource plan of a run: `python -m launch plan CONFIG [key=value ...] [--gpus N] [--gpu-memory GiB]`.

Parameters, FLOPs, memory per GPU by part for every ZeRO stage and micro-batch size, hours, checkpoint sizes, and a
recommended setting. Everything is computed in closed form, without a GPU: the decoder's facts provide the counts and
launch/plan/memory.py the memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from launch.plan import shape
from launch.plan.memory import GIB, Case, Memory, at_stage, case_of, memory
from modeling.decoder.facts_counts_periln import count_frozen_scales, count_parameters, flops_per_token
from train.config.batch import micro_batches
from train.config.errors import ConfigError
from train.config.facts.hardware import PEAK_FLOPS
from train.config.facts.optimizers import OPTIMIZERS
from train.config.load import load
from train.config.run import RunConfig

HEADROOM = 0.08  # share of a GPU's memory that a recommendation leaves free, to cover the error of the estimate
DEFAULT_MFU = 0.4  # typical of compiled bf16 training of such models on an H100; recomputation costs a quarter of it
# Measured by tests/launch/plan/test_memory.py: 44 combinations of stage, precision, ranks and checkpointing.
ACCURACY = (
    "measured against the real peak of a small uncompiled decoder on the CPU, the estimate was between 1 % too low "
    "and 15 % too high, context and margin excluded\n  (exceptions, with checkpointing in fp32: 42 % too high at "
    "stage 3, 9 % too low at stage 2 with buckets smaller than the model); "
    "not yet compared with a GPU: allow for 10 %, and watch peak_memory_gib in metrics.jsonl."
)


class Plan(NamedTuple):
    """One way to run a configuration, with its memory."""

    case: Case
    memory: Memory


class Machine(NamedTuple):
    """The GPUs that a run is planned for."""

    gpus: int
    memory_gib: float
    kind: str
    mfu: float | None  # None: DEFAULT_MFU


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code.

    Raises:
        ConfigError: The arguments or the configuration are invalid.
    """
    parser = argparse.ArgumentParser(
        prog="python -m launch plan",
        description="Estimate parameters, memory, time and file sizes of a run without a GPU, and recommend a setting.",
    )
    parser.add_argument("config", help="YAML file, e.g. configs/language_model/400m.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings to override, e.g. engine.zero_stage=2"
    )
    parser.add_argument("--gpus", type=int, default=1, help="number of GPUs (default: 1)")
    parser.add_argument("--gpu-memory", type=float, default=80, metavar="GiB", help="memory per GPU (default: 80)")
    parser.add_argument("--gpu", default="H100", help=f"GPU type: {', '.join(PEAK_FLOPS)} (default: H100)")
    parser.add_argument("--mfu", type=float, help=f"expected share of the peak FLOP/s (default: {DEFAULT_MFU})")
    options = parser.parse_intermixed_args(arguments)
    faults = list(_faults(options))
    try:
        config = load(options.config, options.overrides)
    except ConfigError as error:
        raise ConfigError([*error.faults, *faults]) from None
    if faults:
        raise ConfigError(faults)
    micro_batches(config, options.gpus)  # refuses a number that does not divide the global batch
    machine = Machine(options.gpus, options.gpu_memory, options.gpu, options.mfu)
    print("\n".join(report(config, machine)))
    return 0


def _faults(options: argparse.Namespace) -> Iterator[str]:
    if options.gpus < 1:
        yield f"--gpus: {options.gpus} is too small; write 1 or more"
    if not 0 < options.gpu_memory < 1e6:
        yield f"--gpu-memory: {options.gpu_memory:g} GiB is out of range; write a number like 80"
    if options.mfu is not None and not 0 < options.mfu <= 1:
        yield f"--mfu: {options.mfu:g} is out of range; write a number above 0 and at most 1, like {DEFAULT_MFU}"
    if options.gpu not in PEAK_FLOPS:
        yield f"--gpu: the peak FLOP/s of {options.gpu!r} are unknown; write one of {', '.join(PEAK_FLOPS)}"


def report(config: RunConfig, machine: Machine) -> Iterator[str]:
    """Yield the lines of the plan."""
    own = _plan(config, _own_case(config, machine))
    precision = "bf16" if own.case.bf16 else "fp32"
    where = f"{machine.gpus} GPU{'s' * (machine.gpus > 1)} of {machine.memory_gib:g} GiB"
    length = shape.decoder_task(config).data.sequence_length
    yield f"{config.name} on {where} ({machine.kind}), {precision}, windows of {length} tokens"
    yield ""
    yield from _counts(config)
    yield ""
    yield from _parts(config, machine)
    yield ""
    yield from _peaks(config, machine)
    yield ""
    yield from _own_setting(own, config, machine)
    best = recommend(config, machine)
    yield from _recommended(best, config, machine)
    yield ""
    yield from _sizes(config)
    yield f"Accuracy: {ACCURACY}"


# ------------------------------------------------------------------------------------------------------ recommendation


def recommend(config: RunConfig, machine: Machine) -> Plan | None:
    """Return the fastest way to run that fits with headroom, or None if nothing does.

    Recomputation costs a third more operations; stage 3 costs the compiler and gathers all weights in every pass;
    offloading copies over the bus in every step. Other things being equal, a lower stage wins: it communicates less.
    A single GPU does not communicate at all, so there the stage with the largest micro-batch wins, and the configured
    one in a tie.
    """
    own = _own_case(config, machine)
    careful = machine._replace(memory_gib=machine.memory_gib * (1 - HEADROOM))
    for ways in _ways(own):
        fitting: list[Plan] = []
        for case in ways:
            largest = largest_micro_batch(config, case, careful)
            if largest:
                fitting.append(_plan(config, replace(case, micro_batch_size=largest)))
        if fitting and machine.gpus > 1:
            return fitting[0]
        if fitting:
            return max(fitting, key=lambda p: (p.case.micro_batch_size, p.case.zero_stage == own.zero_stage))
    return None


def _ways(own: Case) -> Iterator[list[Case]]:
    """Yield ways to run, grouped by similar speed, the fastest group first."""
    stages = (1, 2) if own.bf16 and own.fp32_gradients else (0, 1, 2)
    saved, recomputed = (_at(own, stages, checkpointing=chosen, offload=False) for chosen in (False, True))
    gathered = _at(own, (3,), checkpointing=False, offload=False)
    yield saved
    yield from (recomputed, gathered) if own.compiled else (gathered, recomputed)
    yield _at(own, (3,), checkpointing=True, offload=False)
    for chosen in (False, True):
        yield _at(own, (1, 2, 3), checkpointing=chosen, offload=True)


def _at(own: Case, stages: Sequence[int], *, checkpointing: bool, offload: bool) -> list[Case]:
    return [at_stage(replace(own, checkpointing=checkpointing, offload=offload), stage) for stage in stages]


def largest_micro_batch(config: RunConfig, case: Case, machine: Machine) -> int:
    """Return the largest micro-batch that divides a GPU's share of the global batch and fits, or 0 if none does."""
    share = config.global_batch_size // machine.gpus
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    fitting = [size for size in sizes if _fits(_plan(config, replace(case, micro_batch_size=size)), machine)]
    return max(fitting, default=0)


def _own_case(config: RunConfig, machine: Machine) -> Case:
    size, _ = micro_batches(config, machine.gpus)
    return case_of(config, gpus=machine.gpus, micro_batch_size=size)


def _plan(config: RunConfig, case: Case) -> Plan:
    return Plan(case, memory(config, case))


def _fits(plan: Plan, machine: Machine) -> bool:
    return plan.memory.peak <= machine.memory_gib * GIB


def settings(case: Case, config: RunConfig) -> list[str]:
    """Return the `key=value` overrides that turn a configuration into this case, without those that change nothing."""
    engine = config.engine
    own = case_of(config, gpus=case.gpus, micro_batch_size=config.micro_batch_size)
    words = [
        (case.zero_stage != own.zero_stage, f"engine.zero_stage={case.zero_stage}"),
        (case.checkpointing != own.checkpointing, f"engine.activation_checkpointing={_yaml(case.checkpointing)}"),
        (case.offload != own.offload, f"engine.offload={'optimizer' if case.offload else 'none'}"),
        (case.compiled != own.compiled, f"engine.compile={_yaml(case.compiled)}"),
        (case.fp32_gradients != own.fp32_gradients, "engine.gradient_dtype=bf16"),
        (case.micro_batch_size != own.micro_batch_size, f"micro_batch_size={case.micro_batch_size}"),
    ]
    if case.zero_stage == 0:
        words += [
            (case.overlap != own.overlap, "engine.overlap_communication=false"),
            (engine.reduce_bucket_size != 500_000_000, "engine.reduce_bucket_size=500_000_000"),
        ]
    return [word for changed, word in words if changed]


def _yaml(value: bool) -> str:
    return "true" if value else "false"


# ------------------------------------------------------------------------------------------------------------- output


def _counts(config: RunConfig) -> Iterator[str]:
    counts, length = count_parameters(shape.decoder_shape(config)), shape.decoder_task(config).data.sequence_length
    for name in ("embedding", "head", "attention", "mlp", "norms"):
        note = "  (tied to the embedding)" if name == "head" and not counts.head else ""
        yield f"{name:30}{getattr(counts, name):>16,}{note}"
    yield f"{'parameters':30}{counts.total:>16,}"
    yield f"{'  without embedding and head':30}{counts.without_vocabulary:>16,}"
    flops = flops_per_token(shape.decoder_shape(config), length)
    yield f"{'training FLOPs per token':30}{flops:>16,.0f}  (6 N + 6 L H K T, causal attention counted once)"
    tokens = config.global_batch_size * length
    yield f"{'tokens per step':30}{tokens:>16,}  ({config.global_batch_size:,} windows)"
    yield f"{'tokens in total':30}{tokens * config.steps:>16,}  ({config.steps:,} steps)"


_COLUMNS = ("weights", "gradients", "optimizer", "buffers", "activations", "loss", "update", "context", "margin")


def _parts(config: RunConfig, machine: Machine) -> Iterator[str]:
    size = _own_case(config, machine).micro_batch_size
    yield f"GiB per GPU by part at micro_batch_size {size} (ckpt: engine.activation_checkpointing)"
    yield "stage   ckpt" + "".join(f"{name:>12}" for name in _COLUMNS) + f"{'peak':>9}"
    for case in _rows(config, machine):
        parts = memory(config, case)
        cells = "".join(f"{getattr(parts, name) / GIB:12.1f}" for name in _COLUMNS)
        yield f"{_row_name(case)}{cells}{parts.peak / GIB:9.1f}"
    yield "peak = weights + gradients + optimizer + max(buffers + activations + loss, update) + context + margin"


def _peaks(config: RunConfig, machine: Machine) -> Iterator[str]:
    share = config.global_batch_size // machine.gpus
    sizes = [size for size in (1, 2, 4, 8, 16, 32) if share % size == 0]
    yield "Peak GiB per GPU by micro_batch_size (!: does not fit)"
    yield "stage   ckpt" + "".join(f"{size:>10}" for size in sizes) + "   largest that fits"
    for case in _rows(config, machine):
        plans = [_plan(config, replace(case, micro_batch_size=size)) for size in sizes]
        cells = "".join(f"{p.memory.peak / GIB:9.1f}{' ' if _fits(p, machine) else '!'}" for p in plans)
        largest = largest_micro_batch(config, case, machine)
        yield f"{_row_name(case)}{cells}   {largest or 'none'}{_note(case, config)}"


def _rows(config: RunConfig, machine: Machine) -> Iterator[Case]:
    own = _own_case(config, machine)
    for stage in (0, 1, 2, 3):
        for checkpointing in (False, True):
            yield at_stage(replace(own, checkpointing=checkpointing), stage)


def _row_name(case: Case) -> str:
    return f"{case.zero_stage:>5}  {'yes' if case.checkpointing else 'no':>5}"


def _note(case: Case, config: RunConfig) -> str:
    words = [word for word in settings(case, config) if word.startswith(("engine.gradient_dtype", "engine.compile"))]
    return f"  (needs {' '.join(words)})" if words else ""


def _own_setting(own: Plan, config: RunConfig, machine: Machine) -> Iterator[str]:
    words = f"stage {own.case.zero_stage}, micro_batch_size {own.case.micro_batch_size}"
    words += ", checkpointing" * own.case.checkpointing + ", optimizer offloaded" * own.case.offload
    verdict = "fits" if _fits(own, machine) else "does not fit"
    yield f"As configured ({words}): {own.memory.peak / GIB:.1f} of {machine.memory_gib:g} GiB; {verdict}."
    if _fits(own, machine):
        yield f"  {_passes(own.case, config)}; {_hours(own.case, config, machine)}"


def _recommended(best: Plan | None, config: RunConfig, machine: Machine) -> Iterator[str]:
    if best is None:
        yield "Recommended: nothing fits, not even stage 3 with checkpointing and the optimizer offloaded; use more"
        yield "  GPUs (--gpus) or shorter windows (task.data.sequence_length)."
        return
    words = " ".join(settings(best.case, config)) or "the configuration as is"
    yield f"Recommended: {words}: {best.memory.peak / GIB:.1f} of {machine.memory_gib:g} GiB."
    yield f"  {_passes(best.case, config)}; {_hours(best.case, config, machine)}"
    if best.case.offload:
        parameters = count_parameters(shape.decoder_shape(config)).total
        state = best.case.optimizer.checkpoint_bytes * parameters / GIB
        yield f"  Host memory for the optimizer state of all GPUs: {state:.1f} GiB."


def _passes(case: Case, config: RunConfig) -> str:
    passes = config.global_batch_size // case.gpus // case.micro_batch_size
    counts = ((case.gpus, "GPU"), (passes, "pass"), (case.micro_batch_size, "window"))
    return "per step: " + " x ".join(f"{n} {word}{('es' if word == 'pass' else 's') * (n > 1)}" for n, word in counts)


def _hours(case: Case, config: RunConfig, machine: Machine) -> str:
    length = shape.decoder_task(config).data.sequence_length
    work = config.steps * config.global_batch_size * length * flops_per_token(shape.decoder_shape(config), length)
    mfu = machine.mfu if machine.mfu is not None else DEFAULT_MFU * (0.75 if case.checkpointing else 1)
    hours = work / (machine.gpus * PEAK_FLOPS[machine.kind] * mfu) / 3600
    source = "as given" if machine.mfu is not None else "a guess; set your own with --mfu"
    time = f"{hours:,.1f} hours" if hours >= 1 else f"{max(1, round(hours * 60))} minutes or less"
    return f"{time} at an MFU of {mfu:g} ({source}) and a peak of {PEAK_FLOPS[machine.kind] / 1e12:g} TFLOP/s"


def _sizes(config: RunConfig) -> Iterator[str]:
    model = shape.decoder_shape(config)
    counts, frozen = count_parameters(model).total, count_frozen_scales(model)
    optimizer = OPTIMIZERS[config.optim.optimizer]
    state, exported = optimizer.checkpoint_bytes * counts + 4 * frozen, 2 * (counts + frozen)
    keep = config.checkpoint.keep
    saves = -(-config.steps // config.checkpoint.every)
    most = saves if keep is None else min(saves, keep + 1)
    yield (
        f"Checkpoint: {state / 1e9:.2f} GB (weight and {optimizer.state_in_words} in fp32); at most {most} at a time "
        f"(checkpoint.keep plus the one being written): {most * state / 1e9:.1f} GB. "
        f"As a bf16 folder: {exported / 1e9:.2f} GB."
    )
