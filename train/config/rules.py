"""Cross-field checks for run configurations: ranges, compatible settings, and settings that would be ignored.

A rule is a function of the configuration's valid values by path. A rule that reads a missing or invalid value, or one
of another task, is skipped; it runs once that value is fixed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from train.config.facts.folders import named_checkpoint
from train.config.facts.optimizers import LARGEST_GRADIENT_NORM, OPTIMIZERS
from train.config.run import DEFAULT_DECAY, EngineConfig, OptimConfig, ProbesConfig, as_steps
from train.config.setting import default_of
from train.config.tasks.kinds import LARGEST_LR_FACTORS, TASK_RULES
from train.config.tasks.values import AbsentError, Rule, Values

_MOST_COUNTED = 2**63 - 1
_LONGEST_NAME = 255  # of a file, in bytes: that of common file systems
_LICENSE = r"[a-z0-9]+([.-][a-z0-9]+)*"  # identifiers of the hub: lower case, as in apache-2.0, bsd-3-clause, other
_LARGEST_WEIGHT = 1e37  # fp32 ends at 3.4e38


def broken_rules(leaves: Mapping[str, Any]) -> Iterator[str]:
    """Yield the faults in the combination of individually valid values, each with its path and its remedy.

    Args:
        leaves: Valid values by path, as returned by `train.config.schema.check`.
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
        yield f"name: {name!r} cannot be a folder name; use only letters, digits, '.', '_' and '-', as in {usable}"


def _paths_can_exist(values: Values) -> Iterator[str]:
    for key in ("output_dir", "task.data.cache_dir", "checkpoint.start_from"):
        path = values.get(key)
        if path is not None and any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.split("/")):
            yield f"{key}: a folder's name is longer than {_LONGEST_NAME} bytes; write a shorter one"


def _license_is_an_identifier(values: Values) -> Iterator[str]:
    name = values["export.license"]
    if name is not None and not re.fullmatch(_LICENSE, name):
        usable = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
        like = usable if re.fullmatch(_LICENSE, usable) else "apache-2.0"
        yield (
            f"export.license: {name!r} is not an identifier of the hub (lower case, no spaces: apache-2.0, mit, "
            f"cc-by-4.0, other); write one like {like}, or null"
        )


def _batches_fit(values: Values) -> Iterator[str]:
    micro, whole = values["micro_batch_size"], values["global_batch_size"]
    if micro > whole:
        yield f"micro_batch_size: {micro} exceeds global_batch_size ({whole}); write {whole} or less"


def _samples_can_be_counted(values: Values) -> Iterator[str]:
    """Samples and tokens of a run are counted in 64 bits."""
    samples, length = values["steps"] * values["global_batch_size"], values.get("task.data.sequence_length", 1)
    if samples * length > _MOST_COUNTED:
        what = f"{samples:.3g} samples" + f" of {length} tokens" * (length > 1)
        yield f"steps: the run would see {what}, more than 64 bits can count; lower steps or global_batch_size"


def _start_is_a_checkpoint(values: Values) -> Iterator[str]:
    start = values["checkpoint.start_from"]
    if start is None or named_checkpoint(start) is not None or os.path.isdir(start):
        return
    if "@" in start.rpartition("/")[2]:
        yield (
            f"checkpoint.start_from: {start!r} is neither RUN@STEP (runs/a@500) nor a Hugging Face folder; "
            f"write the step as a number"
        )


def _spans_fit(values: Values) -> Iterator[str]:
    """Warm-up and decay, as fractions of the run or in steps, fit into the run without overlapping."""
    steps, faults = values["steps"], False
    warmup, decay = values["optim.warmup"], values["optim.decay"]
    for path, span in (("optim.warmup", warmup), ("optim.decay", decay or 0)):
        if isinstance(span, float) and not 0 <= span < 1:
            faults = True
            whole = (
                f", or a number of steps without a decimal point: {span:.0f}" if span.is_integer() and span > 0 else ""
            )
            yield f"{path}: {span} is not a fraction of the run; write a number from 0 to below 1{whole}"
        elif not 0 <= span <= steps:
            faults = True
            yield f"{path}: {span} steps do not fit into a run of {steps}; write 0 to {steps}, or a fraction of the run"
    if faults or values["optim.schedule"] != "warmup_stable_decay":
        return
    first, last = as_steps(warmup, steps), as_steps(DEFAULT_DECAY if decay is None else decay, steps)
    if first + last > steps:
        yield f"optim.decay: {last} steps plus {first} of optim.warmup exceed the run's {steps}; lower one of them"


def _optimizer_reads_its_settings(values: Values) -> Iterator[str]:
    chosen = OPTIMIZERS[values["optim.optimizer"]]
    of_others = {key for facts in OPTIMIZERS.values() for key in facts.settings} - set(chosen.settings)
    for key in sorted(of_others):
        if values[f"optim.{key}"] != default_of(OptimConfig, key):
            readers = [name for name, facts in OPTIMIZERS.items() if key in facts.settings]
            yield (
                f"optim.{key}: has no effect with optim.optimizer {chosen.name}; remove it, or write "
                f"optim.optimizer={' or '.join(readers)}"
            )


def _schedule_reads_its_keys(values: Values) -> Iterator[str]:
    schedule, final = values["optim.schedule"], values["optim.final_lr_fraction"]
    if final and schedule == "constant":
        yield "optim.final_lr_fraction: has no effect with optim.schedule constant; write 0, or choose another schedule"
    elif final and schedule == "step":
        yield "optim.final_lr_fraction: has no effect with optim.schedule step; write 0, and set optim.decay_factor"
    elif final and schedule == "poly":
        yield (
            "optim.final_lr_fraction: has no effect with optim.schedule poly, whose last rate follows from steps and "
            "optim.poly_power; write 0"
        )
    if values["optim.poly_power"] is not None and schedule != "poly":
        yield f"optim.poly_power: has no effect with optim.schedule {schedule}; remove it, or write optim.schedule=poly"
    if values["optim.decay"] is not None and schedule != "warmup_stable_decay":
        yield f"optim.decay: has no effect with optim.schedule {schedule}; remove it, or use warmup_stable_decay"


def _step_decay_is_complete(values: Values) -> Iterator[str]:
    schedule = values["optim.schedule"]
    for key, example in (("decay_every", "10000"), ("decay_factor", "0.2")):
        is_set = values[f"optim.{key}"] is not None
        if is_set and schedule != "step":
            yield f"optim.{key}: has no effect with optim.schedule {schedule}; remove it, or write optim.schedule=step"
        elif not is_set and schedule == "step":
            yield f"optim.{key}: missing; optim.schedule step requires it, for example {example}"


def _stage_0_partitions_nothing(values: Values) -> Iterator[str]:
    if values["engine.zero_stage"] != 0:
        return
    for key in ("offload", "overlap_communication", "reduce_bucket_size"):
        if values[f"engine.{key}"] != default_of(EngineConfig, key):
            yield f"engine.{key}: has no effect at engine.zero_stage 0; remove it, or write engine.zero_stage=1"


def _spikes_have_a_window(values: Values) -> Iterator[str]:
    window, threshold = values["probes.spike_window"], values["probes.spike_threshold"]
    if threshold is None and window != default_of(ProbesConfig, "spike_window"):
        yield "probes.spike_window: has no effect while probes.spike_threshold is null; remove it, or set a threshold"


def _measured_layers_have_windows(values: Values) -> Iterator[str]:
    windows, every = values["probes.layer_windows"], values["probes.layers_every"]
    if every is None and windows != default_of(ProbesConfig, "layer_windows"):
        yield "probes.layer_windows: has no effect while probes.layers_every is null; remove it, or set an interval"


def _stage_3_is_not_compiled(values: Values) -> Iterator[str]:
    if values["engine.compile"] and values["engine.zero_stage"] == 3:
        yield (
            "engine.compile: not supported at engine.zero_stage 3, which gathers weights in hooks that torch.compile "
            "cannot trace; use engine.zero_stage 2 or less, or engine.compile=false"
        )


def _largest_rate(values: Values) -> tuple[float, str]:
    """Return the largest learning rate of any weight in any step, and what it is made of."""
    factor = LARGEST_LR_FACTORS.get(values["task.kind"], 1.0)
    words = "optim.lr" if factor == 1 else f"{factor:g} (the task's largest factor of the rate) times optim.lr"
    return factor * values["optim.lr"], words


def _updates_stay_finite(values: Values) -> Iterator[str]:
    """Refuse settings with which an optimizer could make a weight infinite; no update needs to be checked then."""
    (rate, words), eps, clipping = _largest_rate(values), values["optim.eps"], values["optim.gradient_clipping"]
    norm = LARGEST_GRADIENT_NORM if clipping is None else min(clipping, LARGEST_GRADIENT_NORM)
    optimizer, steps = OPTIMIZERS[values["optim.optimizer"]], values["steps"]
    largest = steps * optimizer.largest_update(rate, norm, eps)
    if largest <= _LARGEST_WEIGHT:
        return
    if "eps" in optimizer.settings:
        enough = steps * optimizer.largest_update(rate, norm, 1.0) / _LARGEST_WEIGHT
        yield (
            f"optim.eps: {eps:g} lets updates add up to {largest:.1e} in {steps} steps (each is at most {words} times "
            f"the clipped gradient over eps), beyond fp32; write {enough:.1e} or more, or lower optim.lr"
        )
    else:
        lr = values["optim.lr"]
        enough = 0.95 * lr * _LARGEST_WEIGHT / largest  # within the bound when rounded to two digits, too
        yield (
            f"optim.lr: {lr:g} lets updates add up to {largest:.1e} in {steps} steps, beyond fp32; write {enough:.1e} "
            f"or less, or lower optim.gradient_clipping"
        )


def _decay_shrinks_weights(values: Values) -> Iterator[str]:
    rate, words = _largest_rate(values)
    for key in ("weight_decay", "embedding_weight_decay", "output_norm_weight_decay"):
        decay = values[f"optim.{key}"]
        if decay is not None and rate * decay >= 1:
            yield (
                f"optim.{key}: {decay:g} times {words} {values['optim.lr']:g} is 1 or more, which turns a weight's "
                f"sign instead of shrinking it; write less than {1 / rate:g}"
            )


RULES: tuple[Rule, ...] = (
    _name_is_a_folder_name,
    _paths_can_exist,
    _license_is_an_identifier,
    _batches_fit,
    _samples_can_be_counted,
    _start_is_a_checkpoint,
    _spans_fit,
    _optimizer_reads_its_settings,
    _schedule_reads_its_keys,
    _step_decay_is_complete,
    _stage_0_partitions_nothing,
    _spikes_have_a_window,
    _measured_layers_have_windows,
    _stage_3_is_not_compiled,
    _updates_stay_finite,
    _decay_shrinks_weights,
)
