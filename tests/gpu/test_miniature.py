"""The whole GPU script with tiny shapes on a CPU."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.gpu import report
from tests.gpu.__main__ import STAGES, main
from tests.gpu.bench import ROOT, Bench, Options
from tests.gpu.kit import data
from tests.gpu.stages import correctness, filters, machine, speed
from tests.gpu.table import SECTIONS, table
from tests.tiny import write_corpus
from train.config.tasks.language_model import SourceConfig

ITEMS = {  # stage -> some of its items, or all
    "machine": {"software", "card", "copy", "product", *(f"attention {heads.model}" for heads in machine.ATTENTIONS)},
    "correctness": {"resume", "checkpoint", "placements", "skipped steps", "logits", "spread", "gpu tests"},
    "speed": {arm.name for arm in speed.ARMS},
    "cost": {"400m peri"},
    "filters": {"training", "fdkn output", "dkn output", *filters.ARMS},
    "training": {"seed 0", "seed 1"},
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    source = SourceConfig(path=str(write_corpus(folder / "corpus", documents=80)))
    return data.pack(folder / "data", source=source, lengths=(32, 64, 128), vocab_size=300).folder


@pytest.mark.nightly  # minutes; run it by hand before a card is lent
def test_every_stage_runs_and_its_results_make_a_table(packed: Path, tmp_path: Path) -> None:
    out, archive = tmp_path / "out", tmp_path / "results.tar.gz"
    words = ["--device", "cpu", "--tiny", "--data", str(packed), "--out", str(out), "--pack", str(archive)]
    done = subprocess.run(
        # Bounds grow with the seconds: the machine may be busy.
        [sys.executable, "-m", "tests.gpu", "--seconds", "1500", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    logs = "".join(path.read_text()[-3000:] for path in out.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    for stage in STAGES:
        found = report.read(out / f"{stage.name}.json")
        assert found is not None
        assert found["state"] == report.OK
        assert ITEMS[stage.name] <= found["items"].keys()
        not_run = {name for name, item in found["items"].items() if item["state"] != report.OK}
        assert not_run <= {"gpu tests"}, not_run
    assert "profile" in (report.read(out / "speed.json") or {})["items"]["1.5b peri"]
    assert all(f"### {name.capitalize()}" in table(out) for name in SECTIONS)
    with tarfile.open(archive) as file:
        assert {f"results/{stage.name}.json" for stage in STAGES} <= set(file.getnames())


@pytest.mark.slow
def test_runs_resume_in_processes_of_their_own(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a card, where nothing is forked."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "out").mkdir()
    options = Options(str(tmp_path / "out"), str(packed), str(tmp_path / "work"), "cuda", tiny=True)
    found = correctness.resume(Bench("correctness", options, seconds=900))
    assert found["bit_equal"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--out", "OUT", "--data", "no-such-folder"], "make offline-kit"),
        (["--out", "OUT", "--only", "nonsense"], "invalid choice"),
        ([], "--out"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert named in capsys.readouterr().err
