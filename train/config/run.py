"""What a run is: every section of its configuration, with each setting's meaning and properties."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from train.config.setting import section, setting
from train.config.tasks.kinds import TaskConfig

DEFAULT_DECAY = 0.2  # of the run, at the end of a warmup_stable_decay schedule


@section
class OptimConfig:
    """Optimizer and schedule. A fraction (0 <= x < 1) is of `steps`; a whole number is steps."""

    lr: float = setting("Peak learning rate", above=0)
    optimizer: Literal["adamw"] = setting("Update rule", default="adamw")
    betas: tuple[float, float] = setting(
        "Decay of the averages of gradients and of their squares", default=(0.9, 0.95), at_least=0, below=1
    )
    eps: float = setting("Added to the root of the averaged squares", default=1e-8, above=0)
    weight_decay: float = setting("Decay of matrices; norms and biases have none", default=0.1, at_least=0)
    embedding_weight_decay: float | None = setting(
        "Decay of the embeddings", default=None, at_least=0, null="weight_decay"
    )
    output_norm_weight_decay: float = setting(
        "Decay of the scales of norms on sub-layer outputs (peri, output)", default=0.0, at_least=0
    )
    schedule: Literal["cosine", "linear", "warmup_stable_decay", "step", "constant"] = setting(
        "Course of the learning rate after warm-up", default="cosine"
    )
    warmup: float | int = setting(
        "Length of the linear warm-up, a fraction of the run or steps", default=0.1, at_least=0
    )
    decay: float | int | None = setting(
        "Length of the decay of warmup_stable_decay, as a fraction or in steps",
        default=None,
        at_least=0,
        null=f"{DEFAULT_DECAY}",
    )
    final_lr_fraction: float = setting(
        "Learning rate at the last step, as a fraction of the peak", default=0.0, at_least=0, at_most=1
    )
    decay_every: int | None = setting(
        "Schedule step: multiply the rate by decay_factor after this many",
        default=None,
        at_least=1,
        unit="steps",
        null="other schedules",
    )
    decay_factor: float | None = setting(
        "Schedule step: factor", default=None, above=0, below=1, null="other schedules"
    )
    gradient_clipping: float | None = setting(
        "Largest norm of the whole gradient; a larger one is scaled down to it",
        default=1.0,
        above=0,
        null="no clipping",
    )
    stop_after_skipped_steps: int = setting(
        "End the run after this many skipped steps in a row; a non-finite loss, gradient or update skips its step",
        default=10,
        at_least=1,
    )


@section
class EngineConfig:
    """How the run is computed."""

    zero_stage: Literal[0, 1, 2, 3] = setting(
        "What ZeRO partitions over ranks: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too", default=1
    )
    precision: Literal["auto", "bf16", "fp32"] = setting(
        "Of weights and activations; auto is bf16 on a GPU that has it, for a task that supports it", default="auto"
    )
    gradient_dtype: Literal["fp32", "bf16"] = setting("Of gradient accumulation and reduction", default="fp32")
    offload: Literal["none", "optimizer"] = setting("What is kept in CPU memory", default="none")
    activation_checkpointing: bool = setting(
        "Recompute activations in the backward pass instead of keeping them", default=False
    )
    compile: bool = setting("Compile each block with torch.compile", default=False)
    deterministic: bool = setting(
        "Use deterministic algorithms only, so that a GPU repeats a run bit for bit", default=False
    )
    reduce_bucket_size: int = setting(
        "Size of the buckets that gradients are reduced in", default=500_000_000, at_least=1, unit="elements"
    )
    overlap_communication: bool = setting("Reduce gradients while the backward pass goes on", default=False)
    threads: int | None = setting(
        "CPU threads of each rank",
        default=None,
        at_least=1,
        report="ignored",
        null="OMP_NUM_THREADS where it is set, else an equal share of the cores",
    )


@section
class ProbesConfig:
    """What is measured inside the network while it trains."""

    activations_every: int | None = setting(
        "Interval of activation statistics; step 1, which shows the initialization, and the last are always measured",
        default=100,
        at_least=1,
        unit="steps",
        null="never",
    )
    gradients_every: int | None = setting(
        "Interval of gradient norms, likewise", default=100, at_least=1, unit="steps", null="never"
    )
    spike_threshold: float | None = setting(
        "How far above the median a loss or gradient norm is a spike",
        default=6.0,
        above=0,
        unit="robust standard deviations",
        null="no spike detection",
    )
    spike_window: int = setting("How many recent steps a spike is judged by", default=100, at_least=20, unit="steps")


@section
class CheckpointConfig:
    """What is kept on disk."""

    every: int = setting("Interval of checkpoints", default=1000, at_least=1, unit="steps")
    keep: int | None = setting("Keep the latest so many", default=2, at_least=1, null="all of them")
    weights_every: int | None = setting(
        "Interval of Hugging Face folders in bf16, which are never deleted",
        default=None,
        at_least=1,
        unit="steps",
        null="never",
    )
    when_not_saved: Literal["continue", "stop"] = setting(
        "What to do when a checkpoint cannot be written (disk full, quota): warn and train on, or stop",
        default="continue",
    )
    stop_deadline: float | None = setting(
        "Time from a signal to the forced exit", default=600.0, above=0, unit="seconds", null="no limit"
    )
    start_from: str | None = setting(
        "Start from RUN@STEP, with its optimizer state, or from a Hugging Face folder of this model",
        default=None,
        null="the initialization",
        report="distinguishes",
    )


@section
class WatchdogConfig:
    """Deadlines after which a run that makes no progress is ended, naming the rank that holds it up."""

    preparation: float | None = setting(
        "Deadline of data, process group, weights and resuming",
        default=3600,
        above=0,
        unit="seconds",
        null="no deadline",
    )
    first_step: float | None = setting(
        "Deadline of the first step of each start, which compiles and warms up",
        default=1800,
        above=0,
        unit="seconds",
        null="no deadline",
    )
    step: float | None = setting(
        "Deadline of a step, reading its data included", default=600, above=0, unit="seconds", null="no deadline"
    )
    evaluation: float | None = setting(
        "Deadline of an evaluation", default=3600, above=0, unit="seconds", null="no deadline"
    )
    save: float | None = setting("Deadline of a save", default=1800, above=0, unit="seconds", null="no deadline")


@section
class RunConfig:
    """One training run."""

    name: str = setting("Name of the run and of its folder", report="ignored")
    steps: int = setting("Length of the run", at_least=1, unit="optimizer steps")
    global_batch_size: int = setting("Samples of an optimizer step", at_least=1)
    micro_batch_size: int = setting(
        "Most samples of one pass on a rank; lowered to a divisor of the rank's share",
        at_least=1,
        resume="free",
        report="ignored",
        evaluation=True,
    )
    task: TaskConfig = setting("What is learned: one of several kinds")
    optim: OptimConfig = setting("Optimizer and schedule")
    output_dir: str = setting("Folder of run folders", default="runs", resume="free", report="ignored")
    seed: int = setting("Seed of the initialization", default=0, at_least=0, report="seed")
    log_every: int = setting(
        "Interval of training rows in metrics.jsonl and of console lines",
        default=10,
        at_least=1,
        unit="steps",
        resume="free",
        report="ignored",
    )
    evaluate_every: int = setting(
        "Interval of evaluations", default=500, at_least=1, unit="steps", resume="free", report="ignored"
    )
    engine: EngineConfig = setting("How the run is computed", factory=EngineConfig, resume="free")
    probes: ProbesConfig = setting(
        "What is measured inside the network", factory=ProbesConfig, resume="free", report="ignored"
    )
    checkpoint: CheckpointConfig = setting(
        "What is kept on disk", factory=CheckpointConfig, resume="free", report="ignored"
    )
    watchdog: WatchdogConfig = setting(
        "Deadlines of a run that makes no progress", factory=WatchdogConfig, resume="free", report="ignored"
    )

    @property
    def folder(self) -> Path:
        """The run folder, output_dir/name."""
        return Path(self.output_dir) / self.name


def as_steps(span: float | int, steps: int) -> int:
    """Return a span given as a fraction of the run (a float) or as steps (an int), in steps."""
    return round(span * steps) if isinstance(span, float) else span
