"""A real SLURM on the loopback address: munge, a controller and two nodes of one core, in a temporary folder."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.benchmark.processes import wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo")
NODES = ("node1", "node2")

CONFIGURATION = """
ClusterName=equipoise
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
# How long a requeued job waits, too: two minutes by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
# Look for work at once, not every minute.
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
ReturnToService=2
SlurmdTimeout=5
KillWait=5
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""

NODE = "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=1 State=UNKNOWN"


def missing() -> str:
    """Return why a SLURM cannot be started here, empty where it can."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"no {', '.join(absent)}: `apt-get install slurm-wlm munge`"
    return "" if os.geteuid() == 0 else "slurmd starts jobs as their user, which needs root"


class Cluster:
    """The running SLURM; its programs find it through the variable `SLURM_CONF`."""

    def __init__(self, folder: Path, daemons: ExitStack) -> None:
        self.folder, self._daemons = folder, daemons
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a daemon that ends with the cluster."""
        with (self.folder / "daemons.log").open("ab") as log:
            process = subprocess.Popen(
                command, env={**os.environ, **self.environment}, stdout=log, stderr=log, start_new_session=True
            )
        self._daemons.callback(_end, process)
        return process

    def start_node(self, name: str) -> None:
        """Start a node, or start it again, and wait until SLURM knows."""
        self._nodes[name] = self.start("slurmd", "-D", "-N", name)
        wait_until(lambda: self.call("sinfo", "--noheader", "--format=%t", f"--nodes={name}") in ("idle", "mix"), 60)

    def lose_node(self, name: str) -> None:
        """End everything on a node at once, as a power cut would."""
        self._nodes[name].kill()
        for pid in _on_node(name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def call(self, *command: str) -> str:
        """Return what a program of SLURM prints, empty where it fails."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, check=False, capture_output=True, text=True).stdout.strip()

    def jobs(self) -> list[str]:
        """Return the jobs that wait, run or end."""
        return self.call("squeue", "--noheader", "--array", "--format=%i").split()

    def cancel_jobs(self) -> None:
        """End all jobs."""
        for job in self.jobs():
            self.call("scancel", job)


@contextmanager
def running() -> Iterator[Cluster]:
    """Start a SLURM and end it."""
    # Sockets have names of 108 characters at most, which those of pytest's folders may exceed.
    with tempfile.TemporaryDirectory(prefix="slurm") as name, ExitStack() as daemons:
        folder = Path(name)
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        (folder / "slurm.conf").write_text(_configuration(folder))
        cluster = Cluster(folder, daemons)
        files = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        cluster.start("munged", "--foreground", "--force", *_options(folder, files))
        wait_until((folder / "munge.socket").exists)
        cluster.start("slurmctld", "-D", "-i")
        wait_until(lambda: "UP" in cluster.call("scontrol", "ping"))
        for node in NODES:
            cluster.start_node(node)
        yield cluster


def _options(folder: Path, files: Mapping[str, str]) -> list[str]:
    return [f"--{option}={folder}/munge.{suffix}" for option, suffix in files.items()]


def _configuration(folder: Path) -> str:
    controller, *ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(NODE.format(name=name, port=port) for name, port in zip(NODES, ports, strict=True))
    return CONFIGURATION.format(folder=folder, controller=controller, nodes=nodes, names=",".join(NODES))


def _free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        found = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for item in found:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in found]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _on_node(name: str) -> set[int]:
    """Return the processes of a node's jobs and the daemons that watch over them."""
    found = set()
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdecimal() and f"SLURMD_NODENAME={name}".encode() in (folder / "environ").read_bytes():
                found |= {int(folder.name), *_watchers(int(folder.name))}
    return found


def _watchers(pid: int) -> Iterator[int]:
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        with suppress(OSError):
            if "slurmstepd" in Path(f"/proc/{pid}/cmdline").read_text():
                yield pid
