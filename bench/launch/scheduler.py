"""What SLURM says, through its own commands; true with and without accounting."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.errors import BenchError
from bench.registry import nearest_hint

LIVE = {
    "CONFIGURING", "COMPLETING", "PENDING", "REQUEUED", "REQUEUE_FED", "RESIZING", "RUNNING", "SIGNALING", "STAGE_OUT",
    "STOPPED", "SUSPENDED",
}  # fmt: skip
# pending for a reason that waiting does not mend
NEVER = re.compile(
    r"DependencyNeverSatisfied|BadConstraints|held|JobHoldMaxRequeue|Partition\w*Limit|Invalid(Account|QOS)"
    r"|(Account|QOS)NotAllowed|(Assoc|QOS)Max\w+(PerJob|Duration\w*)"
)
TRIES = 5
ANSWER_SECONDS = 60


class SlurmError(BenchError, RuntimeError):
    """SLURM is not here, gives no answer, or refuses what it is asked for."""


@dataclass(frozen=True)
class Job:
    """A job, or an element of an array, as the queue shows it.

    Args:
        id: "12", or "12_3" for an element.
        state: SLURM's word for it.
        reason: why it waits, or ended.
        nodes: where it runs.
        name: as it was submitted.
    """

    id: str
    state: str
    reason: str
    nodes: str
    name: str

    @property
    def element(self) -> int:
        """Its place in its array."""
        return int(self.id.partition("_")[2] or 0)

    @property
    def live(self) -> bool:
        """It runs, or will."""
        return self.state in LIVE and not self.stuck

    @property
    def stuck(self) -> bool:
        """It waits for what will not come."""
        return self.state == "PENDING" and NEVER.search(self.reason) is not None


def demand_slurm() -> None:
    """Raise SlurmError where its commands are not installed."""
    lacking = [name for name in ("sbatch", "squeue", "scancel", "srun") if shutil.which(name) is None]
    if lacking:
        raise SlurmError(
            f"no {', '.join(lacking)} on this machine: run it on the cluster's login node, or choose `--cluster local`"
        )


def demand_partition(name: str | None) -> None:
    """Raise SlurmError for a partition that the cluster does not have."""
    if name is None:
        return
    known = sorted(set(ask("sinfo", "-h", "-o", "%R").split()))
    for part in name.split(","):
        if part not in known:
            raise SlurmError(f"cluster.partition: no '{part}' on this cluster; {nearest_hint(part, known)}")


def jobs() -> list[Job]:
    """All jobs of this user that SLURM still knows, ended ones too."""
    found = []
    for line in ask("squeue", "-h", "-r", "--me", "-t", "all", "-o", "%i|%T|%N|%j|%r").splitlines():
        name, state, nodes, title, reason = line.split("|", 4)
        found.append(Job(name, state, reason, nodes, title))
    return found


def largest_array() -> int:
    """How many elements an array may have."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found.group(1)) - 1) if found else 1000


def accounted(job: str) -> str | None:
    """How a job that the queue has forgotten ended, where the cluster keeps accounts."""
    try:
        text = _run(["sacct", "-n", "-X", "-P", "-o", "State", "-j", job])
    except SlurmError:
        return None
    return text.split()[0] if text.split() else None


def cancel(ids: Sequence[str]) -> None:
    """End jobs."""
    if ids:
        ask("scancel", *ids)


def requeue(job: str) -> None:
    """Queue a running job again, once: it is about to be killed.

    Raises:
        SlurmError: it cannot be.
    """
    _run(["scontrol", "requeue", job])


def ask(*command: str) -> str:
    """What a command of SLURM prints; asked again while the controller does not answer.

    Raises:
        SlurmError: it refuses, or stays silent.
    """
    for i in range(TRIES):
        try:
            return _run(command)
        except SlurmError as error:
            if i + 1 == TRIES or not _is_silence(str(error)):
                raise
        time.sleep(2**i)
    raise AssertionError


def _is_silence(text: str) -> bool:
    return re.search(r"[Uu]nable to contact|[Tt]imed out|Connection refused|no answer", text) is not None


def _run(command: Iterable[str]) -> str:
    command = list(command)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except FileNotFoundError:
        raise SlurmError(f"no {command[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: no answer within {ANSWER_SECONDS} s") from None
    if done.returncode:
        raise SlurmError(f"{' '.join(command[:3])}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout
