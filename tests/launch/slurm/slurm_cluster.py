"""A real SLURM cluster of three nodes on this machine, in a folder of its own, for as long as the tests need it.

Jobs take two of them; the third stands in for one that is lost. All are this machine: their names are addresses of the
loopback device in hexadecimal, so that they can be resolved, as a cluster's can, without a line in /etc/hosts.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.processes import HANG_SECONDS

NODES = {"0x7f000001": "127.0.0.1", "0x7f000002": "127.0.0.2", "0x7f000003": "127.0.0.3"}
# a job in `high` preempts those in `graceful`, which are signaled first, and in `graceless`, which SLURM ends at once
_PARTITIONS = (
    "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=OFF",
    "PartitionName=graceful Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60",
    "PartitionName=graceless Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL",
    "PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF",
)
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
SBIN = "/usr/sbin"  # not on every PATH


class Unavailable(Exception):
    """Why there can be no cluster here."""


def install() -> None:
    """Install SLURM as Debian packages it, where it is missing.

    Raises:
        Unavailable: It is missing and cannot be installed.
    """
    if all(shutil.which(program, path=f"{os.environ['PATH']}:{SBIN}") for program in PROGRAMS):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable("SLURM is not installed, and installing it takes root and apt-get")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    packages = ["slurm-wlm", "munge"]
    for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, timeout=400)
        if done.returncode != 0:
            raise Unavailable(f"apt-get {command[0]}: {done.stderr.strip()[-200:]}")


class SlurmCluster:
    """munged, slurmctld and three slurmd; every command that talks to them needs `environment`.

    Args:
        folder: Empty; everything of the cluster lies in it.

    Raises:
        Unavailable: It does not come up.
    """

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            raise Unavailable("slurmd wants to be root")
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.environment["PATH"] += f":{SBIN}"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._configure()
        try:
            self._start_munge()
            self._start("slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            self.wait_for(lambda: self.run("sinfo", "-h", "-o", "%T %D").split() == ["idle", "3"], 300)
        except (TimeoutError, OSError) as error:
            self.close()
            raise Unavailable(f"SLURM does not start ({error}); see {folder}/*.log") from error

    def run(self, *command: str) -> str:
        """Run a command of SLURM's and return what it printed."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=HANG_SECONDS)
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return a job's state and what it is waiting for, as in `PENDING BeginTime`."""
        shown = self.run("scontrol", "show", "job", job)
        return " ".join(re.search(rf"{key}=(\S*)", shown)[1] for key in ("JobState", "Reason"))  # type: ignore[index]

    def exit_code(self, job: str) -> int:
        """Return the exit code of a job, or of a task of an array."""
        return int(re.search(r"ExitCode=(\d+):", self.run("scontrol", "show", "job", job))[1])  # type: ignore[index]

    def restarts(self, job: str) -> int:
        """Return how often SLURM has restarted a job, or a task of an array."""
        shown = self.run("scontrol", "show", "job", job)
        return int(re.search(r"Restarts=(\d+)", shown)[1])  # type: ignore[index]

    def wait_for(self, condition: Callable[[], object], seconds: float = HANG_SECONDS) -> None:
        """Wait until the condition holds.

        Raises:
            TimeoutError: It does not.
        """
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds} s; {self.run('squeue')}")
            time.sleep(0.2)

    def wait_until_over(self, job: str) -> str:
        """Wait for a job's end, through all its restarts, and return how it ended."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        self.wait_for(lambda: self.state(job).split()[0] in ends)
        return self.state(job).split()[0]

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        self._start("slurmd", "-D", "-N", node, name=node)

    def lose_node(self, node: str) -> None:
        """End a node as a power failure does: its slurmd and all that runs on it."""
        slurmd = self._daemons.pop(node)
        slurmd.kill()
        slurmd.wait()
        for pid in self._processes_on(node):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def close(self) -> None:
        """End the jobs and the daemons."""
        self.run("scancel", "--user=root", "--signal=KILL")
        for node in NODES:
            for pid in self._processes_on(node):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def ranks_on(self, node: str) -> list[int]:
        """Return the training processes on a node, without their launchers."""
        lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in self._processes_on(node)}
        return [pid for pid, words in lines.items() if words[1:4] == [b"-u", b"-m", b"train"]]

    def _processes_on(self, node: str) -> list[int]:
        """Return the processes of jobs of this cluster on a node, and the slurmstepd above them."""
        marks = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.folder}/slurm.conf".encode()}
        found: dict[int, None] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if marks <= set((folder / "environ").read_bytes().split(b"\0")):
                    parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                    if (Path("/proc") / str(parent) / "comm").read_text().startswith("slurmstepd"):
                        found[parent] = None
                    found[int(folder.name)] = None
            except OSError:  # it ended meanwhile
                continue
        return list(found)

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        folder.mkdir(mode=0o755)
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o600)
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in names.items()]
        self._start("munged", "--foreground", "--force", *options)
        self.wait_for((folder / "socket").exists, 120)

    def _start(self, program: str, *arguments: str, name: str | None = None) -> None:
        name = name or program
        with (self.folder / f"{name}.out").open("ab") as out:
            command = [shutil.which(program, path=self.environment["PATH"]) or program, *arguments]
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )

    def _configure(self) -> None:
        host = socket.gethostname().partition(".")[0]
        controller, *ports = free_ports(1 + len(NODES))
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs=2"
            for (name, address), port in zip(NODES.items(), ports, strict=True)
        ]
        lines = [
            "ClusterName=test",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={controller}",
            "AuthType=auth/munge",
            # cred_expire is also how long a requeued job waits: two minutes by itself
            f"AuthInfo=socket={self.folder}/munge/socket,cred_expire=5",
            "SchedulerParameters=bf_interval=3,sched_interval=5",  # else a requeued job waits for up to 30 s more
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "SlurmUser=root",
            f"StateSaveLocation={self.folder}/state",
            f"SlurmdSpoolDir={self.folder}/spool.%n",
            f"SlurmctldPidFile={self.folder}/slurmctld.pid",
            f"SlurmdPidFile={self.folder}/slurmd.%n.pid",
            f"SlurmctldLogFile={self.folder}/slurmctld.log",
            f"SlurmdLogFile={self.folder}/slurmd.%n.log",
            "ReturnToService=2",
            "MpiDefault=none",
            f"FirstJobId={1 + os.getpid() % 9000}",  # ranks meet at a port of their job's: another cluster may be here
            "SlurmdTimeout=100",  # longer than srun takes to give up a lost node, as on clusters, where it is 300
            *nodes,
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            *_PARTITIONS,
        ]
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "state").mkdir()


def free_ports(count: int) -> list[int]:
    """Return so many free ports."""
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind(("", 0))
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
