"""One way to run a configuration: everything but the model that determines memory and time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from train.config.facts.optimizers import OPTIMIZERS, OptimizerFacts
from train.config.run import RunConfig
from train.config.tasks.language_model import LanguageModelConfig

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Case:
    """Everything but the model that determines memory and time."""

    zero_stage: int
    gpus: int
    micro_batch_size: int
    checkpointing: bool
    compiled: bool
    measured: bool  # some steps measure activations; their blocks run uncompiled
    bf16: bool  # else fp32
    fp32_gradients: bool
    offload: bool
    overlap: bool
    bucket: int  # elements
    optimizer: OptimizerFacts

    @property
    def compiled_throughout(self) -> bool:
        """Whether the blocks run compiled in every step."""
        return self.compiled and not self.measured

    @property
    def itemsize(self) -> int:
        """Bytes of a weight and of an activation."""
        return 2 if self.bf16 else FLOAT

    @property
    def gradient_size(self) -> int:
        """Bytes of a gradient as it is accumulated and reduced."""
        return FLOAT if self.fp32_gradients or not self.bf16 else 2

    @property
    def keeps_whole_gradients(self) -> bool:
        """Whether every GPU accumulates all gradients in fp32: DeepSpeed's BF16_Optimizer."""
        return self.zero_stage == 1 and self.bf16 and self.fp32_gradients and not self.offload


def case_of(config: RunConfig, *, gpus: int, micro_batch_size: int) -> Case:
    """Return the case that a configuration describes on GPUs, where `precision: auto` means bf16 for decoders."""
    engine = config.engine
    bf16 = engine.precision != "fp32" and isinstance(config.task, LanguageModelConfig)
    return Case(
        zero_stage=engine.zero_stage,
        gpus=gpus,
        micro_batch_size=micro_batch_size,
        checkpointing=engine.activation_checkpointing,
        compiled=engine.compile,
        measured=config.probes.activations_every is not None,
        bf16=bf16,
        fp32_gradients=engine.gradient_dtype == "fp32",
        offload=engine.offload == "optimizer",
        overlap=engine.overlap_communication,
        bucket=engine.reduce_bucket_size,
        optimizer=OPTIMIZERS[config.optim.optimizer],
    )


def at_stage(case: Case, zero_stage: int) -> Case:
    """Return the case at another stage, without the options that this stage does not support."""
    if zero_stage == 0:  # DeepSpeed cannot accumulate bf16 gradients in fp32 there
        fp32 = not case.bf16
        return replace(case, zero_stage=0, fp32_gradients=fp32, offload=False, overlap=False)
    return replace(case, zero_stage=zero_stage, compiled=case.compiled and zero_stage < 3)
