"""Configuration errors: all faults are reported at once, each with the value given and what to write instead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.processes import HANG_SECONDS
from tests.tiny import tiny_file
from tests.tiny_filter import tiny_filter_file
from train.config.batch import check_world_size
from train.config.errors import ConfigError
from train.config.load import load
from train.config.tasks.kinds import LARGEST_LR_FACTORS

ROOT = Path(__file__).parents[3]

# name of the case -> the overrides, and what the message must contain
WRONG: dict[str, tuple[list[str], list[str]]] = {
    "mistyped key": (["optim.warmpu=0.1"], ["optim.warmpu", "optim.warmup"]),
    "mistyped model key": (["task.model.hiden_size=8"], ["task.model.hiden_size", "task.model.hidden_size"]),
    "mistyped section": (["engin.zero_stage=1"], ["engin", "engine"]),
    "key of another section": (["lr=1e-3"], ["lr", "optim.lr"]),
    "model key at the top": (["hidden_size=64"], ["hidden_size", "task.model.hidden_size"]),
    "text for a number": (["optim.lr=fast"], ["optim.lr", "fast", "number"]),
    "fraction for a count": (["steps=1.5"], ["steps", "1.5"]),
    "truth value for a count": (["steps=true"], ["steps", "true"]),
    "text for a truth value": (["engine.compile=maybe"], ["engine.compile", "maybe"]),
    "list for a number": (["optim.lr=[1,2]"], ["optim.lr"]),
    "null for a required key": (["steps=null"], ["steps"]),
    "unknown task": (["task.kind=translation"], ["task.kind", "translation", "language_model"]),
    "unknown placement": (["task.model.norm_placement=middle"], ["norm_placement", "middle", "peri"]),
    "placement list of wrong length": (["task.model.norm_placement=[pre]"], ["norm_placement", "2"]),
    "placement list with a stranger": (["task.model.norm_placement=[pre,side]"], ["norm_placement", "side"]),
    "unknown norm": (["task.model.norm_kind=batchnorm"], ["norm_kind", "batchnorm", "rmsnorm"]),
    "unknown activation": (["task.model.hidden_act=sillu"], ["hidden_act", "sillu", "silu"]),
    "heads do not divide the width": (["task.model.num_attention_heads=5"], ["num_attention_heads", "5", "32"]),
    "key heads do not divide the heads": (["task.model.num_key_value_heads=3"], ["num_key_value_heads", "3", "4"]),
    "odd head": (["task.model.head_dim=7"], ["head_dim", "7"]),
    "no layers": (["task.model.num_hidden_layers=0"], ["num_hidden_layers", "0"]),
    "window longer than the positions": (["task.data.sequence_length=64"], ["sequence_length", "64", "32"]),
    "unknown rope": (["task.model.rope_parameters={rope_type: spiral}"], ["rope", "spiral"]),
    "rope without its factor": (
        ["task.model.rope_parameters={rope_type: linear, rope_theta: 10000.0}"],
        ["rope_parameters", "factor"],
    ),
    "frozen output norms that do not exist": (
        ["task.model.norm_placement=pre", "task.model.frozen_norm_scales=output"],
        ["frozen_norm_scales", "output"],
    ),
    "decay of output norms that do not exist": (
        ["task.model.norm_placement=pre", "optim.output_norm_weight_decay=0.1"],
        ["output_norm_weight_decay"],
    ),
    "micro-batch above the batch": (["micro_batch_size=16"], ["micro_batch_size", "16", "8"]),
    "no samples": (["global_batch_size=0"], ["global_batch_size", "0"]),
    "no learning rate": (["optim.lr=0"], ["optim.lr"]),
    "beta of one": (["optim.betas=[0.9, 1.0]"], ["betas", "1.0"]),
    "an eps with which updates overflow": (["optim.eps=1e-36", "optim.lr=2"], ["optim.eps", "beyond fp32", "or more"]),
    "a decay that turns weights": (["optim.weight_decay=200"], ["optim.weight_decay", "less than 100"]),
    "three betas": (["optim.betas=[0.9, 0.95, 0.99]"], ["betas"]),
    "warm-up longer than the run": (["optim.warmup=100"], ["warmup", "100", "8"]),
    "fraction above one": (["optim.warmup=1.5"], ["warmup", "1.5"]),
    "decay without its schedule": (["optim.decay=0.2"], ["optim.decay", "warmup_stable_decay"]),
    "floor of a constant schedule": (
        ["optim.schedule=constant", "optim.final_lr_fraction=0.1"],
        ["final_lr_fraction", "constant"],
    ),
    "floor of a poly schedule": (
        ["optim.schedule=poly", "optim.final_lr_fraction=0.1"],
        ["final_lr_fraction", "poly_power", "write 0"],
    ),
    "power without its schedule": (["optim.poly_power=0.9"], ["optim.poly_power", "cosine", "optim.schedule=poly"]),
    "power of zero": (["optim.schedule=poly", "optim.poly_power=0"], ["optim.poly_power", "null for 0.9 with poly"]),
    "unknown optimizer": (["optim.optimizer=sdg"], ["optim.optimizer", "sdg", "sgd"]),
    "momentum of AdamW": (["optim.momentum=0.9"], ["optim.momentum", "adamw", "optim.optimizer=sgd"]),
    "betas of SGD": (
        ["optim.optimizer=sgd", "optim.betas=[0.9, 0.99]"],
        ["optim.betas", "has no effect with optim.optimizer sgd", "optim.optimizer=adamw"],
    ),
    "eps of SGD": (["optim.optimizer=sgd", "optim.eps=1e-6"], ["optim.eps", "no effect with optim.optimizer sgd"]),
    "no momentum": (["optim.optimizer=sgd", "optim.momentum=0"], ["optim.momentum", "null for 0.9 with sgd"]),
    "momentum of one": (["optim.optimizer=sgd", "optim.momentum=1"], ["optim.momentum", "0.999"]),
    "a rate with which SGD overflows": (
        [*("optim.optimizer=sgd", "optim.lr=1e6", "optim.weight_decay=0", "optim.gradient_clipping=null"), "steps=1e9"],
        ["optim.lr", "beyond fp32", "write 5.1e+05 or less", "optim.gradient_clipping"],
    ),
    "clipping of zero": (["optim.gradient_clipping=0"], ["gradient_clipping", "null"]),
    "unknown schedule": (["optim.schedule=cosin"], ["schedule", "cosin", "cosine"]),
    "stage 4": (["engine.zero_stage=4"], ["zero_stage", "4"]),
    "precision that is not there yet": (["engine.precision=fp8"], ["precision", "fp8", "bf16"]),
    "offload without partitions": (["engine.zero_stage=0", "engine.offload=optimizer"], ["engine.offload"]),
    "bf16 gradients of fp32 weights": (["engine.gradient_dtype=bf16"], ["gradient_dtype", "fp32"]),
    "fp32 gradients at stage 0 in bf16": (
        ["engine.zero_stage=0", "engine.precision=bf16"],
        ["zero_stage", "gradient_dtype"],
    ),
    "compiled stage 3": (["engine.zero_stage=3", "engine.compile=true"], ["compile", "zero_stage"]),
    "name that is a path": (["name=a/b"], ["name", "a/b"]),
    "start without a step": (["checkpoint.start_from=other@latest"], ["start_from", "RUN@STEP"]),
    "override without a value": (["optim.lr"], ["optim.lr", "="]),
    "probes at no interval": (["probes.activations_every=0"], ["probes.activations_every", "null"]),
    "gradient probes at no interval": (["probes.gradients_every=0"], ["probes.gradients_every", "null"]),
    "layer probes at no interval": (["probes.layers_every=0"], ["probes.layers_every", "null for never"]),
    "layers measured by nothing": (
        ["probes.layers_every=5", "probes.layer_windows=0"],
        ["probes.layer_windows", "from 1 to"],
    ),
    "windows of layers that are not measured": (
        ["probes.layer_windows=8"],
        ["probes.layer_windows: has no effect while probes.layers_every is null"],
    ),
    "spikes above nothing": (["probes.spike_threshold=0"], ["probes.spike_threshold", "null"]),
    "spikes judged by few steps": (["probes.spike_window=10"], ["probes.spike_window", "10", "20"]),
    "window of no spikes": (
        ["probes.spike_threshold=null", "probes.spike_window=50"],
        ["probes.spike_window", "spike_threshold"],
    ),
    "probe that is not there": (["probes.activation_every=5"], ["probes.activation_every", "activations_every"]),
    "two kinds of validation": (
        ["task.data.validation_sources=[more.txt]"],
        ["task.data.validation_fraction: has no effect", "write task.data.validation_fraction=null"],
    ),
    "no sources": (["task.data.sources=[]"], ["sources"]),
    "column of a text file": (
        ["task.data.sources=[{path: a.txt, text_column: body}]"],
        ["text_column"],
    ),
    "column of compressed text": (
        ["task.data.sources=[{path: a.txt.xz, text_column: body}]"],
        ["task.data.sources.0.text_column", "a.txt.xz"],
    ),
    "separator of a table": (
        ["task.data.sources=[a.txt, {path: b.parquet, document_separator: x}]"],
        ["task.data.sources.1.document_separator", "b.parquet"],
    ),
    "separator of compressed JSON Lines": (
        ["task.data.sources=[{path: B.NDJSON.zst, document_separator: x}]"],
        ["task.data.sources.0.document_separator", "B.NDJSON.zst"],
    ),
    "streaming of a file": (
        ["task.data.sources=[{path: a.parquet, streaming: true}]"],
        ["task.data.sources.0.streaming", "a.parquet"],
    ),
    "tokens counted before there is a tokenizer": (
        ["task.data.sources=[{path: a.txt, max_tokens: 100}]"],
        ["task.data.sources.0.max_tokens", "max_documents"],
    ),
    "no documents": (["task.data.sources=[{path: a.txt, max_documents: 0}]"], ["max_documents", "null for all"]),
    "bad documents neither refused nor skipped": (
        ["task.data.on_bad_document=ignore"],
        ["task.data.on_bad_document", "ignore", "skip"],
    ),
    "split of the embedded corpus": (
        ["task.data.sources=[{path: python-stdlib, split: train}]"],
        ["task.data.sources.0.split", "python-stdlib"],
    ),
    "a source that is a number": (["task.data.sources=[3]"], ["task.data.sources.0", "3", "path"]),
    "a source for a list": (["task.data.sources=a.txt"], ["task.data.sources", "a.txt", "list"]),
    "key below a value": (["steps.more=3"], ["steps", "no keys"]),
    "entry that the list lacks": (["optim.betas=[0.9, 0.9]", "optim.betas.7=0.5"], ["optim.betas.7", "0 to 1"]),
    "override with blanks": (["optim.lr 3e-4"], ["optim.lr 3e-4", "write optim.lr=3e-4"]),
    "override with dashes": (["--optim.lr=3e-4"], ["write optim.lr=3e-4"]),
    "override that is no YAML": (["optim.betas=[0.9"], ["optim.betas=[0.9", "not valid YAML"]),
    "number in quotes": (["optim.lr='1e-3'"], ["optim.lr", "1e-3", "without quotes"]),
    "number for a name": (["name=400"], ["name", "400", "quotes"]),
    "number that is not finite": (["optim.lr=.inf"], ["optim.lr", "inf"]),
    "negative decay": (["optim.weight_decay=-0.1"], ["optim.weight_decay", "-0.1", "from 0 to"]),
    "warm-up and decay together too long": (
        ["optim.schedule=warmup_stable_decay", "optim.warmup=0.5", "optim.decay=0.75"],
        ["optim.decay", "optim.warmup", "8"],
    ),
    "floor above the peak": (["optim.final_lr_fraction=2"], ["optim.final_lr_fraction", "2", "0 to 1"]),
    "validation on everything": (["task.data.validation_fraction=1.0"], ["validation_fraction", "1.0", "below 1"]),
    "keep nothing": (["checkpoint.keep=0"], ["checkpoint.keep", "null"]),
    "vocabulary below the bytes": (["task.model.vocab_size=100"], ["task.model.vocab_size", "100", "257"]),
    "buckets of stage 0": (
        ["engine.zero_stage=0", "engine.reduce_bucket_size=1000"],
        ["engine.reduce_bucket_size", "engine.zero_stage=1"],
    ),
    "rope key of another type": (
        ["task.model.rope_parameters={rope_type: default, factor: 2.0}"],
        ["rope_parameters.factor", "rope_theta"],
    ),
    "frozen norms that decay": (
        ["task.model.frozen_norm_scales=all", "optim.output_norm_weight_decay=0.1"],
        ["optim.output_norm_weight_decay", "frozen_norm_scales"],
    ),
    "unknown key of a source": (["task.data.sources=[{path: a.txt, weight: 2}]"], ["weight"]),
}

# The same of a joint image filter.
WRONG_FILTER: dict[str, tuple[list[str], list[str]]] = {
    "key of a decoder": (["task.model.num_attention_heads=8"], ["task.model.num_attention_heads", "architecture"]),
    "unknown network": (["task.model.architecture=unet"], ["architecture", "unet", "fdkn"]),
    "even kernel": (["task.model.kernel_size=4"], ["kernel_size", "4", "3 or 5"]),
    "kernel of two": (["task.model.kernel_size=2"], ["kernel_size", "2 has no pixel in the middle; write 3"]),
    "kernel that stays 0": (["task.model.kernel_size=1"], ["kernel_size", "1 cannot learn", "residual=false"]),
    "window of one pixel": (["task.model.window_size=1"], ["window_size", "1 leaves nothing", "write 3 or more"]),
    "even window": (["task.model.window_size=14"], ["window_size", "14", "13 or 15"]),
    "kernel larger than its window": (["task.model.kernel_size=17"], ["kernel_size", "17", "window_size 15"]),
    "grey guidance": (["task.model.guidance_channels=1"], ["guidance_channels", "1", "3"]),
    "colour target": (["task.model.target_channels=3"], ["target_channels", "3", "write 1"]),
    "bf16": (["engine.precision=bf16"], ["engine.precision", "bf16", "fp32 or auto"]),
    "bf16 gradients": (["engine.gradient_dtype=bf16"], ["engine.gradient_dtype", "fp32"]),
    "activation checkpointing": (["engine.activation_checkpointing=true"], ["activation_checkpointing", "twice"]),
    "decay of embeddings": (["optim.embedding_weight_decay=0.1"], ["embedding_weight_decay", "no embeddings"]),
    "decay of output norms": (["optim.output_norm_weight_decay=0.1"], ["output_norm_weight_decay", "write 0"]),
    "layers of a filter": (["probes.layers_every=5"], ["probes.layers_every", "no stack of layers; write null"]),
    "nothing made smaller": (["task.data.scale=1"], ["task.data.scale", "from 2 to"]),
    "crop of one pixel": (["task.data.scale=16"], ["task.data.crop", "24", "32"]),
    "small crop": (["task.data.crop=8", "task.data.scale=2"], ["task.data.crop", "8", "16"]),
    "no crop": (["task.data.crop=0"], ["task.data.crop", "null"]),
    "no images": (["task.data.sources=[]"], ["task.data.sources", "procedural-scenes"]),
    "no images to be judged by": (["task.data.validation_sources=[]"], ["task.data.validation_sources"]),
    "units of images to train on": (
        ["task.data.sources.0.units_per_value=100"],
        ["task.data.sources.0.units_per_value", "has no effect on training images"],
    ),
    "guidances of a filter that sees none": (
        ["task.other_guidance=true", "task.model.guidance=false"],
        ["task.other_guidance", "has no effect", "task.model.guidance"],
    ),
    "pixel outside": (["task.shown_pixel=[-1, 3]"], ["task.shown_pixel", "-1"]),
    "pixel of no image": (["task.shown_images=0", "task.shown_pixel=[1, 3]"], ["task.shown_pixel", "shown_images"]),
    "unknown way to make small": (["task.data.downsampling=area"], ["downsampling", "area", "block_mean"]),
    "steps down without their length": (
        ["optim.schedule=step", "optim.decay_factor=0.2"],
        ["optim.decay_every", "missing"],
    ),
    "steps down without steps": (["optim.decay_every=10"], ["optim.decay_every", "optim.schedule=step"]),
    "steps up": (["optim.schedule=step", "optim.decay_every=2", "optim.decay_factor=2"], ["decay_factor", "below 1"]),
}


@pytest.mark.parametrize("case", WRONG_FILTER)
def test_a_wrong_setting_of_a_filter_is_named(tmp_path: Path, case: str) -> None:
    overrides, fragments = WRONG_FILTER[case]
    with pytest.raises(ConfigError) as error:
        load(tiny_filter_file(tmp_path), overrides)
    for fragment in fragments:
        assert fragment in str(error.value), str(error.value)
    assert len(error.value.faults) == 1, error.value.faults


@pytest.mark.parametrize("key", ["sources.0.units_per_value", "validation_sources.0.units_per_value", "unit"])
def test_texture_removal_has_no_units(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tiny_filter_file(tmp_path, "texture_removal"), [f"task.data.{key}={'cm' if key == 'unit' else 100}"])
    (fault,) = error.value.faults
    assert fault.startswith(f"task.data.{key}: has no effect on ")


def test_a_direct_kernel_may_have_one_sample(tmp_path: Path) -> None:
    load(tiny_filter_file(tmp_path), ["task.model.kernel_size=1", "task.model.residual=false"])


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_named(tmp_path: Path, case: str) -> None:
    overrides, fragments = WRONG[case]
    with pytest.raises(ConfigError) as error:
        load(tiny_file(tmp_path), overrides)
    for fragment in fragments:
        assert fragment in str(error.value), str(error.value)
    assert "Traceback" not in str(error.value)
    assert len(error.value.faults) <= 2, error.value.faults


def test_a_task_with_factors_of_the_rate_has_lower_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights move at up to optim.lr times the task's largest factor: decay and eps are bounded by that rate."""
    decay, eps = ["optim.weight_decay=5"], ["optim.lr=1", "optim.weight_decay=0", "optim.eps=1.2e-36"]
    for overrides in (decay, eps):
        load(tiny_file(tmp_path), overrides)  # 5 x 0.01 is below 1, 8 / 1.2e-36 below 1e37
    monkeypatch.setitem(LARGEST_LR_FACTORS, "language_model", 20.0)
    for overrides, remedy in ((decay, "write less than 5"), (eps, "write 1.6e-35 or more")):
        with pytest.raises(ConfigError) as error:
            load(tiny_file(tmp_path), overrides)
        assert remedy in str(error.value)
        assert "20 (the task's largest factor of the rate) times optim.lr" in str(error.value)


def test_a_rate_that_is_refused_names_one_that_is_not(tmp_path: Path) -> None:
    settings = ["optim.optimizer=sgd", "optim.weight_decay=0", "optim.gradient_clipping=null", "steps=1000000000"]
    for lr in ("1e6", "5.5e5"):
        with pytest.raises(ConfigError, match=r"optim\.lr: .* write 5\.1e\+05 or less"):
            load(tiny_file(tmp_path), [*settings, f"optim.lr={lr}"])
    load(tiny_file(tmp_path), [*settings, "optim.lr=5.1e5"])


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    overrides = ["optim.lrr=1", "task.model.hidden_act=none", "steps=-1", "engine.zero_stage=7"]
    with pytest.raises(ConfigError) as error:
        load(tiny_file(tmp_path), overrides)
    for fragment in ("optim.lrr", "hidden_act", "steps", "zero_stage"):
        assert fragment in str(error.value)
    assert len(error.value.faults) == 4


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "empty"),
        ("steps: [", "yaml:1:"),
        ("steps: 1\nsteps: 2", "steps"),
        ("- a\n- b", "key: value"),
        (None, "no such file"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str | None, fragment: str) -> None:
    path = tmp_path / "wrong.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert fragment in str(error.value)


def test_a_world_size_that_does_not_divide_names_those_that_do(tmp_path: Path) -> None:
    config = load(tiny_file(tmp_path))
    check_world_size(config, 4)
    with pytest.raises(ConfigError, match="2 or 4 ranks"):
        check_world_size(config, 3)


# What only the machine can know: the same answer, from the command itself.
MISSING: dict[str, tuple[list[str], str]] = {
    "no such file": (["task.data.sources=[./nowhere/*.txt]"], "nowhere"),
    "no such tokenizer": (["task.data.tokenizer=./no-tokenizer"], "task.data.tokenizer"),
    "mistyped key": (["optim.lrr=1"], "optim.lr"),
}


@pytest.mark.parametrize("case", MISSING)
def test_the_command_answers_with_exit_code_2_and_no_traceback(tmp_path: Path, case: str) -> None:
    overrides, fragment = MISSING[case]
    done = _train(tmp_path, *overrides)
    assert done.returncode == 2, done.stderr
    assert fragment in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_of_another_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    folder = tmp_path / "runs/tiny"
    folder.mkdir(parents=True)
    from train.config.load import to_yaml

    (folder / "config.yaml").write_text(to_yaml(load(tiny_file(tmp_path), ["optim.lr=3e-4", "engine.zero_stage=2"])))
    done = _train(tmp_path)
    assert done.returncode == 2
    assert "optim.lr: 0.0003 -> 0.01" in done.stderr
    assert "zero_stage" not in done.stderr  # may be another at a resume


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path) -> None:
    tokenizers = ROOT.parent / "shared/data/tokenizers/gpt2"
    if not tokenizers.exists():
        pytest.skip("the optional data folder with the gpt2 tokenizer is not here")
    done = _train(tmp_path, f"task.data.tokenizer={tokenizers}", "--check")
    assert done.returncode == 2
    assert "task.model.vocab_size=50257" in done.stderr


def _train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "train", str(tiny_file(folder)), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
