"""A worker: takes the next cell of its list that is ready and that nobody holds, until each is done or failed.

So no worker waits for another, a dead one costs only its own cell, and a second submission joins the first.
"""

import os
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.cluster import Slurm
from bench.errors import BenchError, StoppedError
from bench.files import read_json, write_json, write_text
from bench.holds import Hold, job_number
from bench.launch import scheduler
from bench.launch.peak import peak_told
from bench.launch.scheduler import SlurmError
from bench.launch.together import Turns, processes, rank, shared
from bench.plan import Cell
from bench.say import say
from bench.stop import Stop
from bench.store import Store

POLL_SECONDS = 0.2
DEATHS = 2  # of a cell in one submission, without a checkpoint in between: killed by its own doing, most likely
STOPS = 5  # by signals, without a checkpoint in between: it will never fit into the time it is given
GRACE = 0.6  # of the time between a signal and the kill: when a step takes longer, its work is given up
KILLED_SECONDS = 600.0  # at most, from SIGTERM to the kill
STOPPED_STATUS = 75  # sysexits.h: try again later


@dataclass(frozen=True)
class Worker:
    """What a process needs to know to compute a list of cells.

    Args:
        listed: the file that names the submission's cells.
        root: of the store.
        checkpoint_seconds: how often training saves its state.
        keys: of the cells that are this worker's; None for all.
        submitter: the process without which the worker leaves; cells go on from their checkpoints.
        signal_seconds: on a cluster, the time between its signal and the kill.
        requeue: whether the job is queued again after that signal.
        late_seconds: how long what another machine wrote may take to be seen.
    """

    listed: Path
    root: Path
    checkpoint_seconds: float
    keys: tuple[str, ...] | None = None
    submitter: int | None = None
    signal_seconds: float | None = None
    requeue: bool = False
    late_seconds: float = 0.0

    def __call__(self) -> None:
        """Compute the cells."""
        if self.submitter is not None:
            threading.Thread(target=_leave_with, args=(self.submitter,), daemon=True).start()
        cells = [Cell(**cell) for cell in read_json(self.listed)]
        mine = [c for c in cells if self.keys is None or c.key in self.keys]
        work = _Work(self, mine, Store(self.root))
        if self.signal_seconds is not None:
            work.stop.listen(self.signal_seconds * GRACE, work.leave)
        try:
            work.run() if rank() == 0 else work.follow()
            if self.signal_seconds is not None:
                work.stop.listen_no_more()
        except StoppedError as stopped:
            say(str(stopped))
            work.leave()

    def serving(self, submitter: int) -> "Worker":
        """The same, for as long as a process lives."""
        return replace(self, submitter=submitter)

    def serving_keys(self, keys: tuple[str, ...], cluster: Slurm, signal_seconds: float) -> "Worker":
        """The same, for some of the cells, in a job that is told so many seconds before it is killed."""
        return replace(
            self, keys=keys, signal_seconds=signal_seconds, requeue=cluster.requeue, late_seconds=cluster.late_seconds
        )

    def checkpoint(self) -> object:
        """For a signal that comes before this worker listens: submitit then queues the same work again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass
class _Attempts:
    """How often a cell was begun in a submission, and how that ended."""

    path: Path
    starts: int = 0
    deaths: int = 0
    stops: int = 0
    step: int = -1
    ended: bool = True  # the last start was not cut off

    @classmethod
    def read(cls, path: Path) -> "_Attempts":
        return cls(path, **read_json(path)) if path.is_file() else cls(path)

    def write(self) -> None:
        write_json(self.path, {k: v for k, v in vars(self).items() if k != "path"})

    def begin(self, step: int) -> str | None:
        """Note a start at a step; gives why it may not start, if so."""
        if step > self.step:
            self.deaths = self.stops = 0
        elif not self.ended:
            self.deaths += 1
        if self.deaths >= DEATHS:
            return f"its process died {DEATHS} times: killed, or out of memory"
        if self.stops >= STOPS:
            return f"it was stopped {STOPS} times without a checkpoint in between; raise cluster.time"
        self.starts, self.step, self.ended = self.starts + 1, step, False
        self.write()
        return None

    def stop(self) -> None:
        """Note that the start was stopped, not cut off."""
        self.ended, self.stops = True, self.stops + 1
        self.write()


def starts(folder: Path) -> int:
    """How often workers of a submission have begun a cell."""
    return sum(_Attempts.read(path).starts for path in folder.glob("*.starts"))


class _Work:
    def __init__(self, worker: Worker, cells: Sequence[Cell], store: Store):
        self.worker, self.cells, self.store = worker, cells, store
        self.ours = {cell.key for cell in cells}
        self.folder = worker.listed.parent
        self.since = time.monotonic()
        self.stop, self.turns = Stop(), Turns(self.folder)
        self.told: dict[str, str] = {}  # who holds what, as it was said
        self.hold: Hold | None = None
        self.attempts: _Attempts | None = None
        self.stop.lost = lambda: self.hold is not None and self.hold.lost

    def run(self) -> None:
        while waiting := [c for c in self.cells if not settled(c, self.store)]:
            if self.stop.signal is not None:
                raise StoppedError("left between two cells")
            # what is short comes last, or a long cell would keep one worker busy when the others have nothing left
            ready = sorted((c for c in waiting if self.ready(c)), key=lambda c: c.stage == "evaluate")
            if not any(self.take(cell) for cell in ready):
                self.tell_holders(ready)
                time.sleep(POLL_SECONDS)  # others hold all that is ready
        self.turns.say(None)

    def follow(self) -> None:
        """Train with rank 0 whatever it takes; it alone notes what becomes of it."""
        by_key = {cell.key: cell for cell in self.cells}
        for key in self.turns.follow():
            try:
                self.together(by_key[key])
            except StoppedError:
                raise
            except Exception:  # rank 0 loses this process, and notes it
                say(f"{by_key[key].label}, process {rank()} of {processes()}:\n{traceback.format_exc()}")

    def leave(self) -> None:
        """End this process; queue its job again, where that is wanted."""
        if self.attempts is not None:
            self.attempts.stop()
        if self.hold is not None:
            self.hold.release()
        if self.stop.signal == signal.SIGTERM or rank() > 0:
            # cancelled, or preempted: then the cluster queues the job again, unless it finds it already ended; and
            # rank 0, which may still be saving, ends with the first process that does
            time.sleep(KILLED_SECONDS)
        elif self.worker.requeue:
            try:
                scheduler.requeue(job_number())
                say("queued again")
            except SlurmError as refused:
                say(f"not queued again: {refused}; `python -m bench submit` goes on")
        os._exit(STOPPED_STATUS)

    def tell_holders(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            holder = self.store.holds.holder(cell.key)
            if holder is not None and self.told.get(cell.key) != holder.token:
                self.told[cell.key] = holder.token
                say(f"waiting for {cell.label}, which {holder} computes")

    def ready(self, cell: Cell) -> bool:
        if cell.needs is None or self.store.has(cell.needs):
            return True
        if self.store.failure(cell.needs) is not None:
            fail(cell, self.store, "the encoder it needs failed", "")
        elif cell.needs not in self.ours and time.monotonic() - self.since > self.worker.late_seconds:
            fail(cell, self.store, f"the encoder it needs, {cell.needs}, is neither computed nor planned", "")
        return False

    def take(self, cell: Cell) -> bool:
        """Compute a cell unless another process holds it, or has just finished it."""
        self.hold = self.store.holds.take(cell.key)
        if self.hold is None:
            return False
        try:
            if settled(cell, self.store):
                return False
            self.compute(cell)
        except StoppedError:
            if self.stop.signal is not None:
                raise
            say(f"{cell.label}: taken over by {self.store.holds.holder(cell.key)}")
        finally:
            self.hold.release()
        self.hold = self.attempts = None
        return True

    def compute(self, cell: Cell) -> None:
        self.attempts = _Attempts.read(self.folder / f"{cell.key}.starts")
        refused = self.attempts.begin(self.store.step(cell.key))
        if refused:
            fail(cell, self.store, refused, str(self.folder))
            return
        try:
            if shared(cell):
                self.turns.say(cell.key)
            self.together(cell)
        except StoppedError:
            raise
        except Exception as error:  # one failed cell never stops the others
            text = f"{cell.label}, submission {self.folder}\n{traceback.format_exc()}"
            say(text)
            self.note(cell, error, text)

    def together(self, cell: Cell) -> None:
        from bench.compute import compute

        with self.turns.joined(cell) as world, peak_told(cell):
            seconds = self.worker.checkpoint_seconds
            compute(cell, self.store, checkpoint_seconds=seconds, stop=self.stop, world=world)

    def note(self, cell: Cell, error: Exception, text: str) -> None:
        log = self.store.root / "failed" / f"{cell.key}.log"
        try:
            write_text(log, text)
            fail(cell, self.store, f"{type(error).__name__}: {error}", str(log))
        except OSError as unwritten:  # the disk is full
            raise BenchError(f"{cell.label} failed, which could not be noted ({unwritten.strerror})") from error


def settled(cell: Cell, store: Store) -> bool:
    """Whether a cell is done or failed."""
    return store.has(cell.key) or store.failure(cell.key) is not None


def fail(cell: Cell, store: Store, error: str, log: str) -> None:
    """Note why a cell could not be computed, for people and for what waits for it."""
    store.fail(cell.key, {"label": cell.label, "error": error, "log": log, "submission": submission_id()})


def just_failed(cell: Cell, store: Store) -> bool:
    """Whether a cell failed under the command that is running."""
    return (store.failure(cell.key) or {}).get("submission") == submission_id()


def submission_id() -> str:
    """Names the command that a user gave: what failed under it is not tried again by its later parts."""
    return os.environ.setdefault("BENCH_SUBMISSION", f"{time.time_ns():x}")


def _leave_with(submitter: int) -> None:
    while True:
        time.sleep(1)
        try:
            os.kill(submitter, 0)
        except ProcessLookupError:
            os._exit(1)  # every write is whole by a rename: nothing is left half done
