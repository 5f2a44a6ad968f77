"""Cells on the cores of this machine, a worker for each slot, through submitit."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from bench import numerics
from bench.cluster import Local
from bench.cores import cores
from bench.launch.bar import Bar
from bench.launch.submission import CELLS, by_environment, new_submission
from bench.launch.worker import Worker, fail, settled, starts
from bench.plan import Cell
from bench.registry import ROOT
from bench.say import say
from bench.store import Store

POLL_SECONDS = 0.2
REST = 50  # times what looking at all cells takes, a tenth of a core for a thousand of them every POLL_SECONDS
LONGEST_REST = 5.0  # seconds, should the store answer slowly for once
FOREVER_MINUTES = 60 * 24 * 365  # submitit's local executor stops a job after two minutes by default


def run_locally(cells: Sequence[Cell], plan: Callable[[], list[Cell]], cluster: Local, store: Store) -> None:
    """Compute cells; workers that died are replaced, as long as new ones start a cell."""
    with Bar(cells, store) as bar:
        for (kind, threads, device), group in by_environment(cells).items():
            numerics.pin(kind, threads)
            folder = new_submission(group, store)
            slots = min(len(group), cluster.workers or max(1, cores() // threads))
            gpus = 1 if device == "cuda" else 0
            begun, broken = -1, None
            while begun < starts(folder) and not all(settled(c, store) for c in group):
                begun = starts(folder)
                broken = _work(Worker(folder / CELLS, store.root, cluster.checkpoint_seconds), slots, gpus, bar)
            for cell in group:
                if not settled(cell, store):
                    fail(cell, store, broken or "no worker could start", str(folder))
        bar.refresh()


def _work(worker: Worker, slots: int, gpus: int, bar: Bar) -> str | None:
    """Run workers until all have ended; gives what broke one, if anything did."""
    import submitit

    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(ROOT) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, paths)])
    executor = submitit.LocalExecutor(worker.listed.parent)
    executor.update_parameters(timeout_min=FOREVER_MINUTES, gpus_per_node=gpus)
    work, jobs = worker.serving(os.getpid()), []

    def begin() -> None:
        for _ in range(slots):
            jobs.append(executor.submit(work))

    try:
        # in a thread, which no signal interrupts: a worker that was begun, but not told its work, waits a minute for it
        with ThreadPoolExecutor(1) as beginner:
            beginner.submit(begin).result()
        while not all([job.done() for job in jobs]):
            begun = time.monotonic()
            bar.refresh()
            time.sleep(max(POLL_SECONDS, min(LONGEST_REST, REST * (time.monotonic() - begun))))
    except KeyboardInterrupt:
        for job in jobs:
            job.cancel()
        say("interrupted; the same command goes on from the newest checkpoints")
        raise
    bar.refresh()
    # a cell's own error is in the store; what is left here broke the worker itself
    errors = [job.exception() for job in jobs if job.paths.result_pickle.exists()]
    return next((str(error).strip().rpartition("\n")[2] for error in errors if error), None)
