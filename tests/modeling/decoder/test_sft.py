"""TRL's SFTTrainer on the decoder and on a Llama of the same weights; skipped without TRL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from .test_trainer import models
from .tiny_decoder import VOCAB_SIZE, tiny_tokens

trl: Any = pytest.importorskip("trl", reason="needs the extra `clients`")
peft: Any = pytest.importorskip("peft", reason="needs the extra `clients`")

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated.*:DeprecationWarning"),
]


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB_SIZE)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", pad_token="w3")


def losses(model: Any, folder: Path, **options: Any) -> list[float]:
    """Fine-tune on text for four steps and return their losses, then that of an evaluation."""
    texts = [" ".join(f"w{token}" for token in row) for row in tiny_tokens(16, 12).tolist()]
    texts = [text[: 40 + 3 * index] for index, text in enumerate(texts)]  # of different lengths
    data, adapter = Dataset.from_dict({"text": texts}), options.pop("adapter", None)
    plain: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "max_length": 16}
    plain |= {"optim": "sgd", "learning_rate": 0.03, "save_strategy": "no", "report_to": [], "disable_tqdm": True}
    torch.manual_seed(0)
    trained = trl.SFTTrainer(
        model=model,
        processing_class=tokenizer(),
        train_dataset=data,
        eval_dataset=data,
        peft_config=adapter,
        args=trl.SFTConfig(str(folder), use_cpu=True, bf16=False, **plain, **options),
    )
    trained.train()
    return [row["loss"] for row in trained.state.log_history if "loss" in row] + [trained.evaluate()["eval_loss"]]


@pytest.mark.parametrize("way", ["plain", "packed", "adapter"])
def test_fine_tuning_equals_llamas(tmp_path: Path, way: str) -> None:
    """TRL reads the matrix of the head by itself, so it has to have no padding rows, as in exported folders."""
    options: dict[str, Any] = {"packing": way == "packed"}
    if way == "adapter":
        options["adapter"] = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"])
    ours, theirs = models()
    ours.resize_token_embeddings(VOCAB_SIZE)
    found, expected = (losses(model, tmp_path, **options) for model in (ours, theirs))
    assert found == pytest.approx(expected, rel=1e-6)  # measured: 0
    assert len(set(found)) == 5
