"""The batch script's start and end of a job, with SLURM's commands played by scripts."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.slurm import job, restart
from launch.slurm.evidence import note_node
from tests.launch.slurm.test_slurm import write_command

ROOT = Path(__file__).parents[3]
JOB = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[0-1]", "SLURMD_NODENAME": "n0"}
TASK = {**JOB, "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2"}
RUNNING = "JobId=77 JobState=RUNNING Reason=None Restarts=0 TimeLimit=01:00:00 PreemptTime=None"
# srun finds a command under --export=NONE by its absolute path only, and does not reach a node listed in `lost`
SRUN = """here=$(dirname "$0")
while [ "${1#--}" != "$1" ]; do
    case "$1" in --nodelist=*) node=${1#--nodelist=} ;; esac
    shift
done
echo "$node" >> "$here/asked"
if grep -qx "$node" "$here/lost"; then exit 1; fi
case "$1" in
    /*) exec env -i "$@" ;;
    *) echo "execve(): $1: No such file" >&2; exit 2 ;;
esac"""


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put a scontrol and an srun on the PATH that answer as the files beside them say; returns their folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    files = {"state": RUNNING, "lost": "", "requeued": ""}
    for name, text in files.items():
        (folder / name).write_text(text)
    quoted = shlex.quote(str(folder))
    lines = [
        'case "$1 $2" in',
        '"show hostnames") printf "n0\\nn1\\n" ;;',
        f'"show job") cat {quoted}/state ;;',
        f'requeue*) echo "$2" >> {quoted}/requeued ;;',
        "esac",
    ]
    write_command(folder / "scontrol", "\n".join(lines))
    write_command(folder / "srun", SRUN)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    handler = signal.getsignal(signal.SIGTERM)
    yield folder
    signal.signal(signal.SIGTERM, handler)


def ended(run: Path, code: int, *options: str, environment: dict[str, str] = JOB) -> int:
    return restart.main(["end", str(run), "--code", str(code), *options], environment)


def started(run: Path, *options: str, environment: dict[str, str] = JOB) -> int:
    return restart.main(["start", str(run), *options], environment)


def requeued(played: Path) -> list[str]:
    return (played / "requeued").read_text().split()


def test_a_run_that_ends_itself_on_two_nodes_is_not_requeued(
    tmp_path: Path, played: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SLURM terminates the launcher of the other node, which may leave no record: that node responds."""
    assert started(tmp_path) == 0
    note_node(tmp_path, "n1", start="77-0", code=1)
    (tmp_path / "heartbeat").mkdir()
    beat = {"rank": 1, "host": "n1", "step": 3, "state": "failed", "error": "ValueError: bad data"}
    (tmp_path / "heartbeat/rank_00001.json").write_text(json.dumps(beat))
    assert ended(tmp_path, 143) == 1  # of the node that failed first
    assert requeued(played) == []
    said = capsys.readouterr().err
    assert "the run ended itself" in said
    assert "rank 1 (n1) failed at step 3: ValueError: bad data" in said


def test_a_lost_node_is_requeued(tmp_path: Path, played: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert started(tmp_path) == 0
    note_node(tmp_path, "n0", start="77-0", code=1)
    (played / "lost").write_text("n1\n")
    assert ended(tmp_path, 1) == 75
    assert requeued(played) == ["77"]
    assert "node n1 does not respond; job 77 is requeued and will resume" in capsys.readouterr().err


def test_a_lost_node_that_slurm_notices_while_nodes_are_asked(
    tmp_path: Path, played: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SLURM has requeued the job; no node of it can start a step then, not even that of the batch script."""
    note_node(tmp_path, "n0", start="77-0", code=1)
    (played / "lost").write_text("n0\nn1\n")
    pending = RUNNING.replace("RUNNING", "PENDING").replace("Restarts=0", "Restarts=1")
    slow = f'echo "{pending}" > "$(dirname "$0")/state"\n{SRUN}'
    write_command(played / "srun", slow)
    assert ended(tmp_path, 1) == 1
    assert requeued(played) == []
    assert "SLURM itself has requeued the job" in capsys.readouterr().err


def test_nodes_are_not_asked_where_all_have_recorded_their_end(tmp_path: Path, played: Path) -> None:
    for node in ("n0", "n1"):
        note_node(tmp_path, node, start="77-0", code=1)
    (played / "lost").write_text("n1\n")
    assert ended(tmp_path, 1) == 1
    assert not (played / "asked").exists()


def test_a_record_of_an_earlier_start_is_no_record(tmp_path: Path, played: Path) -> None:
    for node in ("n0", "n1"):
        note_node(tmp_path, node, start="77-0", code=1)
    (played / "lost").write_text("n1\n")
    assert ended(tmp_path, 1, environment={**JOB, "SLURM_RESTART_COUNT": "1"}) == 75


def test_nodes_do_not_count_as_lost_where_the_question_itself_fails(tmp_path: Path, played: Path) -> None:
    """Such as with an srun that does not know an option."""
    (played / "lost").write_text("n0\nn1\n")
    assert ended(tmp_path, 1) == 1
    write_command(played / "srun", 'echo "srun: unrecognized option --overlap" >&2; exit 1')
    assert ended(tmp_path, 1) == 1
    assert requeued(played) == []


def test_an_early_stop_is_requeued_until_the_limit(
    tmp_path: Path, played: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, codes = ("--restarts=100", "--restarts-without-progress=2"), []
    for _ in range(3):
        assert started(tmp_path, *options) == 0
        codes.append(ended(tmp_path, 75, *options))
    assert codes == [75, 75, 75]
    assert requeued(played) == ["77", "77"]
    assert "no progress after 2 restarts" in capsys.readouterr().err
    assert started(tmp_path, *options) == 1
    assert "restarts_without_progress" in capsys.readouterr().err


def test_a_task_of_an_array_is_requeued_alone(tmp_path: Path, played: Path) -> None:
    """SLURM_JOB_ID of one of the tasks is that of the whole array."""
    assert started(tmp_path, environment=TASK) == 0
    assert json.loads((tmp_path / "logs/starts.json").read_text())["job"] == "77_3"
    assert ended(tmp_path, 75, environment=TASK) == 75
    assert requeued(played) == ["77_3"]


def test_a_stop_of_an_earlier_start_is_forgotten(tmp_path: Path, played: Path) -> None:
    (tmp_path / "stopped.json").write_text('{"step": 8}')
    assert started(tmp_path) == 0
    assert not (tmp_path / "stopped.json").exists()
    assert ended(tmp_path, 1) == 1


@pytest.mark.parametrize(
    ("shown", "code", "again"),
    [
        ("JobState=COMPLETING Reason=None Restarts=0 PreemptTime=None", 75, []),  # cancelled
        ("JobState=COMPLETING Reason=None Restarts=0", 75, []),
        ("JobState=COMPLETING Reason=None Restarts=1 PreemptTime=2026-11-26T20:59:15", 75, []),  # by SLURM itself
        ("JobState=COMPLETING Reason=None Restarts=0 PreemptTime=2026-11-26T20:59:15", 137, ["77"]),
        ("JobState=COMPLETING Reason=TimeLimit Restarts=0", 137, ["77"]),
        ("JobState=RUNNING Reason=None Restarts=0 PreemptTime=2026-11-26T20:59:15", 75, ["77"]),
        ("", 75, ["77"]),  # no answer
    ],
)
def test_slurm_s_own_decisions_are_read_from_the_job(
    tmp_path: Path, played: Path, shown: str, code: int, again: list[str]
) -> None:
    (played / "state").write_text(f"JobId=77 {shown} TimeLimit=00:01:00 Partition=low")
    assert ended(tmp_path, code) == (75 if again else code)
    assert requeued(played) == again


def test_a_preempted_job_is_not_charged(tmp_path: Path, played: Path) -> None:
    (played / "state").write_text("JobState=RUNNING Restarts=0 PreemptTime=2026-11-26T20:59:15")
    for _ in range(3):
        assert started(tmp_path, "--restarts-without-progress=0") == 0
        assert ended(tmp_path, 75, "--restarts-without-progress=0") == 75
    assert requeued(played) == ["77"] * 3


def test_a_failing_requeue_says_what_to_do(tmp_path: Path, played: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_command(played / "scontrol", 'echo "slurm_load error" >&2; exit 1')
    assert ended(tmp_path, 75) == 75
    assert "requeueing failed: submit the job by hand" in capsys.readouterr().err


def test_an_unknown_state_is_that_of_an_undisturbed_job() -> None:
    assert job.parse_state("slurm_load_jobs error: Unable to contact slurm controller") == job.JobState()


def test_the_batch_script_needs_the_standard_library_only() -> None:
    """It runs outside of the container, with whatever python3 the node has."""
    command = [sys.executable, "-S", "-m", "launch.slurm.restart", "--help"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
