"""Natively exported folders: written in shards, compared with the trained model, loaded where the project is not."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from analysis.inspect.architecture import recognize
from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.modeling_periln import PeriLNForCausalLM
from tests.modeling.decoder.test_export import run_elsewhere
from tests.train.convert.natives import DECODERS, SHAPE, architecture_of, decoder
from train.checkpoint.weights_folder import load_folder
from train.config.facts.native_choice import native_choice
from train.convert.rules import Rule
from train.convert.steps import Interleaved, MinusOne, NormedRows
from train.export import verification
from train.export.native_folder import write_native_folder
from train.export.native_report import NativeReport, VerificationError

LOAD_MANY = """
import importlib.util, pathlib
assert importlib.util.find_spec("modeling") is None, "the project can be seen"
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
tokens = load_file("tokens.safetensors")["tokens"]
mask = load_file("tokens.safetensors")["mask"]
found = {}
for folder in sorted(pathlib.Path("exported").iterdir()):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    found[folder.name] = model(tokens).logits.detach()
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    found[folder.name + " written"] = model.generate(tokens, attention_mask=mask, **settings)
save_file(found, "found.safetensors")
"""
FOLDED: dict[str, Any] = {"embedding_norm": True, "tie_word_embeddings": True}
PLACEMENTS = {"llama": "pre", "qwen3": "pre", "hyperclovax": "peri", "glm4": "peri", "gemma3": "peri"}


def tokens(length: int = 24) -> Tensor:
    return torch.randint(SHAPE["vocab_size"], (2, length), generator=torch.Generator().manual_seed(3))


def write(
    model: PeriLNForCausalLM, out: Path, *, dtype: torch.dtype = torch.float32, compare: bool = True, shard: int = 2**30
) -> NativeReport:
    return write_native_folder(
        model.config,
        architecture_of(model),
        lambda name: model.state_dict()[name].float(),
        out,
        dtype=dtype,
        tokens={"random tokens": tokens()} if compare else None,
        save_assets=lambda folder: None,
        settings={},
        card=lambda folder, report: write_lines(folder / "README.md", report),
        shard_bytes=shard,
    )


def write_lines(path: Path, report: NativeReport) -> None:
    path.write_text("\n".join(report.lines()))


def test_every_architecture_loads_where_the_project_is_not(tmp_path: Path) -> None:
    models = {
        name: decoder(**settings, **(FOLDED if number % 2 else {}))
        for number, (name, (_, settings)) in enumerate(DECODERS.items())
    }
    prompt = tokens()
    mask = torch.ones_like(prompt)
    mask[0, :5] = 0  # padded on the left
    save_file({"tokens": prompt, "mask": mask}, tmp_path / "tokens.safetensors")
    for name, model in models.items():
        report = write(model, tmp_path / "exported" / name, compare=False)
        assert report.architecture == DECODERS[name][0]
        assert not list((tmp_path / "exported" / name).glob("*.py"))
        assert "auto_map" not in json.loads((tmp_path / "exported" / name / "config.json").read_text())
        assert "not compared" in (tmp_path / "exported" / name / "README.md").read_text()
    run_elsewhere(LOAD_MANY, tmp_path)
    found = load_file(tmp_path / "found.safetensors")
    for name, model in models.items():
        torch.testing.assert_close(found[name], model(prompt).logits.detach(), atol=1.5e-5, rtol=0)  # worst: 1.2e-5
        ours: Any = model
        settings: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        written = ours.generate(prompt, attention_mask=mask, **settings)
        assert (found[f"{name} written"] == written).all(), name


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in DECODERS]
    + [(name, torch.bfloat16) for name in ("llama", "gemma3", "stablelm_qk")],
)
def test_the_comparison_stays_within_rounding(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = decoder(**DECODERS[name][1], **FOLDED)
    report = write(model, tmp_path / "out", dtype=dtype)
    assert report.verification is not None
    assert [each.dtype for each in report.verification.differences] == ["fp32", "bf16"]
    for each in report.verification.differences:
        assert each.error < 1.5 * each.rounding  # measured: 0.5 to 1.3; without a step of the mapping, thousands
    assert report.verification.continuation is not None
    assert report.verification.continuation.tokens == 32
    card = (tmp_path / "out/README.md").read_text()
    assert "fp32, random tokens: logits differ by at most" in card
    assert "embedding norm computed into the embedding" in card
    found = recognize(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    assert found.placement == PLACEMENTS.get(name, "pre" if "stablelm" in name else "output")


def test_shards_are_written_and_read_as_one(tmp_path: Path) -> None:
    model = decoder(**DECODERS["qwen3"][1])
    write(model, tmp_path / "whole", compare=False)
    write(model, tmp_path / "shards", shard=20_000)
    files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 5
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "shards/model.safetensors.index.json").read_text())
    whole = load_file(tmp_path / "whole/model.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "shards" / file)[name], whole[name])
    assert index["weight_map"].keys() == whole.keys()
    fresh = decoder(**DECODERS["qwen3"][1])
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    load_folder(fresh, tmp_path / "shards")
    torch.testing.assert_close(fresh(tokens()).logits, model(tokens()).logits, atol=0, rtol=0)


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(decoder(**DECODERS["llama"][1]), tmp_path / "out", compare=False)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o640}


@pytest.mark.parametrize(
    ("name", "sabotage"),
    [
        ("glm4", lambda patch: patch.setattr(Interleaved, "to_native", lambda self, tensor, read: tensor)),
        ("gemma3", lambda patch: patch.setattr(MinusOne, "to_native", lambda self, tensor, read: tensor - 0.999)),
        ("llama", lambda patch: patch.setattr(NormedRows, "_normed", lambda self, rows, scale: 1.001 * scale * rows)),
        ("qwen3", lambda patch: patch.setattr(Rule, "to_native", swapped(Rule.to_native))),
    ],
)
def test_a_folder_that_computes_something_else_is_not_written(
    name: str, sabotage: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = decoder(**DECODERS[name][1], embedding_norm=True)
    sabotage(monkeypatch)
    with pytest.raises(VerificationError, match="does not compute what the trained one does: in fp32 on random tokens"):
        write(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def swapped(to_native: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a mapping that takes the up projection of the last layer alone for the gate."""

    def other(rule: Rule, read: Callable[[str], Tensor]) -> Tensor:
        if rule.native == "model.layers.2.mlp.gate_proj.weight":
            return read("model.layers.2.mlp.branch.up_proj.weight")
        return to_native(rule, read)

    return other


def test_another_text_is_a_failure_unless_it_is_a_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(**DECODERS["llama"][1])
    monkeypatch.setattr(verification, "_difference", lambda *_: verification.Difference("", "fp32", 0.0, 0.0, 0.0, 1.0))
    monkeypatch.setattr(Interleaved, "to_native", lambda self, tensor, read: tensor)
    monkeypatch.setattr(Rule, "to_native", swapped(Rule.to_native))
    with pytest.raises(VerificationError, match=r"continuations differ from token \d+ on"):
        write(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {  # reason, nearest
    "post": ({"norm_placement": "post"}, "norm_placement post", "norm_placement=pre"),
    "deepnorm": ({"norm_placement": "deepnorm"}, "norm(r x + f(x))", "norm_placement=pre"),
    "keel": ({"norm_placement": "keel"}, "norm(r x + f(norm(x)))", "norm_placement=pre"),
    "hybrid": ({"norm_placement": "hybrid"}, "norm(x) + f(norm(x))", "norm_placement=pre"),
    "hybrid star": ({"norm_placement": "hybrid_star"}, "norm_placement hybrid", "norm_placement=pre"),
    "sub": ({"norm_placement": "sub"}, "with a norm inside f", "norm_placement=pre"),
    "mix": ({"norm_placement": "mix", "num_hidden_layers": 4}, "norm_placement post", "norm_placement=pre"),
    "a list that mixes": ({"norm_placement": ("pre", "peri", "peri")}, "not peri and pre", "norm_placement=pre"),
    "gpas": ({"gpas": True}, "gpas true", "gpas=false"),
    "gates per head": ({"attention_gate": "head"}, "attention_gate head", "attention_gate=none"),
    "gates per element": ({"attention_gate": "element"}, "attention_gate element", "attention_gate=none"),
    "dyt": ({"norm_kind": "dyt", "norm_eps": 1e-6}, "norm_kind dyt", "norm_kind=rmsnorm"),
    "no final norm": ({"final_norm": False}, "final_norm false", "final_norm=true"),
    "pre, projection": ({"norm_placement": "pre", "qk_norm": "projection"}, "qk_norm projection", "qk_norm=head"),
    "peri, projection": ({"qk_norm": "projection"}, "qk_norm projection", "qk_norm=head"),
    "output, no qk-norm": ({"norm_placement": "output"}, "qk_norm none", "qk_norm=head"),
    "peri, LayerNorm": ({"norm_kind": "layernorm"}, "norm_kind layernorm", "norm_kind=rmsnorm"),
    "pre, uneven": ({"norm_placement": "pre", "hidden_size": 50, "head_dim": 12}, "do not divide", "qk_norm=head"),
    "peri, head, uneven": ({"qk_norm": "head", "hidden_size": 50, "head_dim": 12}, "do not divide", "qk_norm=none"),
    "LayerNorm, wide heads": (
        {"norm_placement": "pre", "norm_kind": "layernorm", "head_dim": 24},
        "no head_dim of its own",
        "norm_kind=rmsnorm",
    ),
    "two reasons": ({"final_norm": False, "gpas": True}, "gpas true", "final_norm=true task.model.gpas=false"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_architecture_computes_is_refused_with_the_nearest(case: str) -> None:
    settings, reason, nearest = REFUSED[case]
    model = decoder(**settings)
    choice = native_choice(DecoderShape.of(model.config))
    assert choice.architecture is None
    assert any(reason in each for each in choice.reasons), choice.reasons
    assert choice.nearest == f"task.model.{nearest}"
    changes = [change.removeprefix("task.model.").split("=") for change in choice.nearest.split()]
    values = {key: {"true": True, "false": False}.get(value, value) for key, value in changes}
    other = {key: value for key, value in settings.items() if key not in values}
    assert architecture_of(decoder(**other, **values)).class_name  # it does have one
