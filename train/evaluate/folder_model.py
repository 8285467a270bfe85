"""Models and tokenizers of exported folders, loaded without running code of the folder.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from modeling.decoder.configuration_periln import PeriLNConfig
from modeling.decoder.modeling_periln import PeriLNForCausalLM
from modeling.joint_filter.configuration_dkn import DKNConfig
from modeling.joint_filter.modeling_dkn import DKNModel
from modeling.segmentation.configuration_bap import BoxClassifierConfig, SegmenterConfig
from modeling.segmentation.modeling_bap import BoxClassifier, Segmenter
from train.config.errors import ConfigError
from train.config.facts.run_layout import read_json
from train.data.text.tokenizer import end_of_text_id, load_tokenizer
from train.tasks.language_model import LanguageModel
from train.tasks.task import Batch, Sums

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FEW = 3  # names in a message
_OWN = {DKNConfig.model_type: DKNModel, BoxClassifierConfig.model_type: BoxClassifier} | {
    SegmenterConfig.model_type: Segmenter
}


class LoadedFolder(NamedTuple):
    """A language model in fp32 on the CPU, in eval mode.

    Args:
        model: The model.
        is_ours: Whether it is this project's decoder; otherwise an architecture of transformers.
    """

    model: PreTrainedModel
    is_ours: bool

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.model.config.get_text_config().vocab_size

    @property
    def in_words(self) -> str:
        """Class, size and type of the weights."""
        return model_in_words(self.model, owner="this checkout" if self.is_ours else "transformers")


def model_in_words(model: PreTrainedModel, *, owner: str = "this checkout") -> str:
    """Return class, size and type of the weights of a model, and where its code comes from."""
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"{type(model).__name__} of {owner}, {count:,} parameters in fp32"


def load_folder(folder: Path) -> LoadedFolder:
    """Load the model of a folder: our decoder by this checkout's class, any other by that of transformers.

    Raises:
        ConfigError: It is not a causal language model, needs code of its own, or its weights are missing, damaged or of
            another shape.
    """
    is_ours = (read_json(folder / "config.json") or {}).get("model_type") == PeriLNConfig.model_type
    _require_weights(folder)
    if not is_ours:
        _require_causal(folder)
        return LoadedFolder(_loaded(folder, AutoModelForCausalLM, trust_remote_code=False), is_ours)
    return LoadedFolder(_loaded(folder, PeriLNForCausalLM), is_ours)


def load_own(folder: Path) -> PreTrainedModel:
    """Load the image model of a folder by this checkout's class, in fp32 on the CPU, in eval mode.

    Raises:
        ConfigError: It is none, or its weights are missing, damaged or of another shape.
    """
    model_type = (read_json(folder / "config.json") or {}).get("model_type")
    if model_type not in _OWN:
        raise ConfigError([f"{folder}: is no image model of this project; config.json has model_type {model_type!r}"])
    _require_weights(folder)
    return _loaded(folder, _OWN[model_type])


def _require_weights(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        raise ConfigError([f"{folder}: contains no .safetensors file; copy the folder again, or convert its weights"])


def _loaded(folder: Path, auto: Any, **settings: Any) -> PreTrainedModel:
    """Load a folder by one of our classes or of transformers', in eval mode.

    Raises:
        ConfigError: It cannot be loaded, or has other weights than its class.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, report = auto.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **settings,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
        raise ConfigError([f"{folder}: cannot be loaded: {_first_line(error)}"]) from error
    for key, meaning in (("missing_keys", "lacks"), ("unexpected_keys", "has weights that its class does not read:")):
        if names := sorted(report[key]):
            more = ", ..." if len(names) > _FEW else ""
            raise ConfigError([f"{folder}: {meaning} {', '.join(names[:_FEW])}{more}; export or copy it again"])
    return model.eval()


def _require_causal(folder: Path) -> None:
    """Refuse what transformers itself has no causal language model for.

    Raises:
        ConfigError: See above; or its configuration cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if "trust_remote_code" in str(error):
            reason = "needs code of its own, which is not run; evaluate models of this project or of transformers"
            raise ConfigError([f"{folder}: {reason}"]) from error
        raise ConfigError([f"{folder / 'config.json'}: {_first_line(error)}"]) from error
    mapped: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    named = getattr(config, "architectures", None) or []
    if mapped is None or mapped.__name__ not in named:
        is_what = ", ".join(named) or type(config).__name__
        raise ConfigError([f"{folder}: {is_what} is not a causal language model; pass one (...ForCausalLM)"])


def load_its_tokenizer(folder: Path, *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a folder.

    Raises:
        ConfigError: There is none, it has tokens that the model cannot read, or no end-of-text token.
    """
    try:
        tokenizer = load_tokenizer(str(folder))
        end_of_text_id(tokenizer, str(folder))
    except ConfigError as error:
        raise ConfigError([f"{folder}: {fault.partition(': ')[2]}" for fault in error.faults]) from error
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise ConfigError(
            [
                f"{folder}: its tokenizer has ids up to {largest}, but the model only {vocab_size} tokens; put the "
                "tokenizer with which it was trained into the folder"
            ]
        )
    return tokenizer


def native_sums(task: LanguageModel) -> Callable[[nn.Module, Batch], Sums]:
    """Return the evaluation of a batch by a model of transformers, whose logits become the task's metrics."""

    def sums(model: nn.Module, batch: Batch) -> Sums:
        tokens = batch["tokens"]  # (B, T + 1)
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits  # (B, T, V)
        loss_sum = sum(
            F.cross_entropy(of_window.float(), targets, reduction="sum")
            for of_window, targets in zip(logits, tokens[:, 1:], strict=True)
        )
        assert isinstance(loss_sum, torch.Tensor)
        return task.sums(loss_sum, batch)

    return sums


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
