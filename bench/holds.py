"""Who is at work on what: a file for each thing held, with a heartbeat.

No lock of the file system: on network file systems those hold on one machine only, or are lost with it. A hard link
to a name that is taken fails and a rename replaces, on all of them at once; that is all that is used here.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.say import say

BEAT_SECONDS = 5.0
STALE_SECONDS = 90.0  # network file systems show what was written up to 60 s late
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Holder:
    """A process that holds something.

    Args:
        token: drawn anew for each hold.
        host: its machine's name.
        place: where its process number counts: the machine since its last start, and the container.
        pid: its process number there.
        born: when the process was started, in the kernel's ticks, since process numbers are used again.
        job: of the cluster, or "".
        beat: rises while the process lives.
    """

    token: str
    host: str
    place: str
    pid: int
    born: str
    job: str
    beat: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f" (job {self.job})" if self.job else "")


class Hold:
    """Something that this process holds; `lost` once another process has taken it over."""

    def __init__(self, path: Path, holder: Holder):
        self.path, self.holder, self.lost = path, holder, False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            try:
                found = _read(self.path)
                if found is None or found.token != self.holder.token:
                    self.lost = True
                    return
                self.holder = replace(self.holder, beat=self.holder.beat + 1)
                beside = _write_beside(self.path, self.holder)
                beside.replace(self.path)
            except OSError:  # a full disk, a server that restarts: the next beat may be seen again
                continue

    def release(self) -> None:
        """Let go."""
        self._done.set()
        self._thread.join()
        found = _read(self.path)
        if found is not None and found.token == self.holder.token:
            self.path.unlink(missing_ok=True)


class Holds:
    """What is held, in one folder.

    Args:
        folder: where the files lie, seen by all processes that may want the same.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._seen: dict[str, tuple[Holder, float]] = {}  # by name, and when this beat was first seen here

    def holder(self, name: str) -> Holder | None:
        """Who holds it, or None where nobody does or its holder is dead."""
        found = _read(self._path(name))
        return None if found is None or self._dead(name, found) else found

    def take(self, name: str) -> Hold | None:
        """Hold it, unless a living process does: then None. What a dead one held is taken over."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path, mine = self._path(name), _myself()
        beside = _write_beside(path, mine)
        try:
            return Hold(path, mine) if self._place(beside, path, name) else None
        finally:
            beside.unlink(missing_ok=True)

    @contextmanager
    def held(self, name: str) -> Iterator[Hold]:
        """Hold it, once nobody else does; says whom it waits for."""
        asked, told = time.monotonic(), False
        while (hold := self.take(name)) is None:
            if not told and time.monotonic() - asked > PATIENCE_SECONDS:
                say(f"waiting for {self.holder(name)}, which holds {name}")
                told = True
            time.sleep(POLL_SECONDS)
        try:
            yield hold
        finally:
            hold.release()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _place(self, beside: Path, path: Path, name: str) -> bool:
        if _linked(beside, path):
            return True
        found = _read(path)
        if found is None:
            return _linked(beside, path)  # just released
        if not self._dead(name, found):
            return False
        # of all who find it dead one may replace it: who makes the link that carries the dead holder's token
        right = path.with_name(f".{path.name}.{found.token}")
        if not _linked(beside, right):
            winner = _read(right)
            if winner is not None and self._dead(right.name, winner):
                right.unlink(missing_ok=True)
            return False
        try:
            now = _read(path)
            if now is None or now.token != found.token:
                return False
            beside.replace(path)
            return True
        finally:
            right.unlink(missing_ok=True)

    def _dead(self, name: str, holder: Holder) -> bool:
        if holder.place == _place() and _born(holder.pid) != holder.born:
            return True
        seen = self._seen.get(name)
        if seen is None or seen[0] != holder:
            self._seen[name] = (holder, time.monotonic())  # by this clock: those of two machines may differ
            return False
        return time.monotonic() - seen[1] > STALE_SECONDS


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    return True


def _write_beside(path: Path, holder: Holder) -> Path:
    beside = path.with_name(f".{path.name}.{holder.token}.new")
    beside.write_text(json.dumps(asdict(holder)))
    return beside


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None


def _myself() -> Holder:
    pid = os.getpid()
    return Holder(uuid.uuid4().hex, socket.gethostname(), _place(), pid, _born(pid), job_number())


def job_number() -> str:
    """The SLURM job of this process, "12_3" for an element of an array; "" for none."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array else os.environ.get("SLURM_JOB_ID", "")


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return socket.gethostname()


def _born(pid: int) -> str:
    """When a process was started; "" where there is none, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except OSError:
        pass
    if Path("/proc/self").exists():
        return ""
    try:  # no /proc: whether it lives is all that can be known
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
