"""`python -m launch slurm`: what it refuses, what it writes, what it says; SLURM's commands are played by scripts."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch import __main__ as entry
from launch.slurm import slurm
from launch.slurm.cluster import ClusterConfig
from tests.checkpoints import write_checkpoint
from tests.tiny import tiny_file, tiny_run
from train.config.load import load

CLUSTER = "nodes: 2\nranks_per_node: 2\ntime: 1:00:00\npartition: main\n"


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an sbatch that answers 77 and a squeue that answers what `state` holds on the PATH; returns their folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write_command(folder / "sbatch", 'printf "%s\\n" "$@" > "$0.given"; echo 77')
    write_command(folder / "squeue", f'printf "%s\\n" "$@" > "$0.given"; cat {shlex.quote(str(folder / "state"))}')
    (folder / "state").write_text("")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "check_here", lambda *_: None)
    return folder


def write_command(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def given(folder: Path, *overrides: str, cluster: str = CLUSTER) -> list[str]:
    (folder / "cluster.yaml").write_text(cluster)
    return ["slurm", str(tiny_file(folder)), *overrides, "--cluster", str(folder / "cluster.yaml")]


def test_a_submission_is_kept_with_its_code_and_configuration(
    tmp_path: Path, played: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main(given(tmp_path, "optim.lr=0.005")) == 0
    run = tmp_path / "runs/tiny"
    kept = run / "submitted/001"
    assert load(kept / "config.yaml") == tiny_run(tmp_path, "optim.lr=0.005")
    assert (kept / "code/train/loop.py").exists()
    assert (played / "sbatch.given").read_text().split() == ["--parsable", str(kept / "job.sh")]
    assert json.loads((run / "logs/job.json").read_text())["job_id"] == "77"
    said = capsys.readouterr().out
    assert "job 77: 2 nodes with 2 ranks each, time limit 01:00:00 per start" in said
    assert f"tail -F {run}/logs/slurm-77.log" in said


def test_a_second_submission_leaves_the_code_of_the_first(tmp_path: Path, played: Path) -> None:
    assert entry.main(given(tmp_path)) == 0
    assert entry.main(given(tmp_path)) == 0
    assert sorted(path.name for path in (tmp_path / "runs/tiny/submitted").iterdir()) == ["001", "002"]


def test_a_dry_run_prints_the_script_and_writes_nothing(
    tmp_path: Path, played: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main([*given(tmp_path), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash -l\n#SBATCH --job-name=tiny\n")
    assert not (tmp_path / "runs").exists()
    assert not (played / "sbatch.given").exists()


def test_a_folder_that_a_live_job_uses_is_refused(
    tmp_path: Path, played: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main(given(tmp_path)) == 0
    (played / "state").write_text("RUNNING\n")
    assert entry.main(given(tmp_path)) == 2
    assert "job 77 uses this folder (running)" in capsys.readouterr().err
    assert "--jobs=77" in (played / "squeue.given").read_text()


def test_a_job_that_slurm_has_forgotten_is_over(tmp_path: Path, played: Path) -> None:
    assert entry.main(given(tmp_path)) == 0
    write_command(played / "squeue", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    assert entry.main(given(tmp_path)) == 0


def test_a_silent_squeue_is_no_leave_to_submit(
    tmp_path: Path, played: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main(given(tmp_path)) == 0
    write_command(played / "squeue", 'echo "Unable to contact slurm controller" >&2; exit 1')
    assert entry.main(given(tmp_path)) == 1
    assert "Unable to contact" in capsys.readouterr().err


def test_a_damaged_note_is_named(tmp_path: Path, played: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs/tiny/logs").mkdir(parents=True)
    (tmp_path / "runs/tiny/logs/job.json").write_text('{"job')
    assert entry.main(given(tmp_path)) == 1
    assert "job.json: is damaged" in capsys.readouterr().err


def test_another_run_s_folder_is_refused(tmp_path: Path, played: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs/tiny"
    run.mkdir(parents=True)
    from train.config.load import to_yaml

    (run / "config.yaml").write_text(to_yaml(tiny_run(tmp_path, "seed=3")))
    assert entry.main(given(tmp_path)) == 2
    assert "seed: 3 -> 0" in capsys.readouterr().err


def test_a_finished_run_is_not_submitted(tmp_path: Path, played: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "runs/tiny", 8, evaluated=8)
    assert entry.main(given(tmp_path)) == 0
    assert "is finished: the checkpoint of step 8 of 8 is saved" in capsys.readouterr().out
    assert not (played / "sbatch.given").exists()
    write_checkpoint(tmp_path / "runs/tiny", 8, evaluated=4)  # a signal came in the last evaluation
    assert entry.main(given(tmp_path)) == 0
    assert (played / "sbatch.given").exists()


def test_what_is_wrong_with_run_and_cluster_is_told_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main(given(tmp_path, "optim.lrr=1", cluster="nodes: 0\ntime: 5")) == 2
    told = capsys.readouterr().err
    assert "optim.lrr" in told
    assert "nodes: 0 is too small" in told


def test_ranks_that_do_not_share_the_batch_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(given(tmp_path, cluster="time: 60\nnodes: 3")) == 2
    assert "nodes: 3 with 1 ranks each: global_batch_size: 8 samples" in capsys.readouterr().err


def test_a_machine_without_slurm_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm, "check_here", lambda *_: None)
    monkeypatch.setenv("PATH", "/nowhere")
    assert entry.main(given(tmp_path)) == 1
    assert "sbatch: no such command" in capsys.readouterr().err
    assert not list((tmp_path / "runs/tiny/submitted").iterdir())


def test_a_fault_in_the_data_is_found_before_the_queue(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A dry run checks as much as a submission does."""
    assert entry.main([*given(tmp_path, "task.data.sources=[/nowhere/*.txt]"), "--dry-run"]) == 2
    assert "/nowhere" in capfd.readouterr().err


def script(folder: Path, cluster: ClusterConfig, *, array: bool = False) -> str:
    configs = [tiny_run(folder, f"name=member-{number}") for number in range(3 if array else 1)]
    return slurm.submit(
        configs, cluster, folder=folder / "kept", name="name", about="about", array=array, at_once=2, dry_run=True
    ).text


@pytest.mark.parametrize("array", [False, True])
def test_a_script_survives_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: bool) -> None:
    """bash itself reads back what was meant, blanks, quotes and dollars included."""
    folder = tmp_path / "a b'c$HOME%j"
    folder.mkdir()
    monkeypatch.chdir(folder)
    text = script(folder, ClusterConfig(time=60, environment={"X": "$(touch owned) `x` \"'"}), array=array)
    shown = text.partition("head=$(")[0] + 'printf "%s\\n" "$config" "$run" "$PWD" "$PYTHONPATH" "$X"\n'
    done = subprocess.run(
        ["bash", "-c", shown],
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    number = 1 if array else 0
    kept = folder / "kept/submitted/001"
    assert done.stdout.splitlines() == [
        str(kept / ("config-1.yaml" if array else "config.yaml")),
        str(folder / f"runs/member-{number}"),
        str(folder),
        str(kept / "code"),
        "$(touch owned) `x` \"'",
    ]
    assert not list(folder.glob("owned"))
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert "%%j/kept/logs/slurm-" in text


def test_a_script_asks_for_what_the_cluster_file_says(tmp_path: Path) -> None:
    cluster = ClusterConfig(
        partition="gpu",
        account="me",
        qos="high",
        nodes=4,
        gpus_per_node=8,
        cpus_per_task=64,
        time="1-00:00:00",
        memory="0",
        signal_seconds=600,
        modules=("cuda/12.8",),
        environment={"NCCL_DEBUG": "WARN"},
        sbatch=("--exclusive",),
    )
    lines = script(tmp_path, cluster).splitlines()
    options = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    assert options == [
        "job-name=name",
        "partition=gpu",
        "account=me",
        "qos=high",
        "nodes=4",
        "ntasks-per-node=1",
        "gpus-per-node=8",
        "cpus-per-task=64",
        "mem=0",
        "time=1-00:00:00",
        f"output={tmp_path}/kept/logs/slurm-%j.log",
        "open-mode=append",
        "export=NONE",
        "signal=USR1@600",
        "requeue",
        "exclusive",
    ]
    text = "\n".join(lines)
    assert "module load cuda/12.8 || exit 1\nexport NCCL_DEBUG=WARN\n" in text
    assert "srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --export=ALL --cpus-per-task=64 --kill-on-bad-exit=1" in text
    assert f"python={sys.executable}" in text
    assert "limits=(--restarts=100 --restarts-without-progress=3)\n" in text
    assert text.rstrip().endswith('"$python" -m launch.slurm.restart end "$run" --code $? "${limits[@]}"')


def test_a_script_without_limits_starts_and_ends(tmp_path: Path) -> None:
    """Bash runs the end of the script on the exit code of srun, whatever signals the script itself has received."""
    text = script(tmp_path, ClusterConfig(time=60, restarts=None, restarts_without_progress=None))
    assert "limits=()\n" in text
    commands = tmp_path / "bin"
    commands.mkdir()
    write_command(commands / "python", 'echo "$@"')
    write_command(commands / "scontrol", "echo n0")
    write_command(commands / "srun", 'kill -TERM "$PPID"; sleep 0.1; exit 7')
    lines = text.replace(f"python={sys.executable}", "python=python").splitlines()
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n0"}
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], env=environment, capture_output=True, text=True, check=False
    )
    run = tmp_path / "runs/member-0"
    assert done.stdout.splitlines() == [
        f"-m launch.slurm.restart start {run}",
        f"-m launch.slurm.restart end {run} --code 7",
    ]


def test_a_script_says_nothing_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_word")
    assert "hf_secret_word" not in script(tmp_path, ClusterConfig(time=60))


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        (
            None,
            "apptainer exec --nv --bind {work}:{work},{code}:{code},{run}:{run},/d:/d --pwd {work} /i.sif ",
        ),
        ("pyxis", "--container-image=/i.sif --container-mounts={work}:{work},{code}:{code},{run}:{run},/d:/d "),
    ],
)
def test_a_container_sees_code_run_and_folder(tmp_path: Path, runtime, expected: str) -> None:
    cluster = ClusterConfig(
        time=60, gpus_per_node=1, container="/i.sif", container_runtime=runtime, container_mounts=("/d:/d",)
    )
    code, run = tmp_path / "kept/submitted/001/code", tmp_path / "runs/member-0"
    assert expected.format(work=Path.cwd(), code=code, run=run) in script(tmp_path, cluster)


def test_an_array_has_a_task_per_member(tmp_path: Path, played: Path) -> None:
    configs = [tiny_run(tmp_path, f"name=member-{number}") for number in range(3)]
    cluster = ClusterConfig(time=60)
    done = slurm.submit(configs, cluster, folder=tmp_path / "sweep", name="s", about="", array=True, at_once=2)
    assert "#SBATCH --array=0-2%2\n" in done.text
    assert done.log == tmp_path / "sweep/logs/slurm-77_*.log"
    noted = [json.loads((tmp_path / f"runs/member-{n}/logs/job.json").read_text())["job_id"] for n in range(3)]
    assert noted == ["77_0", "77_1", "77_2"]
