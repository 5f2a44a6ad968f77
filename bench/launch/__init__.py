"""Running cells: in this process (debug) or on the cores of this machine (local), through submitit.

Every worker goes through the same list and takes the next cell that is ready and that nobody holds, so
no worker waits for another, a dead one costs only its own cell, and a second submission joins the first.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from bench import numerics
from bench.adopt import adopt
from bench.errors import BenchError
from bench.files import read_json, write_json, write_text
from bench.plan import Cell
from bench.progress import progress
from bench.registry import ROOT
from bench.settings import Cluster
from bench.store import Store

POLL_SECONDS = 0.2
FOREVER_MINUTES = 60 * 24 * 365  # submitit's local executor stops a job after two minutes by default
STARTS = 2  # of one cell in one submission: a second worker goes on where the first one died


class MixedNumericsError(BenchError):
    """Cells that cannot be computed in one process."""


class CellsFailedError(BenchError, RuntimeError):
    """Some cells could not be computed; all others were. Names each with its reason and log."""

    status = 3


def ensure(cells: Sequence[Cell], known: Iterable[Cell], cluster: Cluster, store: Store) -> None:
    """Have every cell computed that is not in the store yet.

    Args:
        cells: what is wanted.
        known: more cells of the plan, where those that `cells` need are found.
        cluster: where to run them.
        store: where they go.

    Raises:
        CellsFailedError: after all others are done, names those that failed.
    """
    store.check()
    missing = _missing(cells, {c.key: c for c in [*known, *cells]}, store)
    adopt([cell.key for cell in missing], store)
    missing = [cell for cell in missing if not store.has(cell.key)]
    if missing:
        _run(missing, cluster, store)
    failed = [cell for cell in missing if not store.has(cell.key)]
    if failed:
        raise CellsFailedError(_describe(failed, store))


def _missing(cells: Sequence[Cell], known: Mapping[str, Cell], store: Store) -> list[Cell]:
    wanted: dict[str, Cell] = {}
    for cell in cells:
        if _intact(cell, store):
            continue
        needed = known.get(cell.needs or "")  # None where it is imported, not planned
        if needed is not None and not _intact(needed, store):
            wanted[needed.key] = needed
        wanted[cell.key] = cell
    return list(wanted.values())


def _intact(cell: Cell, store: Store) -> bool:
    damage = store.set_aside_if_damaged(cell.key)
    if damage:
        _say(f"{cell.label}: {damage} and computed again")
    return store.has(cell.key)


def _run(cells: list[Cell], cluster: Cluster, store: Store) -> None:
    """Compute cells, grouped by what must be set before torch is imported.

    An evaluation and the encoder it needs are always of one group.
    """

    def environment(cell: Cell) -> tuple[str, int, str]:
        return cell.config["numerics"], cell.config["threads"], cell.config["device"]

    groups = {k: list(g) for k, g in groupby(sorted(cells, key=environment), environment)}
    if cluster.name == "debug" and len(groups) > 1:
        raise MixedNumericsError(
            "cells of several numerics, threads or devices cannot share the one process of cluster "
            f"'debug' ({sorted(groups)}); use cluster: local"
        )
    for cell in cells:
        if (store.failure(cell.key) or {}).get("submission") != _submission_id():
            store.clear_failure(cell.key)
    with _Bar(cells, store) as bar:
        for (kind, threads, device), group in groups.items():
            numerics.pin(kind, threads)
            submission = _Submission(group, threads, device, cluster, store)
            starts, broken = -1, None
            # workers that died are replaced, as long as new ones start a cell
            while starts < submission.starts() and not all(_settled(c, store) for c in group):
                starts = submission.starts()
                broken = _CLUSTERS[cluster.name](submission, bar)
            for cell in group:
                if not _settled(cell, store):
                    _fail(cell, store, broken or "no worker could start", str(submission.folder))
        bar.refresh()


def _submission_id() -> str:
    """Names the command that a user gave: what failed under it is not tried again by its later parts."""
    return os.environ.setdefault("BENCH_SUBMISSION", f"{time.time_ns():x}")


def _settled(cell: Cell, store: Store) -> bool:
    return store.has(cell.key) or store.failure(cell.key) is not None


class _Submission:
    """A list of cells written where workers find it, and what workers need to know."""

    def __init__(self, cells: list[Cell], threads: int, device: str, cluster: Cluster, store: Store):
        self.folder = store.root / "submissions" / f"{time.time_ns():x}"
        self.slots = min(len(cells), cluster.workers or max(1, cores() // threads))
        self.device = device
        listed = self.folder / "cells.json"
        write_json(listed, [asdict(cell) for cell in cells])
        self.arguments = (listed, store.root, cluster.checkpoint_seconds)

    def starts(self) -> int:
        """How often a worker has begun a cell."""
        return sum(file.stat().st_size for file in self.folder.glob("*.starts"))


def _debug(submission: _Submission, bar: "_Bar") -> str | None:
    """In this process, one cell after the other."""
    work(*submission.arguments)
    bar.refresh()
    return None


def _local(submission: _Submission, bar: "_Bar") -> str | None:
    """On the cores of this machine, a worker for each slot; gives what broke a worker, if anything did."""
    import submitit

    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(ROOT) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, paths)])
    executor = submitit.LocalExecutor(submission.folder)
    gpus = 1 if submission.device == "cuda" else 0
    executor.update_parameters(timeout_min=FOREVER_MINUTES, gpus_per_node=gpus)
    jobs = [executor.submit(work, *submission.arguments, os.getpid()) for _ in range(submission.slots)]
    try:
        while not all([job.done() for job in jobs]):
            bar.refresh()
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        for job in jobs:
            job.cancel()
        _say("interrupted; the same command goes on from the newest checkpoints")
        raise
    bar.refresh()
    # a cell's own error is in the store; what is left here broke the worker itself
    errors = [job.exception() for job in jobs if job.paths.result_pickle.exists()]
    return next((str(error).strip().rpartition("\n")[2] for error in errors if error), None)


_CLUSTERS = {"debug": _debug, "local": _local}


def work(listed: Path, root: Path, checkpoint_seconds: float, submitter: int | None = None) -> None:
    """Compute a list of cells, until each is done or failed. Runs in a worker.

    Args:
        listed: the file that names the cells.
        root: of the store.
        checkpoint_seconds: how often training saves its state.
        submitter: the process without which the worker leaves; cells go on from their checkpoints.
    """
    if submitter is not None:
        threading.Thread(target=_leave_with, args=(submitter,), daemon=True).start()
    store = Store(root)
    cells = [Cell(**cell) for cell in read_json(listed)]
    ours = {cell.key for cell in cells}
    while waiting := [c for c in cells if not _settled(c, store)]:
        # what is short comes last, or a long cell would keep one worker busy when the others have nothing left
        ready = sorted((c for c in waiting if _ready(c, ours, store)), key=lambda c: c.stage == "evaluate")
        if not any(_take(cell, store, listed.parent, checkpoint_seconds) for cell in ready):
            time.sleep(POLL_SECONDS)  # others hold all that is ready


def _leave_with(submitter: int) -> None:
    while True:
        time.sleep(1)
        try:
            os.kill(submitter, 0)
        except ProcessLookupError:
            os._exit(1)  # every write is whole by a rename: nothing is left half done


def _ready(cell: Cell, ours: set[str], store: Store) -> bool:
    if cell.needs is None or store.has(cell.needs):
        return True
    if store.failure(cell.needs) is not None:
        _fail(cell, store, "the encoder it needs failed", "")
    elif cell.needs not in ours:
        _fail(cell, store, f"the encoder it needs, {cell.needs}, is neither computed nor planned", "")
    return False


def _fail(cell: Cell, store: Store, error: str, log: str) -> None:
    failure = {"label": cell.label, "error": error, "log": log, "submission": _submission_id()}
    store.fail(cell.key, failure)


def _take(cell: Cell, store: Store, logs: Path, checkpoint_seconds: float) -> bool:
    """Compute a cell unless another process holds it, or has just finished it."""
    with store.lock(cell.key, wait=False) as held:
        if not held or _settled(cell, store):
            return False
        if not _may_start(logs / f"{cell.key}.starts"):
            _fail(cell, store, f"its process died {STARTS} times: killed, or out of memory", str(logs))
            return True
        try:
            from bench.compute import compute

            compute(cell, store, checkpoint_seconds=checkpoint_seconds)
        except Exception as error:  # one failed cell never stops the others
            _say(f"{cell.label}:\n{traceback.format_exc()}")
            log = store.root / "failed" / f"{cell.key}.log"
            write_text(log, f"{cell.label}, submission {logs}\n{traceback.format_exc()}")
            _fail(cell, store, f"{type(error).__name__}: {error}", str(log))
        return True


def _may_start(count: Path) -> bool:
    """Count a start of a cell; False once it has been started as often as it may be."""
    if count.is_file() and count.stat().st_size >= STARTS:
        return False
    with count.open("ab") as file:
        file.write(b".")
    return True


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _describe(failed: Sequence[Cell], store: Store) -> str:
    lines = [f"{len(failed)} cells could not be computed; all others are done:"]
    for cell in failed:
        failure = store.failure(cell.key) or {"error": "no reason noted", "log": ""}
        log = f" (log: {failure['log']})" if failure["log"] else ""
        lines.append(f"  {cell.key} {cell.label}: {failure['error']}{log}")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Bar:
    """One progress bar over cells, the running ones counted by their share of steps.

    Where standard error is no terminal, a line for each finished cell instead.
    """

    def __init__(self, cells: Sequence[Cell], store: Store):
        self.cells, self.store = list(cells), store
        self.done: set[str] = set()
        self.bar = tqdm(
            total=len(cells),
            unit="cell",
            disable=None,
            bar_format="{l_bar}{bar}| {n:.1f}/{total} cells [{elapsed}<{remaining}]{postfix}",
        )

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def refresh(self) -> None:
        """Show what is done now."""
        for cell in self.cells:
            failed = self.store.failure(cell.key)
            if cell.key in self.done or not (self.store.has(cell.key) or failed):
                continue
            self.done.add(cell.key)
            if self.bar.disable or failed:
                outcome = f"FAILED, {failed['error']}" if failed else "done"
                tqdm.write(f"[{len(self.done)}/{len(self.cells)}] {cell.label}: {outcome}", sys.stderr)
        if not self.bar.disable:
            shares = (progress(self.store, c.key) for c in self.cells if c.key not in self.done)
            self.bar.n = len(self.done) + sum(shares)
            self.bar.refresh()
