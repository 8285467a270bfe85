"""Stages are bounded, and neither their failures nor a kill of the script loses what is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.gpu import report
from tests.gpu.bench import ROOT, Bench, Options, SkippedError
from tests.gpu.stage import Stage, run_stages

PATIENCE = 120  # seconds; guards against a hang

# A stage that starts a process with a group of its own, as training runs have, notes both and waits.
LINGERING = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
pathlib.Path({file!r}).write_text(f"{{os.getpid()}} {{child.pid}}")
time.sleep(600)
"""


def run(out: Path, codes: dict[str, str], *, bounds: float = 60.0, seconds: float = 300.0) -> dict[str, Any]:
    """Run stages that are scripts; return their results files."""
    stages = [Stage(name, seconds=bounds, least=1.0) for name in codes]
    run_stages(stages, out, seconds=seconds, command=lambda stage, _: script(codes[stage.name]), after=lambda _: None)
    return {name: report.read(out / f"{name}.json") for name in codes}


def script(code: str) -> Sequence[str]:
    return [sys.executable, "-c", code]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Return whether a process runs; one that has ended, but was not waited for, does not."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stage_over_its_bound_is_killed_with_its_children(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    results = run(tmp_path, {"slow": LINGERING.format(file=str(file))}, bounds=2.0)
    pids = [int(pid) for pid in file.read_text().split()]
    wait_until(lambda: not any(is_running(pid) for pid in pids))
    assert results["slow"]["state"] == report.FAILED
    assert "killed at its bound" in results["slow"]["reason"]


def test_a_failing_stage_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    results = run(tmp_path, {"broken": "raise ValueError('no such thing')", "sound": "print('done')"})
    assert results["broken"]["state"] == report.FAILED
    assert "no such thing" in results["broken"]["reason"]
    assert results["sound"]["state"] == report.OK


def test_too_little_time_drops_the_later_stages(tmp_path: Path) -> None:
    stages = [Stage("first", seconds=60, least=1.0), Stage("second", seconds=60, least=1000.0)]
    outcomes = run_stages(stages, tmp_path, seconds=60, command=lambda *_: script("pass"), after=lambda _: None)
    assert [outcome.state for outcome in outcomes] == [report.OK, report.NOT_RUN]
    second = report.read(tmp_path / "second.json")
    assert second is not None
    assert second["state"] == report.NOT_RUN
    assert "s left" in second["reason"]


def test_results_of_earlier_stages_and_items_survive_a_kill_of_the_script(tmp_path: Path) -> None:
    item = f"from tests.gpu.report import Report; from pathlib import Path; r = Report(Path({str(tmp_path)!r}), 'NAME')"
    codes = {
        "done": f"{item.replace('NAME', 'done')}; r.add('one', state='ok', figure=1)",
        "cut": f"{item.replace('NAME', 'cut')}; r.add('two', state='ok', figure=2); import time; time.sleep(600)",
    }
    code = f"from tests.gpu.test_stage import run; from pathlib import Path; run(Path({str(tmp_path)!r}), {codes!r})"
    process = subprocess.Popen(script(code), cwd=ROOT)
    wait_until(lambda: "two" in ((report.read(tmp_path / "cut.json") or {}).get("items", {})))
    process.kill()
    process.wait()
    kill_scripts_of(tmp_path)
    results = {name: report.read(tmp_path / f"{name}.json") or {} for name in codes}
    assert (results["done"]["state"], results["done"]["items"]["one"]["figure"]) == (report.OK, 1)
    assert (results["cut"]["state"], results["cut"]["items"]["two"]["figure"]) == (report.RUNNING, 2)


def kill_scripts_of(folder: Path) -> None:
    """Kill the stage that the killed script has left: these stages, unlike real ones, do not watch their parent."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"-c" in words and str(folder).encode() in b"".join(words) and int(path.parent.name) != os.getpid():
            os.kill(int(path.parent.name), signal.SIGKILL)


def test_a_stage_ends_with_the_script(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    watching = (
        "import os, pathlib; from tests.gpu.stages.__main__ import end_with;"
        f"pathlib.Path({str(file)!r}).write_text(str(os.getpid())); end_with(os.getppid())"
    )
    parent = f"import subprocess, time; subprocess.Popen({script(watching)!r}, start_new_session=True); time.sleep(600)"
    process = subprocess.Popen(script(parent), cwd=ROOT)
    wait_until(lambda: file.exists() and bool(file.read_text()))
    process.kill()
    process.wait()
    wait_until(lambda: not is_running(int(file.read_text())))


def bench(folder: Path, **options: Any) -> Bench:
    (folder / "out").mkdir(exist_ok=True)
    given = {"out": str(folder / "out"), "data": str(folder), "work": str(folder / "work"), "tiny": True}
    return Bench("stage", Options(**{**given, "device": "cpu", **options}), seconds=PATIENCE)


def test_a_failing_item_is_recorded_and_the_next_one_is_done(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise ValueError("no such thing")

    def skip() -> dict[str, Any]:
        raise SkippedError("needs a card")

    stage = bench(tmp_path)
    stage.item("broken", fail)
    stage.item("skipped", skip)
    stage.item("late", dict, least=10 * PATIENCE)
    stage.item("sound", lambda: {"figure": 1})
    items = json.loads(stage.report.path.read_text())["items"]
    assert {name: item["state"] for name, item in items.items()} == {
        "broken": report.FAILED,
        "skipped": report.NOT_RUN,
        "late": report.NOT_RUN,
        "sound": report.OK,
    }
    assert "no such thing" in items["broken"]["reason"]


def test_only_the_items_asked_for_are_done(tmp_path: Path) -> None:
    stage = bench(tmp_path, items=["400m"])
    for name in ("400m peri", "1.5b peri"):
        stage.item(name, dict)
    assert list(stage.report.items) == ["400m peri"]


def test_a_child_process_of_its_own_is_awaited_and_killed(tmp_path: Path) -> None:
    stage = bench(tmp_path, device="cuda")  # starts processes instead of forking; these use no card
    done = stage.start("done", "json.tool", ["--help"])
    stage.finish(done)
    assert "usage" in done.log.read_text()
    waiting = stage.start("waiting", "timeit", ["-n", "1", "-r", "1", "import time; time.sleep(600)"])
    assert waiting.poll() is None
    waiting.kill()
    assert waiting.code == -signal.SIGKILL
    assert not is_running(waiting.pid)
