"""Every knob of a run: frozen dataclasses, read from YAML and the command line, checked as a whole.

`load` is the only way in. It reports everything that is wrong with a configuration at once, each fault with its
path. Nothing here imports torch, so that a login node can check a run in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from train.config import yaml_text
from train.config.rules import broken_rules
from train.config.schema import check

NormPlacement = Literal["pre", "post", "peri", "output"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape and normalization of the decoder; the fields and defaults of `modeling.decoder`'s PeriLNConfig."""

    vocab_size: int = 32_000  # also the size that a byte-level BPE trained on the spot aims at
    vocab_size_multiple: int = 64  # embedding rows are padded up to it; the padding takes no part in the loss
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int | None = None  # null: hidden_size / num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    norm_placement: NormPlacement | tuple[NormPlacement, ...] = "peri"  # one name, or one per layer
    norm_kind: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-6
    frozen_norm_scales: Literal["none", "output", "all"] = "none"
    embedding_norm: bool = False
    final_norm: bool = True
    qk_norm: Literal["none", "head", "projection"] = "none"
    rope_parameters: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10_000.0})
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    initializer_scheme: Literal["normal", "depth_scaled"] = "normal"
    z_loss_coefficient: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One place that text comes from. A plain string in YAML is short for `{path: ...}`."""

    shorthand: ClassVar[str] = "path"

    path: str  # python-stdlib (embedded) | file, glob or folder of text, JSONL, Parquet | a `datasets` name
    name: str | None = None  # configuration of a `datasets` name
    split: str | None = None  # split of a `datasets` name or saved folder; null: train
    text_column: str | None = None  # JSONL, Parquet and `datasets`; null: text
    document_separator: str | None = None  # text files: the line between documents; null: a file is a document


@dataclass(frozen=True, kw_only=True)
class TextDataConfig:
    """Text, tokenizer and windows of a language model."""

    sources: tuple[SourceConfig, ...]
    tokenizer: str  # byte-bpe (trained on the sources, vocab_size tokens) | folder | tokenizer.json | hub name
    sequence_length: int
    validation_fraction: float | None = None  # of the documents, chosen by content; null: 0.01
    validation_sources: tuple[SourceConfig, ...] = ()  # instead of a fraction
    validation_windows: int | None = None  # evaluate on the first so many; null: on all
    seed: int = 0  # order of the samples
    cache_dir: str = "cache"
    num_workers: int | None = None  # processes that tokenise; null: one per core


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """Causal language modelling."""

    kind: Literal["language_model"] = "language_model"
    model: DecoderConfig
    data: TextDataConfig
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """A joint image filter; the fields and defaults of `modeling.joint_filter`'s DKNConfig."""

    architecture: Literal["fdkn", "dkn"] = "fdkn"
    residual: bool = True
    kernel_size: int = 3
    window_size: int = 15  # samples are read from a square of so many pixels around each
    sampling: Literal["centered", "compat"] = "centered"  # compat: the displaced taps of the authors' weights
    guidance: bool = True  # false: the target alone decides the kernels
    guidance_channels: int = 3
    target_channels: int = 1


@dataclass(frozen=True, kw_only=True)
class PairSourceConfig:
    """Images in pairs, guidance and target. A plain string in YAML is short for `{path: ...}`."""

    shorthand: ClassVar[str] = "path"

    path: str  # procedural-scenes | procedural-textures | folder of pairs | folder of NYU's .npy arrays | labelled .mat
    guidance: str | None = None  # files of the guidance, a pattern below a folder of pairs (RGB/*.png); null: found
    target: str | None = None  # files of the target, likewise; null: found
    split: Literal["training", "test"] | None = None  # of NYU's arrays and .mat
    start: int | None = None  # of the pairs in the order of their names, as in a Python slice
    stop: int | None = None
    size: tuple[int, int] | None = None  # height and width of procedural images; null: 192 x 256
    missing: float | None = 0.0  # what a target holds where it is not known (not finite never is); null: nothing
    units_per_value: float = 1.0  # error is told in units: 100 makes centimetres of metres


@dataclass(frozen=True, kw_only=True)
class PairDataConfig:
    """Pairs that a joint image filter learns from, and those that it is judged by."""

    sources: tuple[PairSourceConfig, ...]
    validation_sources: tuple[PairSourceConfig, ...]
    unit: str | None = None  # name of the error's unit, for pictures
    crop: int | None = None  # side of the random squares to train on; null: whole images, as in the paper
    flips: bool = False  # of training images, left to right
    seed: int = 0  # order of the samples, crops, flips and noise


@dataclass(frozen=True, kw_only=True)
class DepthDataConfig(PairDataConfig):
    """How the low-resolution depth is made of the one that is known."""

    scale: int = 8
    downsampling: Literal[
        "bicubic", "bicubic_torch", "nearest_left_top", "nearest_center", "nearest_right_bottom", "block_mean"
    ] = "bicubic"  # bicubic is PIL's; all are brought back to full size by PIL's bicubic


@dataclass(frozen=True, kw_only=True)
class TextureDataConfig(PairDataConfig):
    """Training pairs are of colour and depth; validation pairs of an image with texture and the same without."""

    noise: float = 0.1  # standard deviation of what is added to the depth, which goes from 0 to 1


@dataclass(frozen=True, kw_only=True)
class DepthUpsamplingConfig:
    """Depth up-sampling guided by colour: Kim, Ponce and Ham, IJCV 2021."""

    kind: Literal["depth_upsampling"] = "depth_upsampling"
    model: FilterConfig = field(default_factory=FilterConfig)
    data: DepthDataConfig
    border: int = 6  # pixels along the edges that the error leaves out
    baselines: bool = True  # measure bicubic, joint bilateral and guided filter beside
    other_guidance: bool = False  # measure too what a constant and a shifted guidance would do
    shown_images: int = 2  # validation images that are kept in images/ at each evaluation
    shown_pixel: tuple[int, int] | None = None  # row and column whose kernel is kept; null: at the steepest edge


@dataclass(frozen=True, kw_only=True)
class TextureRemovalConfig:
    """Texture removal by a filter that has learned to denoise depth: guidance and target are the same image."""

    kind: Literal["texture_removal"] = "texture_removal"
    model: FilterConfig = field(default_factory=FilterConfig)
    data: TextureDataConfig
    iterations: int = 4  # how often the filter is applied
    border: int = 6
    baselines: bool = True  # measure the joint bilateral and the guided filter beside, as often applied
    shown_images: int = 2
    shown_pixel: tuple[int, int] | None = None


TaskConfig = LanguageModelConfig | DepthUpsamplingConfig | TextureRemovalConfig  # told apart by `kind`


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and schedule. A fraction (0 <= x < 1) is of `steps`; a whole number is steps."""

    lr: float  # the peak
    optimizer: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1  # matrices; norms and biases have none
    embedding_weight_decay: float | None = None  # null: weight_decay
    output_norm_weight_decay: float = 0.0  # scales of the norms on module outputs (peri, output)
    schedule: Literal["cosine", "linear", "warmup_stable_decay", "step", "constant"] = "cosine"
    warmup: float | int = 0.1
    decay: float | int | None = None  # warmup_stable_decay only; null: 0.2
    final_lr_fraction: float = 0.0  # of the peak, reached at the last step
    decay_every: int | None = None  # step only: the rate is multiplied by decay_factor every so many steps
    decay_factor: float | None = None  # step only
    gradient_clipping: float | None = 1.0
    stop_after_skipped_steps: int = 10  # in a row: a non-finite loss or gradient skips its step


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the run is computed. May change at a resume."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 on a GPU that has it and for a task that may
    gradient_dtype: Literal["fp32", "bf16"] = "fp32"  # of accumulation and reduction
    offload: Literal["none", "optimizer"] = "none"  # to CPU memory
    activation_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = False
    reduce_bucket_size: int = 500_000_000  # elements
    overlap_communication: bool = False
    threads: int | None = None  # CPU threads of each rank; null: OMP_NUM_THREADS where it is set, else a share of cores


@dataclass(frozen=True, kw_only=True)
class ProbesConfig:
    """What is measured inside the network while it trains. May change at a resume."""

    activations_every: int | None = 100  # steps; step 1, which is the init, and the last always; null: never
    gradients_every: int | None = 100  # likewise
    spike_threshold: float | None = 6.0  # robust standard deviations above the median; null: no spikes are told
    spike_window: int = 100  # steps that a step's loss and gradient norm are judged by


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept on disk. May change at a resume."""

    every: int = 1000
    keep: int | None = 2  # the latest so many; null: all
    weights_every: int | None = None  # bf16 Hugging Face folders, never deleted
    when_not_saved: Literal["continue", "stop"] = "continue"  # disk full, quota: warn and train on, or stop
    stop_deadline: float | None = 600.0  # seconds from a signal to the forced exit; null: no limit
    start_from: str | None = None  # RUN@STEP with optimizer state, or a Hugging Face folder of this model


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """Seconds after which a run that does not move is ended, and says why; null: never. May change at a resume."""

    preparation: float | None = 3600  # data, process group, weights, resuming
    first_step: float | None = 1800  # of each start: with compiling and warming up
    step: float | None = 600  # reading its data included
    evaluation: float | None = 3600
    save: float | None = 1800


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    name: str
    steps: int
    global_batch_size: int  # samples per optimizer step
    micro_batch_size: int  # samples per rank and pass: an upper limit, lowered to a divisor
    task: TaskConfig
    optim: OptimConfig
    output_dir: str = "runs"
    seed: int = 0  # initialisation
    log_every: int = 10
    evaluate_every: int = 500
    engine: EngineConfig = field(default_factory=EngineConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)


# What may be another at a resume: how a run is computed, shown and kept, not what it learns. A name with a point
# stands for all below it.
_MAY_CHANGE = (
    "output_dir",
    "micro_batch_size",
    "log_every",
    "evaluate_every",
    "engine.",
    "probes.",
    "checkpoint.",
    "watchdog.",
    "task.data.cache_dir",
    "task.data.num_workers",
    "task.shown_images",
    "task.shown_pixel",
    "task.baselines",
    "task.other_guidance",
    "task.data.unit",
)


class ConfigError(ValueError):
    """What the user gave is wrong.

    Args:
        faults: Everything that is wrong, one sentence each, opening with the path of the key.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run from a YAML file and `a.b=c` overrides, and check it as a whole.

    Args:
        path: The YAML file.
        overrides: `key.path=value` each, the value in YAML: `optim.lr=3e-4`, `optim.betas=[0.9, 0.99]`,
            `optim.gradient_clipping=null`. A mapping is merged, everything else replaces.

    Raises:
        ConfigError: Everything that is wrong, at once.
    """
    text = yaml_text.read(path, overrides)
    if text.tree is None:
        raise ConfigError(text.faults)
    config, leaves, faults = check(RunConfig, text.tree)
    faults = [*text.faults, *faults, *broken_rules(leaves)]
    if config is None or faults:
        raise ConfigError(faults)
    return config


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a run as plain values, defaults filled in."""
    return asdict(config)


def to_yaml(config: RunConfig) -> str:
    """Return a run as YAML, defaults filled in; `load` reads it back to an equal one."""
    return yaml_text.to_yaml(to_dict(config))


def differences(old: RunConfig | Mapping[str, Any], new: RunConfig) -> list[str]:
    """Return `path: old -> new` for every key that differs and may not change at a resume.

    Args:
        old: The run that was started; a mapping is what its config.yaml holds. A key that it lacks has its default.
        new: The run that is to go on.
    """
    given = to_dict(old) if isinstance(old, RunConfig) else old
    before = _leaves(given) | _leaves(check(RunConfig, given).leaves)
    after = _leaves(to_dict(new))
    return [
        f"{path}: {_shown(before, path)} -> {_shown(after, path)}"
        for path in dict.fromkeys([*after, *before])
        if before.get(path) != after.get(path) and not path.startswith(_MAY_CHANGE)
    ]


def check_world_size(config: RunConfig, world_size: int) -> None:
    """Refuse a number of ranks that does not divide the global batch.

    Raises:
        ConfigError: Naming the nearest numbers that do.
    """
    batch = config.global_batch_size
    if batch % world_size == 0:
        return
    fitting = [ranks for ranks in range(1, batch + 1) if batch % ranks == 0]
    near = [max(n for n in fitting if n < world_size), *[n for n in fitting if n > world_size][:1]]
    raise ConfigError(
        [
            f"global_batch_size: {batch} samples can not be shared evenly by {world_size} ranks; "
            f"start {' or '.join(map(str, near))} ranks, or change global_batch_size"
        ]
    )


def micro_batches(config: RunConfig, world_size: int) -> tuple[int, int]:
    """Return the samples of one pass and the passes of one optimizer step, on each rank.

    The first is the largest divisor of a rank's share of the global batch that is not above `micro_batch_size`.

    Raises:
        ConfigError: As `check_world_size`.
    """
    check_world_size(config, world_size)
    share = config.global_batch_size // world_size
    size = next(size for size in range(min(share, config.micro_batch_size), 0, -1) if share % size == 0)
    return size, share // size


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Flatten sections and lists of sections to values by path."""
    if is_dataclass(tree) and not isinstance(tree, type):
        tree = asdict(tree)
    if isinstance(tree, Mapping):
        below = cast("Mapping[str, Any]", tree).items()
    elif isinstance(tree, list | tuple):
        items = cast("Sequence[Any]", tree)
        if items and all(isinstance(item, str | int | float) for item in items):
            return {path: list(items)}
        below = enumerate(items)
    else:
        return {path: tree}
    leaves: dict[str, Any] = {}
    for key, value in below:
        leaves |= _leaves(value, f"{path}.{key}" if path else str(key))
    return leaves


def _shown(leaves: Mapping[str, Any], path: str) -> str:
    return yaml_text.show(leaves[path]) if path in leaves else "(not given)"
