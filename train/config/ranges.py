"""The valid values of a configuration by their paths, and the ranges that they keep to."""

from __future__ import annotations

from collections.abc import Iterator
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
    "task.data.crop": "write null for whole images",
    "task.data.num_workers": "write null for one per core",
    "task.data.validation_windows": "write null for all",
    "engine.threads": "write null for a share of the cores",
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
    "engine.threads",
    "optim.decay_every",
    "optim.stop_after_skipped_steps",
    "task.data.sequence_length",
    "task.data.validation_windows",
    "task.data.num_workers",
    "task.data.crop",
    "task.iterations",
    "task.model.kernel_size",
    "task.model.window_size",
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
    "task.data.noise",
    "task.model.norm_eps",
    "task.model.initializer_range",
)
_NOT_NEGATIVE = (
    "seed",
    "task.data.seed",
    "task.border",
    "task.shown_images",
    "optim.weight_decay",
    "optim.embedding_weight_decay",
    "optim.output_norm_weight_decay",
    "task.model.z_loss_coefficient",
)


class AbsentError(Exception):
    """A rule asked for a value that is not there, or is wrong by itself."""


class Values(dict[str, Any]):
    """Valid values by path."""

    def __missing__(self, path: str) -> Any:
        raise AbsentError(path)


def out_of_range(values: Values) -> Iterator[str]:
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
