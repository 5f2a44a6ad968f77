"""A real SLURM cluster on loopback: munged, slurmctld and virtual nodes, started as root without systemd."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

NODES = 4
CPUS = 2  # of each, as they tell the controller
MEMORY = 8000  # MB of each
LARGEST = 3  # elements of an array
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun", "sinfo")

CONFIG = """ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire=20
CredType=cred/munge
SlurmctldPort={port}
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=2000
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobRequeue=1
KillWait=5
MinJobAge=86400
MaxArraySize={above}
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
InactiveLimit=0
LaunchParameters=enable_nss_slurm
SlurmdParameters=config_overrides
DebugFlags=NO_CONF_HASH
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=main Nodes=n[1-{last}] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=n[1-{last}] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=blind Nodes=blind MaxTime=INFINITE State=UP
"""


def unavailable() -> str | None:
    """Why a cluster cannot be started here, or None."""
    lacking = [name for name in COMMANDS if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed (Debian: apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "starting a SLURM cluster wants root"


class Cluster:
    """A cluster in a folder; `up` before it is used, `down` after.

    Args:
        folder: its configuration, state and logs.
        port: of the controller; the nodes' follow.
        hidden: a folder that the node `blind` does not see.
    """

    def __init__(self, folder: Path, port: int, hidden: Path):
        self.folder, self.port, self.hidden = folder, port, hidden
        self.config = folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.config)}

    def up(self) -> None:
        """Start everything, and wait until all nodes are idle."""
        for name in ("run", "log", "state", "spool", "munge"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        munge.chmod(0o755)
        subprocess.run(
            ["munged", "--force", f"--key-file={munge}/key", f"--socket={munge}/sock", f"--pid-file={munge}/pid",
             f"--log-file={munge}/log", f"--seed-file={munge}/seed", "--num-threads=2"],
            check=True,
        )  # fmt: skip
        host = socket.gethostname().partition(".")[0]
        names = [*(f"n{i}" for i in range(1, NODES + 1)), "blind"]
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={self.port + 1 + i} CPUs={CPUS} "
            f"RealMemory={MEMORY} State=UNKNOWN"
            for i, name in enumerate(names)
        )
        text = CONFIG.format(
            host=host,
            port=self.port,
            folder=self.folder,
            munge=f"{munge}/sock",
            nodes=nodes,
            last=NODES,
            above=LARGEST + 1,
        )
        self.config.write_text(text)
        self.start_controller()
        for name in names:
            self.start_node(name)
        self.await_nodes(len(names))

    def await_nodes(self, count: int, states: str = "idle,alloc,mix") -> None:
        """Wait until so many nodes are in one of the states."""
        for _ in range(300):
            told = self.run("sinfo", "-h", "-N", "-t", states, "-o", "%N", check=False).stdout.split()
            if len(set(told)) >= count:
                return
            time.sleep(0.1)
        raise RuntimeError(f"{count} nodes wanted, {told} are {states}; see {self.folder}/log")

    def start_controller(self) -> None:
        """Start the controller, from its saved state."""
        subprocess.run(["slurmctld", "-f", str(self.config)], check=True, env=self.environment)

    def stop_controller(self) -> None:
        """End the controller; the jobs go on."""
        self._end(self.folder / "run" / "slurmctld.pid")

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        (self.folder / "spool" / name).mkdir(exist_ok=True)
        command = ["slurmd", "-f", str(self.config), "-N", name]
        if name == "blind":
            self.hidden.mkdir(parents=True, exist_ok=True)
            hide = f"mount -t tmpfs none {self.hidden} && chmod 000 {self.hidden} && mount -o remount,ro {self.hidden}"
            command = ["unshare", "-m", "sh", "-c", f"{hide} && exec {' '.join(command)}"]
        subprocess.run(command, check=True, env=self.environment)

    def stop_node(self, name: str) -> None:
        """End the daemon of a node and all it runs, as when its power fails."""
        self._end(self.folder / "run" / f"slurmd.{name}.pid")
        told = subprocess.run(["pgrep", "-f", f"slurmstepd.*{self.folder}|slurmstepd:"], capture_output=True, text=True)
        for step in told.stdout.split():
            environ = Path(f"/proc/{step}/environ")
            if environ.exists() and f"SLURMD_NODENAME={name}".encode() in environ.read_bytes():
                os.kill(int(step), signal.SIGKILL)

    def processes(self, job: str) -> list[int]:
        """The processes of a job's work."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environ = (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            number, _, element = job.partition("_")
            wanted = {f"SLURM_ARRAY_JOB_ID={number}", f"SLURM_ARRAY_TASK_ID={element}"} if element else {
                f"SLURM_JOB_ID={number}"
            }  # fmt: skip
            if (
                {w.encode() for w in wanted} <= set(environ)
                and b"bench.launch.enter" in command
                and b"srun" not in command
            ):
                found.append(int(folder.name))
        return found

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of SLURM's commands."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=check)

    def clear(self) -> None:
        """End all jobs and wait until they are gone."""
        for i in range(600):
            if i % 50 == 0:  # again: a job that is just being queued again is missed
                self.run("scancel", "--user=root", check=False)
            if not self.run("squeue", "-h", check=False).stdout.strip():
                return
            time.sleep(0.1)
        raise RuntimeError(f"jobs do not end: {self.run('squeue').stdout}")

    def down(self) -> None:
        """End everything."""
        self.run("scancel", "--user=root", check=False)
        time.sleep(0.5)
        for path in [*(self.folder / "run").glob("*.pid"), self.folder / "munge" / "pid"]:
            self._end(path)

    def _end(self, path: Path) -> None:
        try:
            pid = int(path.read_text())
            os.kill(pid, signal.SIGTERM)
            for _ in range(50):
                time.sleep(0.1)
                os.kill(pid, 0)
            os.kill(pid, signal.SIGKILL)
        except (OSError, ValueError):
            path.unlink(missing_ok=True)
