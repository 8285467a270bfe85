"""What no single type can say: ranges, what goes together, and settings that a configuration never reads.

A rule is a function of the configuration's valid values by their paths. One that asks for a value that is wrong or
belongs to another task ends there: its turn comes when the value is right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from train.config.run import DEFAULT_DECAY, EngineConfig, ProbesConfig, as_steps
from train.config.setting import default_of
from train.config.tasks.kinds import TASK_RULES
from train.config.values import AbsentError, Rule, Values


def broken_rules(leaves: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong among values that are valid by themselves, each fault with its path and its remedy.

    Args:
        leaves: Valid values by path, as `train.config.schema.check` returns them.
    """
    values = Values(leaves)
    for rule in (*RULES, *TASK_RULES.get(values.get("task.kind", ""), ())):
        try:
            yield from rule(values)
        except AbsentError:
            continue


def _name_is_a_folder_name(values: Values) -> Iterator[str]:
    name = values["name"]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        usable = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:100] or "my-run"
        yield f"name: {name!r} names a folder; write letters, digits, '.', '_' and '-' only, as in {usable}"


def _batches_fit(values: Values) -> Iterator[str]:
    micro, whole = values["micro_batch_size"], values["global_batch_size"]
    if micro > whole:
        yield f"micro_batch_size: {micro} is more than global_batch_size {whole}; write {whole} or less"


def _start_is_a_checkpoint(values: Values) -> Iterator[str]:
    start = values["checkpoint.start_from"]
    if start is not None and not re.fullmatch(r".+@\d+|[^@]+|.*@.*/.*", start):
        yield (
            f"checkpoint.start_from: {start!r} is neither RUN@STEP (runs/a@500) nor a Hugging Face folder; "
            f"write the step as a number"
        )


def _spans_fit(values: Values) -> Iterator[str]:
    """Warm-up and decay, fractions of the run or steps, lie within it and one after the other."""
    steps, faults = values["steps"], False
    warmup, decay = values["optim.warmup"], values["optim.decay"]
    for path, span in (("optim.warmup", warmup), ("optim.decay", decay or 0)):
        if isinstance(span, float) and not 0 <= span < 1:
            faults = True
            whole = f", or steps without a point: {span:.0f}" if span.is_integer() and span > 0 else ""
            yield f"{path}: {span} is not a fraction of the run; write a number from 0 to below 1{whole}"
        elif not 0 <= span <= steps:
            faults = True
            yield f"{path}: {span} steps do not lie within the run's {steps}; write 0 to {steps}, or a fraction of it"
    if faults or values["optim.schedule"] != "warmup_stable_decay":
        return
    first, last = as_steps(warmup, steps), as_steps(DEFAULT_DECAY if decay is None else decay, steps)
    if first + last > steps:
        yield f"optim.decay: {last} steps after {first} of optim.warmup are more than the run's {steps}; lower one"


def _schedule_reads_its_keys(values: Values) -> Iterator[str]:
    schedule, final = values["optim.schedule"], values["optim.final_lr_fraction"]
    if final and schedule == "constant":
        yield "optim.final_lr_fraction: has no effect on optim.schedule constant; write 0, or another schedule"
    elif final and schedule == "step":
        yield "optim.final_lr_fraction: has no effect on optim.schedule step; write 0, and see optim.decay_factor"
    if values["optim.decay"] is not None and schedule != "warmup_stable_decay":
        yield f"optim.decay: has no effect on optim.schedule {schedule}; leave it out, or write warmup_stable_decay"


def _steps_down_are_told(values: Values) -> Iterator[str]:
    schedule = values["optim.schedule"]
    for key, example in (("decay_every", "10000"), ("decay_factor", "0.2")):
        given = values[f"optim.{key}"] is not None
        if given and schedule != "step":
            yield f"optim.{key}: has no effect on optim.schedule {schedule}; leave it out, or write optim.schedule=step"
        elif not given and schedule == "step":
            yield f"optim.{key}: missing; optim.schedule step needs it, like {example}"


def _stage_0_partitions_nothing(values: Values) -> Iterator[str]:
    if values["engine.zero_stage"] != 0:
        return
    for key in ("offload", "overlap_communication", "reduce_bucket_size"):
        if values[f"engine.{key}"] != default_of(EngineConfig, key):
            yield f"engine.{key}: has no effect at engine.zero_stage 0; leave it out, or write engine.zero_stage=1"


def _spikes_have_a_window(values: Values) -> Iterator[str]:
    window, threshold = values["probes.spike_window"], values["probes.spike_threshold"]
    if threshold is None and window != default_of(ProbesConfig, "spike_window"):
        yield "probes.spike_window: has no effect as probes.spike_threshold is null; leave it out, or set a threshold"


def _stage_3_is_not_compiled(values: Values) -> Iterator[str]:
    if values["engine.compile"] and values["engine.zero_stage"] == 3:
        yield (
            "engine.compile: not supported at engine.zero_stage 3: ZeRO-3 gathers weights in hooks that torch.compile "
            "cannot trace; use zero_stage <= 2 or compile=false"
        )


RULES: tuple[Rule, ...] = (
    _name_is_a_folder_name,
    _batches_fit,
    _start_is_a_checkpoint,
    _spans_fit,
    _schedule_reads_its_keys,
    _steps_down_are_told,
    _stage_0_partitions_nothing,
    _spikes_have_a_window,
    _stage_3_is_not_compiled,
)
