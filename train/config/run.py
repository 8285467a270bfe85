"""The configuration of a run: every section, with the meaning and properties of each setting."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from train.config.facts.optimizers import LARGEST_MOMENTUM
from train.config.setting import section, setting
from train.config.tasks.kinds import TaskConfig

DEFAULT_DECAY = 0.2  # of the run, at the end of a warmup_stable_decay schedule
DEFAULT_MOMENTUM = 0.9
DEFAULT_POLY_POWER = 0.9
MOST_STEPS = 10**9
LONGEST = 10**9  # seconds, 31 years; threads and faulthandler count nanoseconds and microseconds in 64 bits
LARGEST_SEED = 2**63 - 1  # torch takes 64 bits, and each rank adds 1 and its number
SMALLEST_NORMAL = 1.2e-38  # rounded up, in fp32; smaller numbers lose digits and become 0


@section
class OptimConfig:
    """Optimizer and schedule. A fraction (0 <= x < 1) refers to `steps`; a whole number is a number of steps."""

    lr: float = setting("Peak learning rate", at_least=1e-30, at_most=1e6)
    optimizer: Literal["adamw", "sgd"] = setting("Update rule: AdamW, or SGD with momentum", default="adamw")
    momentum: float | None = setting(
        "Optimizer sgd: factor by which the sum of past gradients shrinks at each update",
        default=None,
        above=0,
        at_most=LARGEST_MOMENTUM,
        null=f"{DEFAULT_MOMENTUM} with sgd",
    )
    betas: tuple[float, float] = setting(
        "Optimizer adamw: decay rates of the running averages of gradients and of their squares",
        default=(0.9, 0.95),
        at_least=0,
        below=1,
    )
    eps: float = setting(
        "Optimizer adamw: added to the square root of the averaged squares",
        default=1e-8,
        at_least=SMALLEST_NORMAL,
        at_most=1,
    )
    weight_decay: float = setting(
        "Weight decay of matrices; norms and biases have none. adamw shrinks weights by it, sgd adds it times the "
        "weight to the clipped gradient (L2)",
        default=0.1,
        at_least=0,
        at_most=1e6,
    )
    embedding_weight_decay: float | None = setting(
        "Weight decay of the embeddings", default=None, at_least=0, null="weight_decay", at_most=1e6
    )
    output_norm_weight_decay: float = setting(
        "Weight decay of norm scales on sub-layer outputs (peri, output)", default=0.0, at_least=0, at_most=1e6
    )
    schedule: Literal["cosine", "linear", "warmup_stable_decay", "step", "poly", "constant"] = setting(
        "Shape of the learning rate after warm-up", default="cosine"
    )
    warmup: float | int = setting(
        "Length of the linear warm-up, as a fraction of the run or in steps",
        default=0.1,
        at_least=0,
        at_most=MOST_STEPS,
    )
    decay: float | int | None = setting(
        "Length of the decay in warmup_stable_decay, as a fraction of the run or in steps",
        default=None,
        at_least=0,
        null=f"{DEFAULT_DECAY}",
        at_most=MOST_STEPS,
    )
    final_lr_fraction: float = setting(
        "Learning rate at the last step, as a fraction of the peak", default=0.0, at_least=0, at_most=1
    )
    decay_every: int | None = setting(
        "Schedule step: interval at which the rate is multiplied by decay_factor",
        default=None,
        at_least=1,
        unit="steps",
        null="other schedules",
        at_most=MOST_STEPS,
    )
    decay_factor: float | None = setting(
        "Schedule step: factor applied at each interval", default=None, above=0, below=1, null="other schedules"
    )
    poly_power: float | None = setting(
        "Schedule poly: power of the share of the steps that is left, by which the rate is multiplied",
        default=None,
        above=0,
        at_most=10,
        null=f"{DEFAULT_POLY_POWER} with poly",
    )
    gradient_clipping: float | None = setting(
        "Maximum norm of the full gradient; larger gradients are scaled down to it",
        default=1.0,
        null="no clipping",
        at_least=1e-20,
        at_most=1e30,
    )
    stop_after_skipped_steps: int = setting(
        "Stop the run after this many consecutive skipped steps; a non-finite loss, gradient or update skips a step",
        default=10,
        at_least=1,
        at_most=MOST_STEPS,
    )


@section
class EngineConfig:
    """Precision, parallelism and memory."""

    zero_stage: Literal[0, 1, 2, 3] = setting(
        "What ZeRO partitions across ranks: 0 nothing, 1 optimizer state, 2 also gradients, 3 also weights", default=1
    )
    precision: Literal["auto", "bf16", "fp32"] = setting(
        "Precision of weights and activations; auto is bf16 where both the GPU and the task support it, else fp32",
        default="auto",
    )
    gradient_dtype: Literal["fp32", "bf16"] = setting(
        "Precision of gradient accumulation and reduction", default="fp32"
    )
    offload: Literal["none", "optimizer"] = setting("State to keep in CPU memory", default="none")
    activation_checkpointing: bool = setting(
        "Recompute activations in the backward pass instead of storing them", default=False
    )
    compile: bool = setting("Compile each block with torch.compile", default=False)
    deterministic: bool = setting(
        "Use only deterministic algorithms: a run on a GPU then repeats bit for bit on the same card and versions, "
        "with slower attention; without, it does not",
        default=False,
    )
    reduce_bucket_size: int = setting(
        "Size of the gradient-reduction buckets", default=500_000_000, at_least=1, unit="elements", at_most=10**12
    )
    overlap_communication: bool = setting("Reduce gradients during the backward pass", default=False)
    threads: int | None = setting(
        "CPU threads of each rank",
        default=None,
        at_least=1,
        report="ignored",
        null="OMP_NUM_THREADS if set, else an equal share of the cores",
        at_most=1024,
    )


@section
class ProbesConfig:
    """Measurements inside the network during training."""

    activations_every: int | None = setting(
        "Interval of activation statistics; step 1 (the initialization) and the last step are always measured",
        default=100,
        at_least=1,
        unit="steps",
        null="never",
        at_most=MOST_STEPS,
    )
    gradients_every: int | None = setting(
        "Interval of gradient norms, with the same exceptions",
        default=100,
        at_least=1,
        unit="steps",
        null="never",
        at_most=MOST_STEPS,
    )
    layers_every: int | None = setting(
        "Interval of measuring each layer's contribution: the validation loss without it, and the angle by which it "
        "turns the stream, both with the weights after the step, as in evaluations; the last step is always measured. "
        "Takes 1 + (number of layers) evaluations of layer_windows",
        default=None,
        at_least=1,
        unit="steps",
        null="never",
        at_most=MOST_STEPS,
    )
    layer_windows: int = setting(
        "Number of validation windows, the first ones, by which layers are measured; all of them if there are fewer",
        default=16,
        at_least=1,
        unit="windows",
        at_most=1_000_000,
    )
    spike_threshold: float | None = setting(
        "Distance above the median from which a loss or gradient norm counts as a spike",
        default=6.0,
        above=0,
        unit="robust standard deviations",
        null="no spike detection",
        at_most=1e30,
    )
    spike_window: int = setting(
        "Number of recent steps that a loss or gradient norm is compared with",
        default=100,
        at_least=20,
        unit="steps",
        at_most=10_000,
    )


@section
class CheckpointConfig:
    """Checkpoints and weights on disk."""

    every: int = setting("Interval of checkpoints", default=1000, at_least=1, unit="steps", at_most=MOST_STEPS)
    keep: int | None = setting(
        "Number of latest checkpoints to keep", default=2, at_least=1, null="all of them", at_most=MOST_STEPS
    )
    weights_every: int | None = setting(
        "Interval of weights folders (Hugging Face format, bf16), which are never deleted",
        default=None,
        at_least=1,
        unit="steps",
        null="never",
        at_most=MOST_STEPS,
    )
    when_not_saved: Literal["continue", "stop"] = setting(
        "What to do when a checkpoint cannot be written (disk full, quota): log an error and continue, or stop",
        default="continue",
    )
    stop_deadline: float | None = setting(
        "Time from a signal to the forced exit",
        default=600.0,
        unit="seconds",
        null="no limit",
        at_least=0.01,
        at_most=LONGEST,
    )
    start_from: str | None = setting(
        "Starting point: RUN@STEP, including its optimizer state, or a Hugging Face folder: of this model, or of an "
        "architecture that computes it, such as Llama, Qwen3 or Olmo2 (docs/native.md)",
        default=None,
        null="a fresh initialization",
        report="distinguishes",
    )


@section
class WatchdogConfig:
    """Deadlines after which a run that makes no progress is terminated and the blocking rank reported."""

    preparation: float | None = setting(
        "Deadline for preparing data, process group, weights and resume state",
        default=3600,
        unit="seconds",
        null="no deadline",
        at_least=0.01,
        at_most=LONGEST,
    )
    first_step: float | None = setting(
        "Deadline for the first step after each start, which compiles and warms up",
        default=1800,
        unit="seconds",
        null="no deadline",
        at_least=0.01,
        at_most=LONGEST,
    )
    step: float | None = setting(
        "Deadline for a step, including reading its data",
        default=600,
        unit="seconds",
        null="no deadline",
        at_least=0.01,
        at_most=LONGEST,
    )
    evaluation: float | None = setting(
        "Deadline for an evaluation, and for a measurement of the layers",
        default=3600,
        unit="seconds",
        null="no deadline",
        at_least=0.01,
        at_most=LONGEST,
    )
    save: float | None = setting(
        "Deadline for a save", default=1800, unit="seconds", null="no deadline", at_least=0.01, at_most=LONGEST
    )


@section
class ExportConfig:
    """The model card of exported folders (`python -m train.export`)."""

    license: str | None = setting(
        "License of the exported weights, by its identifier on the Hugging Face hub, as in apache-2.0",
        default=None,
        null="none stated",
    )


@section
class RunConfig:
    """One training run."""

    name: str = setting("Name of the run and of its folder", report="ignored")
    steps: int = setting("Length of the run", at_least=1, unit="optimizer steps", at_most=MOST_STEPS)
    global_batch_size: int = setting("Samples per optimizer step", at_least=1, at_most=10**7)
    micro_batch_size: int = setting(
        "Maximum samples per forward pass on a rank; lowered to a divisor of the rank's share",
        at_least=1,
        resume="free",
        report="ignored",
        evaluation=True,
        at_most=10**7,
    )
    task: TaskConfig = setting("Model, data and loss; one of several kinds")
    optim: OptimConfig = setting("Optimizer and schedule")
    output_dir: str = setting("Parent folder of run folders", default="runs", resume="free", report="ignored")
    seed: int = setting("Seed of the initialization", default=0, at_least=0, report="seed", at_most=LARGEST_SEED)
    log_every: int = setting(
        "Interval of training rows in metrics.jsonl and of console lines",
        default=10,
        at_least=1,
        unit="steps",
        resume="free",
        report="ignored",
        at_most=MOST_STEPS,
    )
    evaluate_every: int = setting(
        "Interval of evaluations",
        default=500,
        at_least=1,
        unit="steps",
        resume="free",
        report="ignored",
        at_most=MOST_STEPS,
    )
    engine: EngineConfig = setting("Precision, parallelism and memory", factory=EngineConfig, resume="free")
    probes: ProbesConfig = setting(
        "Measurements inside the network", factory=ProbesConfig, resume="free", report="ignored"
    )
    checkpoint: CheckpointConfig = setting(
        "Checkpoints and weights on disk", factory=CheckpointConfig, resume="free", report="ignored"
    )
    export: ExportConfig = setting(
        "The model card of exported folders", factory=ExportConfig, resume="free", report="ignored"
    )
    watchdog: WatchdogConfig = setting(
        "Deadlines for a run that makes no progress", factory=WatchdogConfig, resume="free", report="ignored"
    )

    @property
    def folder(self) -> Path:
        """The run folder, output_dir/name."""
        return Path(self.output_dir) / self.name


def as_steps(span: float | int, steps: int) -> int:
    """Convert a span, a fraction of the run (float) or a number of steps (int), to steps."""
    return round(span * steps) if isinstance(span, float) else span
