"""Table of damages: files of a run and its data x the commands that read them, which find each before they believe it.

Each row damages one thing in a copy of a finished run (steps 3, 6 and 8 are saved).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis import __main__ as analysis
from analysis.checkpoints import damage as damage_for_analysis
from analysis.inspect.models import named
from analysis.runs import InputError
from tests.faults.damaged import (
    Harm,
    Outcome,
    Workplace,
    a_list,
    cut,
    empty,
    flip,
    harmed,
    make,
    nested,
    no_json,
    replaced,
    said_by,
    start,
)
from tests.faults.processes import HANG_SECONDS, kill_all, losses, rows, training, validations, wait_until
from tests.ranks import Ranks
from tests.tiny import tiny_file
from train.config.facts.manifest import damage
from train.evaluate import __main__ as evaluation
from train.export import __main__ as export

SETTINGS = ["steps=40", "checkpoint.every=4", "checkpoint.keep=null", "evaluate_every=20"]


@pytest.fixture(scope="module")
def finished(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    (workplace,) = ranks(1, make, tmp_path_factory.mktemp("finished"))
    return workplace


@pytest.fixture
def workplace(finished: Workplace, tmp_path: Path) -> Workplace:
    return finished.copy(tmp_path)


def slow(*values: object, **named: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow, **named)


def checkpoints(workplace: Workplace) -> list[str]:
    return sorted(path.name for path in (workplace.run / "checkpoints").iterdir())


def exported(workplace: Workplace, *words: str) -> Outcome:
    return said_by(lambda: export.main([str(workplace.run), str(workplace.folder / "out"), *words]))


def evaluated(workplace: Workplace, *words: str) -> Outcome:
    return said_by(lambda: evaluation.main([str(workplace.run), *words]))


def reported(workplace: Workplace) -> Outcome:
    return said_by(lambda: analysis.main(["report", str(workplace.run), "--out", str(workplace.folder / "report")]))


# --------------------------------------------------------------------------------------------------------- checkpoints

TENSORS = "rank_00000.safetensors"
NEWEST = {  # of the newest checkpoint: a file, what happens to it, and how that is named
    "tensors flipped": (TENSORS, flip, "does not match its checksum"),
    "tensors cut": (TENSORS, cut, "does not match its checksum"),
    "tensors gone": (TENSORS, None, "does not match its checksum"),
    "manifest gone": ("manifest.json", None, "manifest.json is missing"),
    "manifest half written": ("manifest.json", cut, "manifest.json is not JSON"),
    "manifest empty": ("manifest.json", empty, "manifest.json is not JSON"),
    "manifest no text": ("manifest.json", no_json, "manifest.json is not JSON"),
    "manifest too deep": ("manifest.json", nested, "manifest.json is not JSON"),
    "manifest a list": ("manifest.json", a_list, "holds list instead of an object"),
    "another step": ("manifest.json", replaced(b'"step": 8', b'"step": 6'), "its own checksum"),
    "other updates": ("manifest.json", replaced(b'"updates": 8', b'"updates": 7'), "its own checksum"),
    "an unknown field": ("manifest.json", replaced(b'"step"', b'"stop": 1, "step"'), "its own checksum"),
    "another format": ("manifest.json", replaced(b'"format": 1', b'"format": 2'), "its own checksum"),
}
IN_QUICK = ("tensors flipped", "another step")


@pytest.mark.parametrize("name", [name if name in IN_QUICK else slow(name) for name in NEWEST])
def test_a_finished_run_with_a_damaged_result_goes_on_from_the_older(
    ranks: Ranks, finished: Workplace, workplace: Workplace, name: str
) -> None:
    file, harm, how = NEWEST[name]
    harmed(workplace.newest / file, harm)
    (outcome,) = ranks(1, start, str(workplace.config))
    assert outcome.code == 0, outcome.said
    assert "already finished" not in outcome.said
    assert "step_000008 is damaged and was ignored" in outcome.said
    assert how in outcome.said
    assert [event["step"] for event in rows(workplace.run, "events") if event["event"] == "resume"] == [6]
    assert losses(workplace.run) == losses(finished.run)
    assert checkpoints(workplace) == ["step_000003", "step_000006", "step_000008", "step_000008.damaged"]


@pytest.mark.parametrize("name", NEWEST)
def test_all_sides_find_the_same_damage(workplace: Workplace, name: str) -> None:
    assert damage(workplace.newest) == []
    assert damage_for_analysis(workplace.newest) is None
    file, harm, how = NEWEST[name]
    harmed(workplace.newest / file, harm)
    (fault,) = damage(workplace.newest)
    assert how in fault
    assert damage_for_analysis(workplace.newest) is not None
    (subject,) = named([str(workplace.run)])
    assert subject.steps == (6,)
    assert "step_000008 is damaged" in subject.notes[0]


@pytest.mark.parametrize("command", [exported, evaluated])
@pytest.mark.parametrize("name", [name if name == "tensors flipped" else slow(name) for name in NEWEST])
def test_readers_use_an_older_checkpoint_or_refuse_and_change_nothing(
    workplace: Workplace, command: Callable[..., Outcome], name: str
) -> None:
    file, harm, how = NEWEST[name]
    harmed(workplace.newest / file, harm)
    refused = command(workplace, "--step", "8")
    assert refused.code == 2
    assert f"step_000008 is damaged: {file}" in refused.said or how in refused.said
    outcome = command(workplace)
    assert outcome.code == 0, outcome.said
    assert "step_000008 is damaged" in outcome.said
    assert how in outcome.said
    assert "step 6 is used instead" in outcome.said
    assert f"step 6 of {workplace.run}" in outcome.said
    assert checkpoints(workplace) == ["step_000003", "step_000006", "step_000008"]


def test_a_run_without_an_intact_checkpoint_is_refused_with_every_reason(workplace: Workplace) -> None:
    for step in (3, 6, 8):
        harmed(workplace.run / f"checkpoints/step_{step:06d}" / TENSORS, flip)
    for command in (exported, evaluated):
        outcome = command(workplace)
        assert outcome.code == 2
        assert outcome.said.count("is damaged") == 3
    with pytest.raises(InputError, match="has no intact step"):
        named([str(workplace.run)])


# ---------------------------------------------------------------------------------------------------------- text files

JUNK = b'3\n{}\n[]\n"x"\n\x80\xff\n{"step": "five"}\n{"step": true}\n{"step": -1}\n' + b"[" * 50_000 + b"\n"


def with_junk(content: bytes) -> bytes:
    """Damaged lines between the first and the second, and half of one at the end."""
    first, rest = content.split(b"\n", 1)
    return first + b"\n" + JUNK + rest + b'{"step": 5, "l'


TABLES = ("metrics.jsonl", "events.jsonl", "activations.jsonl", "gradients.jsonl", "layers.jsonl")
LONE_FILES = ("environment.json", "settings.json", "deepspeed.json", "stopped.json")
HARMS: dict[str, Harm | None] = {
    "gone": None,
    "half": cut,
    "empty": empty,
    "no text": no_json,
    "a list": a_list,
    "nested": nested,
}


@pytest.mark.parametrize("junk", [with_junk, no_json, slow(empty), slow(None), slow(nested)])
def test_damaged_lines_are_cut_at_a_resume_with_a_message(ranks: Ranks, workplace: Workplace, junk: Harm) -> None:
    harmed(workplace.newest / TENSORS, flip)
    for name in TABLES:
        harmed(workplace.run / name, junk)
    (outcome,) = ranks(1, start, str(workplace.config))
    assert outcome.code == 0, outcome.said
    if junk not in (empty, None):
        assert "metrics.jsonl: " in outcome.said
        assert "damaged lines were dropped, the first of them line" in outcome.said
    for name in TABLES:
        assert all(isinstance(row["step"], int) for row in rows(workplace.run, name.removesuffix(".jsonl")))
    assert 8 in losses(workplace.run)


@pytest.mark.parametrize("harm", [with_junk, *(slow(harm, id=name) for name, harm in HARMS.items())])
def test_damaged_lines_are_left_out_of_exports_and_reports(workplace: Workplace, harm: Harm | None) -> None:
    for name in TABLES:
        harmed(workplace.run / name, harm)
    for command in (reported, exported):
        outcome = command(workplace)
        assert outcome.code == 0, outcome.said
    page = (workplace.folder / "report/index.html").read_text()
    assert "metrics.jsonl" in page
    if harm is with_junk:
        assert "metrics.jsonl: skipped 9 invalid lines, the first of them line 2" in page
        assert "the last line of metrics.jsonl is half-written" in page


@pytest.mark.parametrize("name", [name if name == "half" else slow(name) for name in HARMS])
def test_damaged_facts_about_a_run_are_left_out(ranks: Ranks, workplace: Workplace, name: str) -> None:
    for file in LONE_FILES:
        (workplace.run / file).touch()
        harmed(workplace.run / file, HARMS[name])
    for command in (reported, exported):
        outcome = command(workplace)
        assert outcome.code == 0, outcome.said
    assert "environment.json" in (workplace.folder / "report/index.html").read_text()
    (outcome,) = ranks(1, start, str(workplace.config))
    assert (outcome.code, "is already finished" in outcome.said) == (0, True)


@pytest.mark.parametrize(
    "facts", [slow('{"data": 3}'), slow('{"data": {"sources": [1]}}'), '{"data": {"sources": {"a": 1}}}']
)
def test_facts_of_another_form_are_left_out(workplace: Workplace, facts: str) -> None:
    (workplace.run / "environment.json").write_text(facts)
    assert reported(workplace).code == 0
    assert exported(workplace).code == 0


@pytest.mark.parametrize("name", HARMS)
def test_a_damaged_configuration_is_refused(ranks: Ranks, workplace: Workplace, name: str) -> None:
    harmed(workplace.run / "config.yaml", HARMS[name])
    readers = [exported(workplace), evaluated(workplace), reported(workplace)]
    assert [outcome.code for outcome in readers] == [2, 2, 2]
    assert all("config.yaml" in outcome.said for outcome in readers)
    harmed(workplace.newest / TENSORS, flip)
    (outcome,) = ranks(1, start, str(workplace.config))
    if name == "gone":
        assert outcome.code == 0, outcome.said
        assert "has no config.yaml: its settings could not be compared" in outcome.said
    else:
        assert outcome.code == 2
        assert "config.yaml" in outcome.said


# --------------------------------------------------------------------------------------------------- data and weights


def flip_many_windows(tokens: Path) -> None:
    content = bytearray(tokens.read_bytes())
    content[::16] = bytes(byte ^ 1 for byte in content[::16])
    tokens.write_bytes(content)


def test_flipped_tokens_between_start_and_resume_are_named(ranks: Ranks, workplace: Workplace) -> None:
    harmed(workplace.newest / TENSORS, flip)
    flip_many_windows(workplace.cache / "shards/000000/training.tokens")
    (outcome,) = ranks(1, start, str(workplace.config))
    assert outcome.code == 1
    assert "is not what was prepared" in outcome.said
    assert f"delete {workplace.cache} and run" in outcome.said
    harmed(workplace.cache, None)
    (outcome,) = ranks(1, start, str(workplace.config))
    assert outcome.code == 0, outcome.said


CACHE = {
    "store.json": ("store.json", cut),
    "index": ("windows-16/facts.json", cut),
    "hashes": ("windows-16/training.hashes.npy", flip),
    "shard": ("shards/000000/training.tokens", cut),
    "tokenizer": ("tokenizer/tokenizer.json", flip),
}


@pytest.mark.parametrize("name", ["hashes", *(slow(name) for name in CACHE if name != "hashes")])
def test_a_damaged_cache_heals_at_a_resume(ranks: Ranks, finished: Workplace, workplace: Workplace, name: str) -> None:
    harmed(workplace.newest / TENSORS, flip)
    harmed(workplace.cache / CACHE[name][0], CACHE[name][1])
    (outcome,) = ranks(1, start, str(workplace.config))
    assert outcome.code == 0, outcome.said
    assert "made again from the tokens" in outcome.said or "are prepared again where they are" in outcome.said
    assert losses(workplace.run) == losses(finished.run)


WEIGHTS: dict[str, Callable[[Path], object]] = {
    "flipped header": lambda folder: harmed(folder / "model.safetensors", lambda content: b"\xff" + content[1:]),
    "cut": lambda folder: harmed(folder / "model.safetensors", cut),
    "empty": lambda folder: harmed(folder / "model.safetensors", empty),
    "gone": lambda folder: harmed(folder / "model.safetensors", None),
    "a folder": lambda folder: (harmed(folder / "model.safetensors", None), (folder / "model.safetensors").mkdir()),
    "half an index": lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a"'),
    "a part gone": lambda folder: (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}})
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights_are_refused_as_a_start(ranks: Ranks, workplace: Workplace, name: str) -> None:
    assert exported(workplace).code == 0
    WEIGHTS[name](workplace.folder / "out")
    words = ["name=tuned", f"checkpoint.start_from={workplace.folder / 'out'}"]
    (outcome,) = ranks(1, start, str(workplace.config), *words)
    assert outcome.code == 2, outcome.said
    assert outcome.said.startswith(("checkpoint.start_from: ", "configuration"))
    assert str(workplace.folder / "out") in outcome.said


# ----------------------------------------------------------------------------------------------- publishing and modes


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_an_exported_folder_is_whole_and_its_modes_follow_the_umask(
    workplace: Workplace, umask: int, mode: int
) -> None:
    leftover = workplace.folder / "out.partial"
    leftover.mkdir()
    (leftover / "half.safetensors").write_text("of a kill")
    before = os.umask(umask)
    try:
        outcome = exported(workplace)
    finally:
        os.umask(before)
    assert outcome.code == 0, outcome.said
    files = [path for path in (workplace.folder / "out").rglob("*") if path.is_file()]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {path.name: oct(mode) for path in files}
    assert not leftover.exists()
    assert "half.safetensors" not in {path.name for path in files}


def test_a_report_replaces_what_a_kill_left(workplace: Workplace) -> None:
    for name in (".report.partial", ".report.old"):
        (workplace.folder / name).mkdir()
    assert reported(workplace).code == 0
    assert sorted(path.name for path in workplace.folder.glob("*report*")) == ["report"]


def test_weights_of_a_repeated_step_replace_the_earlier(ranks: Ranks, workplace: Workplace) -> None:
    harmed(workplace.newest / TENSORS, flip)
    earlier = workplace.run / "weights/step_000008"
    earlier.mkdir(parents=True)
    (earlier / "half.safetensors").touch()
    (outcome,) = ranks(1, start, str(workplace.config), "checkpoint.weights_every=8")
    assert outcome.code == 0, outcome.said
    assert (earlier / "model.safetensors").is_file()
    assert not (earlier / "half.safetensors").exists()


# ----------------------------------------------------------------------------------------------------- several ranks


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.nightly), pytest.param(3, marks=pytest.mark.slow)])
def test_damaged_checkpoints_are_passed_over(tmp_path: Path, stage: int) -> None:
    """The newest has one flipped bit, the one before is truncated, each in the file of another rank."""
    path, run, unbroken = tiny_file(tmp_path), tmp_path / "runs/tiny", tmp_path / "runs/unbroken"
    settings = [*SETTINGS, f"engine.zero_stage={stage}"]
    with training(path, [*settings, "name=unbroken"], ranks=2) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, said
    checkpoints = run / "checkpoints"
    with training(path, settings, ranks=2) as process:
        wait_until(lambda: len(complete(checkpoints)) >= 3)
        kill_all(process)
    third, second, newest = complete(checkpoints)[-3:]
    for folder, rank, harm in ((newest, 1, flip), (second, 0, cut)):
        file = checkpoints / folder / f"rank_{rank:05d}.safetensors"
        file.write_bytes(harm(file.read_bytes()))
    with training(path, settings, ranks=2) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, said
    told = [
        f"{newest} is damaged and was ignored: rank_00001.safetensors does not match its checksum",
        f"{second} is damaged and was ignored: rank_00000.safetensors does not match its checksum",
    ]
    assert [event["reason"] for event in rows(run, "events") if event["event"] == "pass_over"] == told
    assert all(f"[rank 0] {line}" in said for line in told)
    assert [event["step"] for event in rows(run, "events") if event["event"] == "resume"] == [int(third[5:])]
    assert (checkpoints / f"{newest}.damaged").is_dir()
    assert (losses(run), validations(run)) == (losses(unbroken), validations(unbroken))


def complete(checkpoints: Path) -> list[str]:
    return sorted(folder.name for folder in checkpoints.glob("step_*") if not folder.suffix)
