"""What no single type can say: ranges, what goes together, and settings that a configuration never reads.

A rule is a function of the configuration's valid values by their paths. One that asks for a value that is wrong or
belongs to another task ends there: its turn comes when the value is right.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

# Where zero looks natural but null is meant.
_ZERO_MEANS = {
    "optim.gradient_clipping": "write null for no clipping",
    "checkpoint.keep": "write null to keep all",
    "checkpoint.stop_deadline": "write null for no limit",
    "checkpoint.weights_every": "write null for never",
    "probes.activations_every": "write null for never",
    "probes.gradients_every": "write null for never",
    "probes.spike_threshold": "write null to look for none",
    "task.data.num_workers": "write null for one per core",
    "task.data.validation_windows": "write null for all",
    "watchdog.preparation": "write null for no deadline",
    "watchdog.first_step": "write null for no deadline",
    "watchdog.step": "write null for no deadline",
    "watchdog.evaluation": "write null for no deadline",
    "watchdog.save": "write null for no deadline",
}
_AT_LEAST_ONE = (
    "steps",
    "global_batch_size",
    "micro_batch_size",
    "log_every",
    "evaluate_every",
    "probes.activations_every",
    "probes.gradients_every",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.weights_every",
    "engine.reduce_bucket_size",
    "optim.stop_after_skipped_steps",
    "task.data.sequence_length",
    "task.data.validation_windows",
    "task.data.num_workers",
    "task.model.vocab_size",
    "task.model.vocab_size_multiple",
    "task.model.hidden_size",
    "task.model.intermediate_size",
    "task.model.num_hidden_layers",
    "task.model.num_attention_heads",
    "task.model.num_key_value_heads",
    "task.model.head_dim",
    "task.model.max_position_embeddings",
)
_ABOVE_ZERO = (
    "optim.lr",
    "optim.eps",
    "optim.gradient_clipping",
    "checkpoint.stop_deadline",
    "probes.spike_threshold",
    "watchdog.preparation",
    "watchdog.first_step",
    "watchdog.step",
    "watchdog.evaluation",
    "watchdog.save",
    "task.model.norm_eps",
    "task.model.initializer_range",
)
_NOT_NEGATIVE = (
    "seed",
    "task.data.seed",
    "optim.weight_decay",
    "optim.embedding_weight_decay",
    "optim.output_norm_weight_decay",
    "task.model.z_loss_coefficient",
)
# transformers knows more (ACT2FN); these are differentiable elementwise functions that make a gate.
_ACTIVATIONS = (
    "gelu",
    "gelu_fast",
    "gelu_new",
    "gelu_pytorch_tanh",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
    "tanh",
)

# What each kind of RoPE scaling needs, and may have beside it (transformers.modeling_rope_utils).
_ROPE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "truncate",
            "mscale",
            "mscale_all_dim",
        ),
    ),
}

_STDLIB = "python-stdlib"
_SMALLEST_SPIKE_WINDOW, _DEFAULT_SPIKE_WINDOW = 20, 100
_SMALLEST_BPE = 257  # 256 bytes and the end of a document


def broken_rules(leaves: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong among values that are valid by themselves, each fault with its path and its remedy.

    Args:
        leaves: Valid values by path, as `train.schema.check` returns them.
    """
    values = Values(leaves)
    yield from _out_of_range(values)
    for rule in RULES:
        try:
            yield from rule(values)
        except _AbsentError:
            continue


class _AbsentError(Exception):
    """A rule asked for a value that is not there, or is wrong by itself."""


class Values(dict[str, Any]):
    """Valid values by path."""

    def __missing__(self, path: str) -> Any:
        raise _AbsentError(path)


def _out_of_range(values: Values) -> Iterator[str]:
    """Yield what lies outside its range, and take it out of the values, so that no rule trips over it."""
    for paths, allowed, smallest in (
        (_AT_LEAST_ONE, "write a whole number of at least 1", 1),
        (_ABOVE_ZERO, "write a number above 0", None),
        (_NOT_NEGATIVE, "write 0 or more", 0),
    ):
        for path in paths:
            value = values.get(path)
            if value is None or (value > 0 if smallest is None else value >= smallest):
                continue
            remedy = _ZERO_MEANS.get(path, allowed) if value == 0 else allowed
            yield f"{path}: {values.pop(path)} is too small; {remedy}"


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


def _heads_divide(values: Values) -> Iterator[str]:
    heads, groups = values["task.model.num_attention_heads"], values["task.model.num_key_value_heads"]
    if heads % groups:
        allowed = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        yield (
            f"task.model.num_key_value_heads: {groups} does not divide num_attention_heads {heads}; "
            f"write one of {allowed}"
        )


def _head_width_is_even(values: Values) -> Iterator[str]:
    width, heads, hidden = (values[f"task.model.{key}"] for key in ("head_dim", "num_attention_heads", "hidden_size"))
    if width is None and hidden % heads:
        yield (
            f"task.model.num_attention_heads: {heads} does not divide hidden_size {hidden}; "
            f"write a divisor, or give task.model.head_dim"
        )
    elif width is None and hidden // heads % 2:
        yield (
            f"task.model.num_attention_heads: {heads} heads are {hidden // heads} wide each, but rotary positions "
            f"turn pairs; give an even task.model.head_dim"
        )
    elif width is not None and width % 2:
        yield f"task.model.head_dim: {width} is odd, but rotary positions turn pairs; write {width - 1} or {width + 1}"


def _activation_is_known(values: Values) -> Iterator[str]:
    name: str = values["task.model.hidden_act"]
    if name not in _ACTIVATIONS:
        near = difflib.get_close_matches(name, _ACTIVATIONS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield f"task.model.hidden_act: {name!r} is none of {', '.join(_ACTIVATIONS)}{hint}"


def _placement_for_every_layer(values: Values) -> Iterator[str]:
    names, layers = values["task.model.norm_placement"], values["task.model.num_hidden_layers"]
    if not isinstance(names, str) and len(names) != layers:
        yield (
            f"task.model.norm_placement: {len(names)} names for num_hidden_layers {layers}; "
            f"write one name, or one per layer"
        )


def _output_norms_are_there(values: Values) -> Iterator[str]:
    """Settings of the norms on module outputs want such norms."""
    names, frozen = values["task.model.norm_placement"], values["task.model.frozen_norm_scales"]
    lacking = not {"peri", "output"} & set((names,) if isinstance(names, str) else names)
    if frozen == "output" and lacking:
        yield (
            "task.model.frozen_norm_scales: output has no effect, as no layer has a norm on its outputs; "
            "write none or all, or set task.model.norm_placement to peri or output"
        )
    if values["optim.output_norm_weight_decay"] and (lacking or frozen != "none"):
        why = "no layer has a norm on its outputs" if lacking else f"task.model.frozen_norm_scales is {frozen}"
        yield f"optim.output_norm_weight_decay: has no effect, as {why}; write 0"


def _rope_is_complete(values: Values) -> Iterator[str]:
    """Say which keys are missing or useless: transformers would only log it."""
    rope, path = values["task.model.rope_parameters"], "task.model.rope_parameters"
    kind = rope.get("rope_type", "default")
    if kind not in _ROPE_KEYS:
        yield f"{path}.rope_type: {kind!r} is none of {', '.join(_ROPE_KEYS)}"
        return
    needed, allowed = _ROPE_KEYS[kind]
    for key in needed:
        if key not in rope:
            yield f"{path}.{key}: missing; rope_type {kind} needs it"
    for key, value in rope.items():
        if key not in ("rope_type", "rope_theta", *needed, *allowed):
            readable = ", ".join(("rope_type", "rope_theta", *needed, *allowed))
            yield f"{path}.{key}: unknown key; rope_type {kind} reads {readable}"
        elif key not in ("rope_type", "truncate") and not (type(value) in (int, float) and value > 0):
            yield f"{path}.{key}: {value!r} is not a number above 0"


def _windows_fit_the_positions(values: Values) -> Iterator[str]:
    window, longest = values["task.data.sequence_length"], values["task.model.max_position_embeddings"]
    if window > longest:
        yield (
            f"task.data.sequence_length: {window} is more than task.model.max_position_embeddings {longest}; "
            f"lower the one or raise the other"
        )


def _vocabulary_holds_the_bytes(values: Values) -> Iterator[str]:
    size = values["task.model.vocab_size"]
    if values["task.data.tokenizer"] == "byte-bpe" and size < _SMALLEST_BPE:
        yield f"task.model.vocab_size: {size} is too small for the tokenizer byte-bpe; write {_SMALLEST_BPE} or more"


def _there_is_a_source(values: Values) -> Iterator[str]:
    if not values["task.data.sources"]:
        yield f"task.data.sources: is empty; write at least one, as in [{_STDLIB}]"


def _validation_is_told_once(values: Values) -> Iterator[str]:
    fraction, path = values["task.data.validation_fraction"], "task.data.validation_fraction"
    if fraction is not None and not 0 < fraction < 1:
        yield f"{path}: {fraction} is not a fraction; write a number above 0 and below 1"
    if fraction is not None and values["task.data.validation_sources"]:
        yield f"{path}: has no effect beside task.data.validation_sources; leave one of them out"


def _sources_read_their_keys(values: Values) -> Iterator[str]:
    """What a source never reads, where its path alone tells."""
    for section in ("sources", "validation_sources"):
        for number, source in enumerate(values[f"task.data.{section}"]):
            for key in _useless_keys(source.path):
                if getattr(source, key) is not None:
                    yield f"task.data.{section}.{number}.{key}: has no effect on {source.path}; leave it out"


def _useless_keys(path: str) -> tuple[str, ...]:
    if path == _STDLIB:
        return ("name", "split", "text_column", "document_separator")
    if re.search(r"\.(txt|md)(\.(gz|bz2|xz))?$", path):
        return ("name", "split", "text_column")
    if re.search(r"\.(jsonl?|parquet)(\.(gz|xz))?$", path):
        return ("name", "split", "document_separator")
    return ()


def _betas_are_averages(values: Values) -> Iterator[str]:
    for number, beta in enumerate(values["optim.betas"]):
        if not 0 <= beta < 1:
            yield f"optim.betas.{number}: {beta} is out of range; write a number from 0 to below 1"


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
    first, last = _in_steps(warmup, steps), _in_steps(0.2 if decay is None else decay, steps)
    if first + last > steps:
        yield f"optim.decay: {last} steps after {first} of optim.warmup are more than the run's {steps}; lower one"


def _in_steps(span: float | int, steps: int) -> int:
    return round(span * steps) if isinstance(span, float) else span


def _schedule_reads_its_keys(values: Values) -> Iterator[str]:
    schedule, final = values["optim.schedule"], values["optim.final_lr_fraction"]
    if not 0 <= final <= 1:
        yield f"optim.final_lr_fraction: {final} is out of range; write a number from 0 to 1"
    elif final and schedule == "constant":
        yield "optim.final_lr_fraction: has no effect on optim.schedule constant; write 0, or another schedule"
    if values["optim.decay"] is not None and schedule != "warmup_stable_decay":
        yield f"optim.decay: has no effect on optim.schedule {schedule}; leave it out, or write warmup_stable_decay"


def _stage_0_partitions_nothing(values: Values) -> Iterator[str]:
    if values["engine.zero_stage"] != 0:
        return
    for key, default in (("offload", "none"), ("overlap_communication", False), ("reduce_bucket_size", 500_000_000)):
        if values[f"engine.{key}"] != default:
            yield f"engine.{key}: has no effect at engine.zero_stage 0; leave it out, or write engine.zero_stage=1"


def _gradients_have_a_type(values: Values) -> Iterator[str]:
    gradients, precision = values["engine.gradient_dtype"], values["engine.precision"]
    if gradients == "bf16" and precision == "fp32":
        yield "engine.gradient_dtype: bf16 has no effect at engine.precision fp32; write fp32, or engine.precision=bf16"
    elif gradients == "fp32" and precision != "fp32" and values["engine.zero_stage"] == 0:
        yield (
            f"engine.gradient_dtype: fp32 is not to be had at engine.zero_stage 0 with engine.precision {precision}: "
            f"DeepSpeed has no fp32 accumulation there; write engine.zero_stage=1 or engine.gradient_dtype=bf16"
        )


def _spikes_have_a_window(values: Values) -> Iterator[str]:
    window, path = values["probes.spike_window"], "probes.spike_window"
    if window < _SMALLEST_SPIKE_WINDOW:
        yield f"{path}: {window} steps are too few to judge by; write {_SMALLEST_SPIKE_WINDOW} or more"
    elif values["probes.spike_threshold"] is None and window != _DEFAULT_SPIKE_WINDOW:
        yield f"{path}: has no effect, as probes.spike_threshold is null; leave it out, or write a threshold"


def _stage_3_is_not_compiled(values: Values) -> Iterator[str]:
    if values["engine.compile"] and values["engine.zero_stage"] == 3:
        yield (
            "engine.compile: not supported at engine.zero_stage 3: ZeRO-3 gathers weights in hooks that torch.compile "
            "cannot trace; use zero_stage <= 2 or compile=false"
        )


RULES = (
    _name_is_a_folder_name,
    _batches_fit,
    _start_is_a_checkpoint,
    _heads_divide,
    _head_width_is_even,
    _activation_is_known,
    _placement_for_every_layer,
    _output_norms_are_there,
    _rope_is_complete,
    _windows_fit_the_positions,
    _vocabulary_holds_the_bytes,
    _there_is_a_source,
    _validation_is_told_once,
    _sources_read_their_keys,
    _betas_are_averages,
    _spans_fit,
    _schedule_reads_its_keys,
    _stage_0_partitions_nothing,
    _gradients_have_a_type,
    _spikes_have_a_window,
    _stage_3_is_not_compiled,
)
