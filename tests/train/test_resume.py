"""Kill it at any moment, start the same command again: nothing is lost, and the losses repeat bit for bit."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.processes import HANG_SECONDS
from tests.ranks import Ranks
from tests.tiny import tiny_file, tiny_run
from train import __main__ as entry
from train.config.errors import ConfigError
from train.config.facts.optimizers import OPTIMIZERS
from train.config.load import load
from train.rank import train_rank

ROOT = Path(__file__).parents[2]


def rows(folder: Path, name: str = "tiny", file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs" / name / file).read_text().splitlines()]


def losses(folder: Path, name: str = "tiny") -> dict[int, tuple[float, float, str]]:
    """Loss, gradient norm and sample hash by step."""
    kept = (row for row in rows(folder, name) if "loss" in row)
    return {row["step"]: (row["loss"], row["grad_norm"], row["samples_hash"]) for row in kept}


def train(config_file: str, overrides: list[str], stop_after: int | None = None) -> str:
    """Train in a rank of the test pool; `stop_after` breaks off, as a crash would, before that step's save."""
    from train import loop

    config = load(config_file, overrides)
    if stop_after is None:
        assert train_rank(config) == 0
        return "done"
    original = loop.due

    def crash(step: int, every: int, last: int) -> bool:
        if step == stop_after:
            raise InterruptedError("broken off by the test")
        return original(step, every, last)

    loop.due = crash
    try:
        train_rank(config)
    except InterruptedError:
        return "broken off"
    finally:
        loop.due = original
    return "not broken off"


SGD = ("optim.optimizer=sgd", "optim.lr=0.1")


@pytest.mark.parametrize(
    ("stage", "size", "optim"),
    [
        (0, 1, ()),
        (1, 2, ()),
        pytest.param(2, 2, (), marks=pytest.mark.slow),
        (3, 2, ()),
        (1, 2, SGD),
        pytest.param(0, 1, SGD, marks=pytest.mark.slow),
        pytest.param(3, 2, SGD, marks=pytest.mark.slow),
        pytest.param(2, 2, SGD, marks=pytest.mark.nightly),
    ],
)
def test_resume_is_bit_exact(ranks: Ranks, tmp_path: Path, stage: int, size: int, optim: tuple[str, ...]) -> None:
    path = str(tiny_file(tmp_path))
    settings = [f"engine.zero_stage={stage}", *optim]
    ranks(size, train, path, [*settings, "name=unbroken"])
    ranks(size, train, path, settings, 5)
    before = (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()[:3]
    ranks(size, train, path, settings)
    assert losses(tmp_path) == losses(tmp_path, "unbroken")
    events = rows(tmp_path, file="events.jsonl")
    assert [e["step"] for e in events if e["event"] == "resume"] == [3]
    assert (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()[:3] == before
    assert [r["step"] for r in rows(tmp_path) if "loss" in r] == list(range(1, 9))


@pytest.mark.parametrize(
    ("first", "second", "optim"),
    [
        ((1, 2), (1, 1), ()),
        ((1, 1), (1, 2), ()),
        ((1, 2), (3, 2), ()),
        ((3, 2), (1, 2), ()),
        ((3, 2), (0, 1), ()),
        ((2, 1), (3, 2), ()),
        ((1, 2), (0, 1), SGD),
        ((0, 1), (3, 2), SGD),
        pytest.param((3, 2), (2, 1), SGD, marks=pytest.mark.slow),
        pytest.param((2, 1), (1, 2), SGD, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_at_another_stage_and_world_size(
    ranks: Ranks, tmp_path: Path, first: tuple[int, int], second: tuple[int, int], optim: tuple[str, ...]
) -> None:
    """Measured worst case: loss 1.0e-7, gradient norm 2.2e-7 relative."""
    path = str(tiny_file(tmp_path))
    ranks(1, train, path, ["name=unbroken", "engine.zero_stage=0", *optim])
    ranks(first[1], train, path, [f"engine.zero_stage={first[0]}", *optim], 5)
    ranks(second[1], train, path, [f"engine.zero_stage={second[0]}", *optim])
    expected = losses(tmp_path, "unbroken")
    for step, (loss, norm, samples) in losses(tmp_path).items():
        assert loss == pytest.approx(expected[step][0], rel=1e-5)
        assert norm == pytest.approx(expected[step][1], rel=1e-5)
        assert samples == expected[step][2]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_losses_do_not_depend_on_stage_ranks_or_accumulation(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    """Measured worst case over 8 steps: loss 2.1e-7, gradient norm 2.2e-7 relative; sample hashes equal."""
    path = str(tiny_file(tmp_path))
    ranks(1, train, path, ["name=plain", "engine.zero_stage=0", "micro_batch_size=8"])
    expected = losses(tmp_path, "plain")
    for size in (1, 2):
        for micro_batch_size in (8 // size, 2 // size):  # accumulation 1 and 4
            name = f"s{stage}r{size}m{micro_batch_size}"
            overrides = [f"name={name}", f"engine.zero_stage={stage}", f"micro_batch_size={micro_batch_size}"]
            ranks(size, train, path, overrides)
            for step, (loss, norm, samples) in losses(tmp_path, name).items():
                assert loss == pytest.approx(expected[step][0], rel=1e-5)
                assert norm == pytest.approx(expected[step][1], rel=1e-5)
                assert samples == expected[step][2]


def test_a_flipped_bit_is_named_and_passed_over(ranks: Ranks, tmp_path: Path) -> None:
    path = str(tiny_file(tmp_path))
    ranks(1, train, path, ["name=unbroken"])
    ranks(1, train, path, [], 7)
    newest = tmp_path / "runs/tiny/checkpoints/step_000006/rank_00000.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    ranks(1, train, path, [])
    events = rows(tmp_path, file="events.jsonl")
    notes = [event["reason"] for event in events if event["event"] == "pass_over"]
    assert len(notes) == 1
    assert "step_000006" in notes[0]
    assert "rank_00000.safetensors" in notes[0]
    assert [event["step"] for event in events if event["event"] == "resume"] == [3]
    assert losses(tmp_path) == losses(tmp_path, "unbroken")


@pytest.mark.parametrize("harm", ["truncated", "missing", "manifest"])
def test_an_incomplete_checkpoint_is_passed_over(ranks: Ranks, tmp_path: Path, harm: str) -> None:
    path = str(tiny_file(tmp_path))
    ranks(1, train, path, [], 7)
    newest = tmp_path / "runs/tiny/checkpoints/step_000006"
    tensors = newest / "rank_00000.safetensors"
    if harm == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif harm == "missing":
        tensors.unlink()
    else:
        (newest / "manifest.json").write_text('{"format": 1, "fi')
    ranks(1, train, path, [])
    events = rows(tmp_path, file="events.jsonl")
    assert [event["step"] for event in events if event["event"] == "resume"] == [3]


def test_only_the_kept_checkpoints_remain(ranks: Ranks, tmp_path: Path) -> None:
    path = str(tiny_file(tmp_path))
    ranks(1, train, path, ["checkpoint.every=1", "checkpoint.keep=2"])
    assert sorted(p.name for p in (tmp_path / "runs/tiny/checkpoints").iterdir()) == ["step_000007", "step_000008"]


def test_a_finished_run_says_so(ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tiny_file(tmp_path))
    ranks(1, train, path, [])
    before = (tmp_path / "runs/tiny/metrics.jsonl").read_text()
    assert entry.main([path]) == 0
    assert "is already finished: step 8 of 8 is saved" in capsys.readouterr().out
    assert (tmp_path / "runs/tiny/metrics.jsonl").read_text() == before


def full_disk(config_file: str) -> str:
    """Train while the disk is full from the second checkpoint on."""
    import errno

    from train.checkpoint import checkpoint

    original, calls = checkpoint.write_safetensors, [0]

    def write(path: Path, *given: Any) -> Any:
        calls[0] += 1
        if calls[0] > 1:
            path.write_bytes(b"the beginning")
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, *given)

    checkpoint.write_safetensors = write
    try:
        train_rank(load(config_file))
    except checkpoint.CheckpointError as error:
        return str(error)
    finally:
        checkpoint.write_safetensors = original
    return ""


def test_a_full_disk_leaves_the_last_checkpoint_untouched(ranks: Ranks, tmp_path: Path) -> None:
    message = ranks(2, full_disk, str(tiny_file(tmp_path)))[0]
    assert "No space left on device" in message
    assert "the last complete checkpoint, step_000003, is intact" in message
    assert [p.name for p in (tmp_path / "runs/tiny/checkpoints").iterdir()] == ["step_000003"]
    ranks(2, train, str(tiny_file(tmp_path)), [])
    assert [e["step"] for e in rows(tmp_path, file="events.jsonl") if e["event"] == "resume"] == [3]


def start_elsewhere(config_file: str, overrides: list[str]) -> list[str]:
    try:
        train_rank(load(config_file, overrides))
    except ConfigError as error:
        return error.faults
    return []


def test_changed_data_is_refused(ranks: Ranks, tmp_path: Path) -> None:
    path = str(tiny_file(tmp_path))
    ranks(1, train, path, [], 5)
    changed = tmp_path / "corpus/000.txt"
    changed.write_text(changed.read_text() + "one more word")
    faults = ranks(1, start_elsewhere, path, [])[0]
    assert len(faults) == 1
    assert "the data has changed" in faults[0]


def test_another_run_starts_from_a_checkpoint_with_its_optimizer_state(ranks: Ranks, tmp_path: Path) -> None:
    path = str(tiny_file(tmp_path))
    ranks(1, train, path, [])
    ranks(1, train, path, ["name=branch", "checkpoint.start_from=tiny@3"])
    expected = losses(tmp_path)
    assert losses(tmp_path, "branch") == {step: expected[step] for step in range(4, 9)}
    faults = ranks(1, start_elsewhere, path, ["name=other", "checkpoint.start_from=tiny@4"])[0]
    assert "no checkpoint for step 4; available steps: 3, 6, 8" in faults[0]


def test_a_checkpoint_holds_the_state_of_its_optimizer(ranks: Ranks, tmp_path: Path) -> None:
    from train.checkpoint.checkpoint import CheckpointReader

    path = str(tiny_file(tmp_path))
    ranks(2, train, path, ["steps=3", *SGD])
    reader = CheckpointReader(tmp_path / "runs/tiny/checkpoints/step_000003")
    assert {key.partition("/")[0] for key in reader._places} == {"weight", "momentum_buffer"}
    for name, shape in reader.manifest["parameters"].items():
        buffer = reader.whole("momentum_buffer", name)
        assert list(buffer.shape) == shape
        assert buffer.any(), name
    # As `launch plan` sizes it: 8 bytes per parameter. Measured: 8.52, as names and places count in so small a model.
    parameters = sum(math.prod(shape) for shape in reader.manifest["parameters"].values())
    size = sum(file.stat().st_size for file in reader.folder.glob("*.safetensors"))
    assert OPTIMIZERS["sgd"].checkpoint_bytes == 8
    assert 8 * parameters < size < 12 * parameters


def test_a_checkpoint_of_another_optimizer_is_refused_as_a_start(ranks: Ranks, tmp_path: Path) -> None:
    path = str(tiny_file(tmp_path))
    ranks(1, train, path, ["steps=3"])
    (fault,) = ranks(1, start_elsewhere, path, ["name=other", "checkpoint.start_from=tiny@3", *SGD])[0]
    assert fault.startswith("checkpoint.start_from: optim.optimizer is sgd, but adamw in ")
    assert "python -m train.export" in fault


def test_weights_are_kept_as_model_folders(ranks: Ranks, tmp_path: Path) -> None:
    path = str(tiny_file(tmp_path))
    ranks(1, train, path, ["checkpoint.weights_every=4"])
    folders = sorted(folder.name for folder in (tmp_path / "runs/tiny/weights").iterdir())
    assert folders == ["step_000004", "step_000008"]
    assert (tmp_path / "runs/tiny/weights/step_000004/model.safetensors").stat().st_size > 0


def test_a_half_written_row_is_cut_at_resume(ranks: Ranks, tmp_path: Path) -> None:
    path = str(tiny_file(tmp_path))
    ranks(1, train, path, [], 5)
    with (tmp_path / "runs/tiny/metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.')
    ranks(1, train, path, [])
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == list(range(1, 9))


def poisoned(config_file: str) -> tuple[int, int]:
    """Make the loss of one micro-batch of step 2 NaN; returns steps and updates."""
    from train.tasks.language_model import LanguageModel

    original, calls = LanguageModel.step, [0]

    def step(self: LanguageModel, model: Any, batch: Any) -> Any:
        output = original(self, model, batch)
        calls[0] += model.training
        return output._replace(loss_sum=output.loss_sum * float("nan")) if calls[0] == 3 and model.training else output

    LanguageModel.step = step
    try:
        assert train_rank(load(config_file)) == 0
    finally:
        LanguageModel.step = original
    return calls[0], 0


def test_a_non_finite_loss_skips_the_step_and_names_its_samples(ranks: Ranks, tmp_path: Path) -> None:
    ranks(1, poisoned, str(tiny_file(tmp_path)))
    skips = [event for event in rows(tmp_path, file="events.jsonl") if event["event"] == "skip"]
    assert len(skips) == 1
    assert skips[0]["step"] == 2
    assert len(skips[0]["samples"]) == 8
    assert skips[0]["suspects"] == skips[0]["samples"][:4]  # the first of two micro-batches
    by_step = {row["step"]: row for row in rows(tmp_path) if "loss" in row}
    assert by_step[2]["grad_norm"] is None
    assert by_step[8]["skipped"] == 1
    assert by_step[3]["loss"] is not None


def always_poisoned(config_file: str) -> str:
    from train.loop import TooManySkippedStepsError
    from train.tasks.language_model import LanguageModel

    original = LanguageModel.step
    LanguageModel.step = lambda self, model, batch: (  # type: ignore[method-assign,assignment]
        lambda output: output._replace(loss_sum=output.loss_sum * float("inf"))
    )(original(self, model, batch))
    try:
        train_rank(load(config_file, ["optim.stop_after_skipped_steps=3"]))
    except TooManySkippedStepsError as error:
        return str(error)
    finally:
        LanguageModel.step = original
    return ""


def test_too_many_skipped_steps_stop_the_run(ranks: Ranks, tmp_path: Path) -> None:
    message = ranks(2, always_poisoned, str(tiny_file(tmp_path)))[0]
    assert message.startswith("3 consecutive steps were skipped, up to step 3")
    assert "The weights are all finite;" in message


def broken_weights(config_file: str, overrides: list[str], before: int) -> str:
    """Make one weight infinite before the update of a step, as no update can; return how the run ends."""
    from train.checkpoint.checkpoint import CheckpointError
    from train.engine.engine import Engine
    from train.loop import TooManySkippedStepsError

    original = Engine.step

    def step(self: Engine, lr: float) -> Any:
        if self.updates == before - 1:
            for fragment in self.owned_fragments():
                fragment.tensors["weight"][:1] = float("inf")
                break
        return original(self, lr)

    Engine.step = step  # type: ignore[method-assign]
    try:
        train_rank(load(config_file, overrides))
    except (CheckpointError, TooManySkippedStepsError) as error:
        return str(error)
    finally:
        Engine.step = original  # type: ignore[method-assign]
    return ""


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_weights_that_are_not_finite_are_never_saved(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    settings = [f"engine.zero_stage={stage}"]
    message = ranks(2, broken_weights, str(tiny_file(tmp_path)), settings, 6)[0]
    assert message.startswith("checkpoint step_000006: is not written (")
    assert message.endswith("; the last complete checkpoint, step_000003, is intact")
    assert [p.name for p in (tmp_path / "runs/tiny/checkpoints").iterdir()] == ["step_000003"]
    assert max(row["step"] for row in rows(tmp_path)) < 9


def test_weights_are_called_unharmed_only_where_they_are(ranks: Ranks, tmp_path: Path) -> None:
    settings = ["optim.stop_after_skipped_steps=2", "checkpoint.every=100"]
    message = ranks(2, broken_weights, str(tiny_file(tmp_path)), settings, 2)[0]
    assert message.startswith("2 consecutive steps were skipped, up to step 4")
    assert "The weights are NOT finite" in message


@pytest.mark.nightly  # tests/faults/test_kills.py aims at more places in less time
@pytest.mark.parametrize("where", ["step", "save"])
def test_kill_minus_nine_loses_nothing(tmp_path: Path, where: str) -> None:
    """A real SIGKILL from outside, in a step or while a checkpoint is being written, under two ranks."""
    path = tiny_file(tmp_path)
    # Long enough to be hit: many steps, and a checkpoint at each one.
    settings = ["steps=60", "evaluate_every=60", "checkpoint.every=1", "checkpoint.keep=3"]
    assert _torchrun(path, [*settings, "name=unbroken"]).wait() == 0
    checkpoints = tmp_path / "runs/tiny/checkpoints"
    process = _torchrun(path, settings)
    deadline = time.monotonic() + HANG_SECONDS
    pattern = "step_*.partial" if where == "save" else "step_00000[5-9]"
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(checkpoints.glob("step_*"))) > 3 and (found := list(checkpoints.glob(pattern))):
            break
    else:
        pytest.fail("the run ended before it could be killed")
    for rank in _ranks_of(process):
        os.kill(rank, signal.SIGKILL)
    assert process.wait() == 1, found
    assert _torchrun(path, settings).wait() == 0
    resumed = [event["step"] for event in rows(tmp_path, file="events.jsonl") if event["event"] == "resume"]
    assert len(resumed) == 1
    assert resumed[0] > 0
    assert losses(tmp_path) == losses(tmp_path, "unbroken")


def _torchrun(path: Path, settings: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [*command, "-m", "train", str(path), *settings], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def _ranks_of(process: subprocess.Popen[bytes]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def test_training_lowers_the_loss(ranks: Ranks, tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    ranks(1, train, str(tiny_file(tmp_path)), [])
    seen = losses(tmp_path)
    assert seen[config.steps][0] < seen[1][0] - 0.3
