"""`python -m analysis inspect`: its figures equal plain references, and its refusals say what to write instead."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from analysis.inspect import command
from analysis.inspect.angular import TOKENS_PER_WINDOW, AngularProbe, angular_distances
from analysis.inspect.architecture import recognize
from analysis.inspect.massive import LARGEST_PER_DEPTH
from analysis.inspect.measurement import GradientSums, is_causal, measure_model
from analysis.inspect.models import kept_steps, named
from analysis.inspect.windows import Text, Windows, cut
from analysis.measure.scales import effective_scale
from analysis.runs import InputError
from tests.analysis.inspect import test_architecture
from tests.checkpoints import write_checkpoint
from tests.tiny import tiny_file

REPOSITORY = Path(__file__).parents[3]
SHAPE = {**test_architecture.SHAPE, "vocab_size": 300}


def random_model(model_type: str = "llama", **settings: Any) -> Any:
    """A random model whose weights all matter: scales differ, and branches write as much as the stream holds."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SHAPE | settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte, after three special ones."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {character: i + 3 for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random Llama with a tokenizer, as transformers writes it."""
    return saved(random_model(), tmp_path / "llama")


def saved(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the stream grows with depth, naïve or not; " * 20)
    return path


def windows_of(count: int = 3, length: int = 16) -> Windows:
    tokens = torch.randint(3, 250, (count, length), generator=torch.Generator().manual_seed(1))
    return Windows(tokens, None, None, ())


def inspect(*arguments: Any) -> int:
    return command.main([*map(str, arguments), "--device", "cpu"])


# ------------------------------------------------------------------------------------------- figures and references


def test_statistics_equal_an_fp64_reference_from_hidden_states() -> None:
    model, windows = random_model(), windows_of()
    rows = measure_model(model, recognize(model), windows).activations
    with torch.no_grad():
        states = model.double()(input_ids=windows.tokens, output_hidden_states=True).hidden_states
    # transformers' last entry is after the final norm
    expected = {(None, "embedding"): states[0], (0, "mlp.stream"): states[1], (1, "mlp.stream"): states[2]}
    expected[None, "final_norm"] = states[3]
    found = {(row["layer"], row["site"]): row for row in rows}
    for key, values in expected.items():
        # The variance of another layer is 30 % away.
        assert found[key]["variance"] == pytest.approx(values.var(correction=0).item(), rel=1e-5)
        assert found[key]["mean_abs"] == pytest.approx(values.abs().mean().item(), rel=1e-5)
        assert found[key]["max_abs"] == pytest.approx(values.abs().max().item(), rel=1e-5)
        assert found[key]["numel"] == values.numel()


def test_the_stream_between_attention_and_mlp_is_input_plus_both_norms_output() -> None:
    model, windows = random_model("gemma2"), windows_of(1)
    rows = measure_model(model, recognize(model), windows).activations
    seen: dict[str, Tensor] = {}
    layer = model.model.layers[1]
    layer.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    layer.post_attention_layernorm.register_forward_hook(lambda *hooked: seen.update(branch=hooked[2]))
    with torch.no_grad():
        model(input_ids=windows.tokens)
    expected = (seen["x"] + seen["branch"]).double().var(correction=0).item()
    found = next(row for row in rows if (row["layer"], row["site"]) == (1, "attention.stream"))
    assert found["variance"] == pytest.approx(expected, rel=1e-5)


def test_gradients_are_those_of_all_windows_in_one_batch() -> None:
    model, windows = random_model(), windows_of()
    found = {row["parameter"]: row for row in measure_model(model, recognize(model), windows).gradients}
    logits = model(input_ids=windows.tokens).logits[:, :-1]
    loss = F.cross_entropy(logits.flatten(0, 1), windows.tokens[:, 1:].flatten())
    names, parameters = zip(*model.named_parameters(), strict=True)
    assert set(found) == set(names)
    for name, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
        assert found[name]["norm"] == pytest.approx(gradient.norm().item(), rel=1e-4)
    assert all(parameter.grad is None for parameter in parameters)


def test_gradients_of_bf16_weights_are_summed_in_fp32() -> None:
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    sums = GradientSums(layer)
    for _ in range(1000):
        layer.weight.grad = torch.ones_like(layer.weight)
        sums.take()
    assert sums.norms() == {"weight": 1000.0}  # a bf16 sum of ones stops at 256


def test_loss_and_bits_per_byte(folder: Path, text: Path, tmp_path: Path) -> None:
    assert inspect(folder, "--text", text, "--out", tmp_path / "out", "--windows", 2, "--sequence-length", 20) == 0
    summary = json.loads((tmp_path / "out/llama/summary.json").read_text())["steps"][0]
    content = text.read_bytes()[:40]
    tokens = torch.tensor(byte_tokenizer()(content.decode())["input_ids"]).view(2, 20)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(input_ids=tokens).logits[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert summary["loss"] == pytest.approx(expected, rel=1e-5)
    # A token is a byte, so that bits per byte are bits per token.
    assert summary["bits_per_byte"] == pytest.approx(expected / math.log(2), rel=1e-5)


def test_angular_distance_of_the_same_orthogonal_and_opposite_directions() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    turned = torch.tensor([[0.0, 3.0], [1.0, 0.0]])
    found = angular_distances(torch.stack([x, 5 * x, turned, -x]))
    expected = torch.tensor([[0, 0, 0.5, 1], [0, 0, 0.5, 1], [0.5, 0.5, 0, 0.5], [1, 1, 0.5, 0]], dtype=torch.float64)
    assert torch.allclose(found, expected, atol=1e-12)


def test_angular_distance_of_a_small_angle_is_exact() -> None:
    angle = 1e-6  # its cosine is 1 - 5e-13: arccos in fp32 gives 0
    pair = torch.tensor([[[1.0, 0.0]], [[math.cos(angle), math.sin(angle)]]], dtype=torch.float64)
    assert angular_distances(pair)[0, 1].item() == pytest.approx(angle / math.pi, rel=1e-6)


def test_angular_distance_takes_evenly_spaced_tokens_and_leaves_out_zero_vectors() -> None:
    probe = AngularProbe([])
    probe._seen = [None]
    values = torch.arange(1000.0).view(1, 1000, 1)
    probe._see(0, values)
    assert probe._seen[0] is not None
    chosen = probe._seen[0].flatten().tolist()
    assert len(chosen) == TOKENS_PER_WINDOW
    assert [chosen[0], chosen[-1]] == [0.0, 999.0]
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])
    assert angular_distances(vectors)[0, 1].item() == pytest.approx(0.5)


def test_a_planted_massive_activation_is_found_at_its_place() -> None:
    model, windows = random_model(), windows_of(3)
    target = int(windows.tokens[1, 5])
    windows.tokens[windows.tokens == target] = 7
    windows.tokens[1, 5] = target
    with torch.no_grad():
        model.model.embed_tokens.weight[target, 11] = -4000.0
    found = measure_model(model, recognize(model), windows).largest
    first = found[0]
    assert (first.depth, first.window, first.position, first.dimension) == (0.0, 1, 5, 11)
    assert first.value == -4000.0
    assert [element.is_massive for element in found if element.depth == 0.0] == [True] + [False] * 4
    assert len(found) == LARGEST_PER_DEPTH * 7  # embedding, and two depths in each of three layers


def test_offloaded_weights_give_the_same_figures(folder: Path, tmp_path: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(folder)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {name: "cpu" for name in ("model.layers.2", "model.norm", "model.rotary_emb", "lm_head")}
    parts = AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=tmp_path / "offloaded")
    assert any(parameter.is_meta for parameter in parts.parameters())
    found = [measure_model(m, recognize(m), windows_of(2), with_gradients=False) for m in (whole, parts)]
    assert found[0].activations == found[1].activations
    assert found[0].largest == found[1].largest
    assert found[0].angles == found[1].angles
    rows = {row["parameter"]: row for row in found[1].gradients}
    assert rows["model.layers.1.mlp.up_proj.weight"]["parameter_norm"] is None
    expected = whole.model.layers[1].input_layernorm.weight.max().item()
    assert rows["model.layers.1.input_layernorm.weight"]["scale_max"] == pytest.approx(expected, rel=1e-4)


def test_the_scale_of_gemma_is_one_plus_its_weight() -> None:
    norm = random_model("gemma2").model.layers[0].post_attention_layernorm
    assert torch.allclose(effective_scale(norm), 1 + norm.weight, atol=1e-5)
    assert norm.weight.min() < 0


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8, eps=1e-6)])
def test_the_scale_of_plain_norms_is_their_weight(norm: Any) -> None:
    with torch.no_grad():
        norm.weight.uniform_(-2, 2)
        if norm.__class__ is nn.LayerNorm:
            norm.bias.uniform_(-2, 2)
    assert torch.allclose(effective_scale(norm), norm.weight, atol=2e-5)


def test_norm_scales_carry_their_role() -> None:
    model = random_model("olmo2")
    rows = {row["parameter"]: row for row in measure_model(model, recognize(model), windows_of(1)).gradients}
    assert rows["model.layers.1.post_attention_layernorm.weight"]["norm_role"] == "attention.output_norm"
    assert rows["model.layers.1.post_feedforward_layernorm.weight"]["norm_role"] == "mlp.output_norm"
    assert rows["model.norm.weight"]["norm_role"] is None
    assert "scale_mean" not in rows["model.layers.1.mlp.up_proj.weight"]


def test_a_model_that_sees_the_future_is_not_causal() -> None:
    assert is_causal(random_model())
    assert not is_causal(random_model("bert", is_decoder=False))
    assert is_causal(random_model("bert", is_decoder=True))


# ------------------------------------------------------------------------------------------------------------- text


def test_windows_are_consecutive_and_begin_with_bos_where_the_tokenizer_puts_it(text: Path) -> None:
    plain = byte_tokenizer()
    found = cut(Text(text), plain, length=10, count=3)
    assert plain.decode(found.tokens.flatten()) == text.read_text()[:30]
    assert found.num_bytes == 27  # the first token of a window is not predicted
    with_bos = byte_tokenizer()
    with_bos.add_bos_token = True
    found = cut(Text(text), with_bos, length=10, count=3)
    assert found.tokens[:, 0].tolist() == [1, 1, 1]
    assert found.num_bytes == 27


def test_a_packed_text_is_the_same(text: Path, tmp_path: Path) -> None:
    packed = tmp_path / "text.txt.gz"
    packed.write_bytes(gzip.compress(text.read_bytes()))
    windows = [cut(Text(path), byte_tokenizer(), length=10, count=3).tokens for path in (text, packed)]
    assert torch.equal(*windows)


def test_a_short_text_gives_fewer_windows_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("x" * 25)
    found = cut(Text(tmp_path / "short.txt"), byte_tokenizer(), length=10, count=8)
    assert len(found.tokens) == 2
    assert "2 of 8 windows" in found.notes[0]


# -------------------------------------------------------------------------------------------------------- the folder


def test_models_side_by_side(folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    olmo = saved(random_model("olmo2"), tmp_path / "olmo2")
    out = tmp_path / "out"
    for _ in range(2):  # the second replaces the first
        assert inspect(folder, olmo, "--text", text, "--out", out, "--windows", 2, "--sequence-length", 20) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "index.html")
    page = (out / "index.html").read_text()
    for words in ("input_layernorm", "post_feedforward_layernorm", "Angular distance", "Massive activations"):
        assert words in page
    assert {path.name for path in out.iterdir()} == {"index.html", "figures", "llama", "olmo2"}
    assert (out / "figures/angular-distance-2.svg").is_file()
    for name in ("activations", "gradients", "massive"):
        rows = [json.loads(line) for line in (out / f"olmo2/{name}.jsonl").read_text().splitlines()]
        assert all(row["step"] == 0 for row in rows)
        assert rows
    angles = json.loads((out / "olmo2/angular.json").read_text())[0]
    assert angles["depths"] == [0, 1, 2, 3]
    assert angles["angular_distance"][2][2] == 0
    summary = json.loads((out / "olmo2/summary.json").read_text())["steps"][0]
    assert summary["placement"] == "output"
    assert summary["layers"][1]["mlp"]["output_norm"] == "post_feedforward_layernorm"


def test_without_gradients_the_rest_is_there(folder: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--text", text, "--out", out, "--windows", 1, "--sequence-length", 20, "--no-gradients"]
    assert inspect(folder, *arguments) == 0
    rows = [json.loads(line) for line in (out / "llama/gradients.jsonl").read_text().splitlines()]
    assert all(row["norm"] is None and row["parameter_norm"] > 0 for row in rows)
    assert any("scale_mean" in row for row in rows)
    assert "gradients were not measured" in (out / "index.html").read_text()
    assert not list((out / "figures").glob("gradient*"))


def test_the_default_text_is_stated(folder: Path, tmp_path: Path) -> None:
    assert inspect(folder, "--out", tmp_path / "out", "--windows", 1) == 0
    summary = json.loads((tmp_path / "out/llama/summary.json").read_text())
    assert "argparse.py" in summary["text"]
    assert summary["steps"][0]["sequence_length"] == 64  # the model's positions end there


def test_other_tokenizers_are_noted(folder: Path, text: Path, tmp_path: Path) -> None:
    other = saved(random_model(), tmp_path / "other")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["stream"])
    tokenizer.save_pretrained(other)
    out = tmp_path / "out"
    assert inspect(folder, other, "--text", text, "--out", out, "--windows", 1, "--sequence-length", 20) == 0
    assert "different tokenizers" in (out / "index.html").read_text()


# ------------------------------------------------------------------------------------------------------------ errors


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert inspect(*arguments) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_what_is_no_causal_language_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    shape = {name: SHAPE[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    for kind, settings, words in (
        ("bert", shape | {"num_attention_heads": 4, "vocab_size": 300}, "BertModel is not a causal language model"),
        ("vit", shape | {"num_attention_heads": 4, "image_size": 32}, "ViTModel is not a causal language model"),
        ("t5", {"d_model": 32, "num_layers": 1, "vocab_size": 300}, "encoder-decoder"),
    ):
        AutoModel.from_config(AutoConfig.for_model(kind, **settings)).save_pretrained(tmp_path / kind)
        assert words in refused(capsys, tmp_path / kind, "--out", out)
    assert not out.exists()


def test_missing_paths_and_files_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert "does not exist" in refused(capsys, tmp_path / "none", "--out", out)
    (tmp_path / "empty").mkdir()
    assert "neither config.json" in refused(capsys, tmp_path / "empty", "--out", out)
    assert "give a plain-text file" in refused(capsys, folder, "--text", tmp_path / "none.txt", "--out", out)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00" * 400)
    assert "UTF-8" in refused(capsys, folder, "--text", tmp_path / "bytes", "--out", out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "has no loadable tokenizer" in refused(capsys, folder, "--out", out)


def test_text_and_windows_that_do_not_fit_are_refused(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "short.txt").write_text("x" * 25)
    message = refused(capsys, folder, "--text", tmp_path / "short.txt", "--out", out)
    assert "25 tokens" in message
    assert "--sequence-length 25" in message
    assert "end at 64" in refused(capsys, folder, "--text", text, "--sequence-length", 65, "--out", out)
    small = random_model(vocab_size=50)
    small.save_pretrained(tmp_path / "small")
    message = refused(capsys, tmp_path / "small", "--tokenizer", folder, "--text", text, "--out", out)
    assert "only 50 embeddings" in message


def test_a_folder_in_use_is_not_touched(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("")
    assert "holds no earlier inspection" in refused(capsys, folder, "--out", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_missing_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = random_model()
    state = {name: value for name, value in model.state_dict().items() if "layers.1." not in name}
    model.save_pretrained(tmp_path / "half", state_dict=state)
    byte_tokenizer().save_pretrained(tmp_path / "half")
    assert "lacks 9 weights" in refused(capsys, tmp_path / "half", "--out", tmp_path / "out")


def test_a_hub_name_without_network_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "inspect", "nobody/nothing", "--out", str(tmp_path / "out")],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "hf download nobody/nothing" in done.stderr


# -------------------------------------------------------------------------------------------------------------- runs


def fake_run(folder: Path, *, checkpoints: tuple[int, ...], weights: tuple[int, ...] = ()) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("name: fake\nsteps: 30\ntask: {kind: language_model}\noptim: {lr: 0.1}\n")
    for step in checkpoints:
        write_checkpoint(folder, step)
    for step in weights:
        (folder / f"weights/step_{step:06d}").mkdir(parents=True)
        (folder / f"weights/step_{step:06d}/config.json").write_text("{}")
    return folder


def test_steps_of_a_run(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", checkpoints=(20, 30), weights=(10, 20))
    (run / "checkpoints/step_000040.partial").mkdir()
    assert {step: path.parent.name for step, path in kept_steps(run).items()} == {
        10: "weights",
        20: "checkpoints",
        30: "checkpoints",
    }
    assert named([str(run)])[0].steps == (30,)
    assert named([f"{run}@10"])[0].steps == (10,)
    assert named([f"{run}@30,10"])[0].steps == (10, 30)
    assert named([f"{run}@all"])[0].steps == (10, 20, 30)
    assert [subject.label for subject in named([str(run), f"{run}@all", f"{run}@10"])] == ["fake@30", "fake", "fake@10"]
    with pytest.raises(InputError, match="step 5 was not saved; this run has saved steps 10, 20, 30"):
        named([f"{run}@5"])
    with pytest.raises(InputError, match="write @STEP"):
        named([f"{run}@last"])
    with pytest.raises(InputError, match="has saved no weights"):
        named([str(fake_run(tmp_path / "new", checkpoints=()))])


@pytest.mark.slow
def test_two_steps_of_a_run_are_a_time_axis(text: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "train", str(tiny_file(tmp_path))],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/tiny"
    out = tmp_path / "out"
    assert inspect(f"{run}@3,8", "--text", text, "--windows", 2, "--out", out) == 0
    summary = json.loads((out / "tiny/summary.json").read_text())
    assert [step["step"] for step in summary["steps"]] == [3, 8]
    assert [step["placement"] for step in summary["steps"]] == ["peri", "peri"]
    assert summary["steps"][0]["loss"] != summary["steps"][1]["loss"]
    rows = [json.loads(line) for line in (out / "tiny/activations.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {3, 8}
    assert "tiny over steps" in (out / "index.html").read_text()
