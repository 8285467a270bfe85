"""Causal language modeling: a decoder, windows of text, cross-entropy."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.measure.activations import Site
from modeling.decoder.configuration_periln import PeriLNConfig
from modeling.decoder.facts_placements_periln import CHOICES
from modeling.decoder.modeling_periln import PeriLNForCausalLM, PeriLNModel
from train.config.errors import ConfigError
from train.config.run import OptimConfig
from train.config.tasks.language_model import LanguageModelConfig
from train.data import summary
from train.data.split import Split
from train.data.text import cache, corpus
from train.data.text.check import check
from train.data.text.documents import files
from train.data.text.documents.reader import Sample
from train.data.text.tokenizer import BYTE_BPE, complete, load, load_tokenizer, padding_token_id
from train.data.text.validation import ValidationText, facts_of, labelled, labels, without_labels
from train.tasks.task import AttentionShape, Batch, ModelCard, ParameterGroup, SampleCost, StepOutput, Sums, Task

_USAGE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=False)"""


class LanguageModel(Task):
    """The task `language_model`; `weight` counts predicted tokens."""

    supports_bf16 = True

    def __init__(self, config: LanguageModelConfig, *, optim: OptimConfig, seed: int):
        self.config = config
        self._optim = optim
        self._seed = seed

    # ------------------------------------------------------------------------------------------------------- the data

    @cached_property
    def data(self) -> cache.TextData:
        """The windows of text, tokenized on first use if the corpus is small."""
        return cache.prepare(without_labels(self.config.data), vocab_size=self.config.model.vocab_size)

    @cached_property
    def validation(self) -> ValidationText | None:
        """Validation text apart from the prepared corpus, for labels and evaluations; None: that of the corpus."""
        return labelled(self.config.data, self.data, vocab_size=self.config.model.vocab_size)

    @property
    def num_training_samples(self) -> int:
        """Number of training windows."""
        return self.data.num_training_samples

    @property
    def num_validation_samples(self) -> int:
        """Number of validation windows."""
        return self.data.num_validation_samples if self.validation is None else self.validation.num_samples

    @property
    def validation_sets(self) -> list[int]:
        """Number of validation windows of each label."""
        return [self.num_validation_samples] if self.validation is None else self.validation.sizes

    @property
    def data_fingerprint(self) -> str:
        """A hash of all windows."""
        if self.validation is None:
            return self.data.fingerprint
        both = f"{self.data.fingerprint} {self.validation.fingerprint}"
        return hashlib.blake2b(both.encode(), digest_size=8).hexdigest()

    @property
    def data_facts(self) -> Mapping[str, Any]:
        """Facts about the corpus, and about validation sets apart from it."""
        return facts_of(self.data, self.validation)

    def check(self) -> list[str]:
        """Check the sources and the tokenizer; return what was read."""
        data, vocab_size = self.config.data, self.config.model.vocab_size
        lines = check(data, vocab_size=vocab_size)
        is_small = files.size_on_disk(data.validation_sources) <= Sample().whole
        if data.tokenizer != BYTE_BPE and is_small and any(labels(data)):
            lines += map(summary.line_of_set, ValidationText(data, load(data.tokenizer, vocab_size=vocab_size)).facts)
        return lines

    def prepare(self) -> str:
        """Tokenize and pack the corpus, regardless of its size."""
        config = without_labels(self.config.data)
        self.data = cache.prepare(config, vocab_size=self.config.model.vocab_size, may_tokenize=True)
        ready = (
            f"{self.num_training_samples:,} training and {self.num_validation_samples:,} validation windows of "
            f"{self.config.data.sequence_length} tokens are ready (fingerprint {self.data_fingerprint})"
        )
        return "\n".join([*corpus.report(self.data.facts), *corpus.warnings(self.data.facts), ready])

    def open_validation(self) -> None:
        """Read the validation sources alone, if there are any and the tokenizer does not depend on others."""
        data = self.config.data
        if not data.validation_sources or data.tokenizer == BYTE_BPE:
            self.open_data()
            return
        self.validation = ValidationText(data, load(data.tokenizer, vocab_size=self.config.model.vocab_size))

    def describe_validation(self) -> list[str]:
        """Return the documents, bytes, tokens and windows of each set, and their files."""
        length = self.config.data.sequence_length
        if self.validation is not None:
            return [summary.validation_line(facts, length=length) for facts in self.validation.facts]
        amounts = summary.amounts(self.data.facts, "validation") | {"windows": self.num_validation_samples}
        return [f"held out of the training sources: {summary.in_words(amounts)} of {length} tokens"]

    # ---------------------------------------------------------------------------------------------------- the network

    def outline(self) -> PeriLNForCausalLM:
        """Return the decoder, for its shapes only."""
        return decoder(self.config)

    def describe(self, model: nn.Module) -> dict[str, str]:
        """Return the norm placement, the parameters without embedding and head, and the operations per token."""
        assert isinstance(model, PeriLNForCausalLM)
        length = self.config.data.sequence_length
        return {
            "  without embedding and head": f"{model.num_parameters(exclude_embeddings=True):,}",
            "training FLOPs per token": f"{model.flops_per_token(length):,.0f}  (windows of {length})",
            "norm placement": _placement_text(self.config.model.norm_placement),
        }

    def build_model(self) -> PeriLNForCausalLM:
        """Return the decoder, initialized from the run's seed."""
        torch.manual_seed(self._seed)
        text = self.data if self.validation is None else self.validation
        return decoder(self.config, end_of_text=text.eos_token_id)

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Group by role: matrices, embeddings and output norms have decay settings; other norms do not decay."""
        optim = self._optim
        embedding = optim.weight_decay if optim.embedding_weight_decay is None else optim.embedding_weight_decay
        decays = {
            "matrix": optim.weight_decay,
            "embedding": embedding,
            "output_norm": optim.output_norm_weight_decay,
            "norm_or_bias": 0.0,
        }
        assert isinstance(model, PeriLNForCausalLM)
        roles = model.parameter_roles()
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        return [
            ParameterGroup(role, {name: p for name, p in named.items() if roles[name] == role}, decay)
            for role, decay in decays.items()
        ]

    def probe_sites(self, model: nn.Module) -> list[Site]:
        """Return the residual stream and each sub-layer's output, before and after its output norm."""
        assert isinstance(model, PeriLNForCausalLM)
        return list(_probe_sites(model.model))

    def layers(self, model: nn.Module) -> Sequence[nn.Module]:
        """Return the blocks."""
        assert isinstance(model, PeriLNForCausalLM)
        return list(model.model.layers)

    def cost(self, model: nn.Module) -> SampleCost:
        """Return the tokens and operations per window."""
        assert isinstance(model, PeriLNForCausalLM)
        length = self.config.data.sequence_length
        return SampleCost(tokens=length, flops=length * model.flops_per_token(length))

    def attention(self) -> AttentionShape | None:
        """Return the shape of a layer's attention, if it is torch's."""
        model = self.config.model
        if self.config.attention != "sdpa":
            return None
        width = model.head_dim or model.hidden_size // model.num_attention_heads
        return AttentionShape(
            heads=model.num_attention_heads,
            key_value_heads=model.num_key_value_heads,
            width=width,
            length=self.config.data.sequence_length,
        )

    def batch(self, sample_ids: np.ndarray, *, split: Split, step: int) -> Batch:
        """Read windows: `tokens` (B, T + 1) int64; for validation also `target_bytes` and `set` (B,)."""
        if split == "training":
            return {"tokens": torch.from_numpy(self.data.read(split, sample_ids))}
        if self.validation is None:
            windows, sizes = self.data.read(split, sample_ids), self.data.target_bytes(sample_ids)
            sets = np.zeros(len(sample_ids), np.int64)
        else:
            windows, sizes = self.validation.read(sample_ids), self.validation.target_bytes(sample_ids)
            sets = self.validation.sets(sample_ids)
        return {key: torch.from_numpy(v) for key, v in (("tokens", windows), ("target_bytes", sizes), ("set", sets))}

    def weight(self, batch: Batch) -> float:
        """Return the number of predicted tokens: all but the first of each window."""
        return float(batch["tokens"][:, 1:].numel())

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the summed objective; the logged loss is cross-entropy alone, without z-loss."""
        tokens = batch["tokens"]
        output = model(
            input_ids=tokens[:, :-1],
            shift_labels=tokens[:, 1:],
            num_items_in_batch=1,
            return_logits=False,  # neither these nor a cache in validations either: they would take memory
            use_cache=False,
        )
        weight = output.loss.new_full((), self.weight(batch))
        if output.z_loss is None:
            return StepOutput(output.loss, weight, {"loss": (output.loss.detach(), weight)})
        metrics = {"loss": (output.loss.detach() - output.z_loss, weight), "z_loss": (output.z_loss, weight)}
        return StepOutput(output.loss, weight, metrics)

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Return the cross-entropy per token and, for bits per byte, per byte of predicted text; also by label."""
        return self.sums(self.step(model, batch).metrics["loss"][0], batch)

    def sums(self, loss_sum: Tensor, batch: Batch) -> Sums:
        """Return the sums of a validation batch from its cross-entropy, summed over the predicted tokens."""
        weight = loss_sum.new_full((), self.weight(batch))
        sums = {"loss": (loss_sum, weight), "loss_per_byte": (loss_sum, batch["target_bytes"].sum().float())}
        by_label = {
            f"{label}.{name}": (value * counts, weight * counts)
            for number, label in enumerate(labels(self.config.data))
            for counts in [(batch["set"][0] == number).float()]  # of all windows: no batch contains two sets
            for name, (value, weight) in sums.items()
            if label is not None
        }
        return sums | by_label

    def card(self) -> ModelCard:
        """Return the model card of an exported decoder."""
        model, data = self.config.model, self.config.data
        return ModelCard(
            pipeline_tag="text-generation",
            tags=["periln"],
            summary=f"A decoder with {model.num_hidden_layers} layers of width {model.hidden_size}, norm placement "
            f"`{model.norm_placement}` ({model.norm_kind}), trained on windows of {data.sequence_length} tokens.",
            usage=_USAGE,
            data=", ".join(source.path for source in data.sources),
            details=tuple(_placement_details(model.norm_placement)),
        )

    def export_settings(self) -> Mapping[str, Any]:
        """Return the padding token and that there is a cache: what generation needs and training does not."""
        tokenizer = load_tokenizer(str(self.data.tokenizer_folder))
        return {"pad_token_id": padding_token_id(tokenizer, self.config.data.tokenizer), "use_cache": True}

    def save_assets(self, folder: Path) -> None:
        """Write the tokenizer, ready for batches of texts: see `complete`."""
        self.data.save_tokenizer(folder)
        complete(folder, max_length=self.config.model.max_position_embeddings)

    def validation_report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return loss (nats per token), perplexity, and bits per byte of UTF-8 text: of all sets, then by label."""
        report = _report(means["loss"], means["loss_per_byte"], "validation")
        for label in filter(None, labels(self.config.data)):
            report |= _report(means[f"{label}.loss"], means[f"{label}.loss_per_byte"], f"validation_{label}")
        return report


def _placement_text(norm_placement: str | Sequence[str]) -> str:
    if not isinstance(norm_placement, str):
        return f"list  {', '.join(norm_placement)}"
    record = CHOICES[norm_placement]
    return f"{record.name}  {record.description}; {record.source}"


def _placement_details(norm_placement: str | Sequence[str]) -> Iterator[str]:
    """Yield what each norm placement in use is, with its source."""
    if not isinstance(norm_placement, str):
        yield f"a norm placement for each layer: {', '.join(norm_placement)}"
    for name in dict.fromkeys([norm_placement] if isinstance(norm_placement, str) else norm_placement):
        record = CHOICES[name]
        yield f"{record.title} (`{record.name}`): {record.description}. Source: {record.source}"


def _report(loss: float, loss_per_byte: float, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}_loss": loss,
        f"{prefix}_perplexity": math.exp(min(loss, 700.0)),  # e^700 is near the largest double
        f"{prefix}_bits_per_byte": loss_per_byte / math.log(2),
    }


def _probe_sites(model: PeriLNModel) -> Iterator[Site]:
    yield Site(None, "embedding", model.layers[0], tensor="input", histogram=True)
    for index, layer in enumerate(model.layers):
        for name in ("attention", "mlp"):
            residual = getattr(layer, name)
            yield Site(index, f"{name}.output", residual.branch)
            if hasattr(residual, "output_norm"):
                yield Site(index, f"{name}.normed_output", residual.output_norm)
            yield Site(index, f"{name}.stream", residual, histogram=True)
    if hasattr(model, "norm"):
        yield Site(None, "final_norm", model.norm)


def decoder(config: LanguageModelConfig, *, end_of_text: int | None = None) -> PeriLNForCausalLM:
    """Return a newly initialized decoder for a configuration.

    Raises:
        ConfigError: The attention implementation is not available on this machine.
    """
    model_config = PeriLNConfig(**asdict(config.model))
    model_config.bos_token_id = model_config.eos_token_id = end_of_text
    model_config._attn_implementation = config.attention
    try:
        model = PeriLNForCausalLM(model_config)
    except ImportError as error:  # transformers looks for the package and for a GPU
        raise ConfigError([f"task.attention: {config.attention} cannot be used here: {error}; write sdpa"]) from None
    model.generation_config.eos_token_id = end_of_text
    return model
