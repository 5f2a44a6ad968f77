"""Which jobs hold which cells: read from the submissions' own notes and the queue alone."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.launch import scheduler
from bench.launch.arrays import PREFIX, Array
from bench.launch.scheduler import Job
from bench.store import Store

ENDED = {
    "CANCELLED": "its job was cancelled",
    "TIMEOUT": "its job reached the time limit; raise cluster.time, or allow cluster.requeue",
    "OUT_OF_MEMORY": "its job ran out of memory; raise cluster.memory",
    "NODE_FAIL": "the node of its job failed",
    "PREEMPTED": "its job was preempted and not queued again",
    "DEADLINE": "its job missed its deadline",
    "BOOT_FAIL": "the node of its job did not start",
    "FAILED": "its job's process ended with an error",
}
LOG_LINES = 400
MEMORY = re.compile(r"exceeded \w* ?memory limit|oom[-_ ]?kill|out of memory", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Where a cell was sent: an element of a submission's array, and its job if the queue knows one.

    `sent` is the array's job number, or None where the submission was cut off before it was known.
    """

    folder: Path
    array: Array
    element: int
    sent: str | None
    job: Job | None

    @property
    def live(self) -> bool:
        """A job computes it, or will."""
        return self.job is not None and self.job.live

    @property
    def log(self) -> Path | None:
        """What its job printed, if it printed anything."""
        number = self.job.id if self.job else self.sent and self._numbered(self.sent)
        path = self.folder / f"{number}_0_log.out"
        return path if number and path.is_file() else None

    def _numbered(self, sent: str) -> str:
        return f"{sent}_{self.element}" if len(self.array.elements) > 1 else sent

    def ended(self, root: Path) -> str | None:
        """Why the job ended without the cell; None for one that lives, or never was."""
        if self.live or (self.job is None and self.sent is None):
            return None
        if self.job is not None and self.job.stuck:
            return f"job {self.job.id} would never start: {self.job.reason}; see docs/cluster.md"
        number = self.job.id if self.job else self._numbered(self.sent or "")
        state = self.job.state if self.job else scheduler.accounted(number)
        log = self.log
        lines = tail(log, LOG_LINES) if log else []
        if state == "FAILED" and any(MEMORY.search(line) for line in lines):
            state = "OUT_OF_MEMORY"  # without control groups SLURM tells it in the log only
        if log is None and state not in (None, "CANCELLED"):
            where = f" on {self.job.nodes}" if self.job and self.job.nodes else ""
            return (
                f"job {number} ended{where} without a log: that machine does not see {root}; set BENCH_STORE to a "
                "folder that all machines share"
            )
        other = f"its job ended ({state})" if state else "SLURM knows nothing of its job any more"
        told = ENDED.get(state or "", other)
        said = _last_line(lines)
        return f"{told} (job {number}{f': {said}' if said else ''})"


def submitted(store: Store, jobs: Iterable[Job]) -> dict[str, Place]:
    """By key, the last place where each cell was sent."""
    by_name: dict[str, dict[int, Job]] = {}
    for job in jobs:
        by_name.setdefault(job.name, {})[job.element] = job
    found: dict[str, Place] = {}
    for path in sorted((store.root / "submissions").glob("*/*.array.json")):  # folders are named by time
        array, folder = Array.read(path), path.parent
        known, sent = by_name.get(array.name, {}), _sent(folder, array.name)
        for i, keys in enumerate(array.elements):
            for key in keys:
                found[key] = Place(folder, array, i, sent, known.get(i))
    return found


def note_sent(folder: Path, name: str, number: str) -> None:
    """Note the job number of an array."""
    (folder / f"{name}.sent").write_text(number)


def _sent(folder: Path, name: str) -> str | None:
    path = folder / f"{name}.sent"
    return path.read_text() if path.is_file() else None


def ours(store: Store, jobs: Iterable[Job]) -> list[Job]:
    """The jobs that were submitted for this store."""
    folders = {path.name for path in (store.root / "submissions").glob("*")}
    return [job for job in jobs if job.name.startswith(f"{PREFIX}-") and job.name.split("-")[1] in folders]


def tail(log: Path, count: int) -> list[str]:
    """The last lines of a log."""
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]


def _last_line(lines: list[str]) -> str:
    """The last line that tells what happened; of a traceback, the exception."""
    told = [line.strip() for line in lines if line.strip() and not _is_noise(line)]
    return told[-1] if told else ""


def _is_noise(line: str) -> bool:
    return line.startswith(("srun:", "submitit ", "slurmstepd")) or " - INFO - " in line
