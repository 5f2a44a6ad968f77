"""Cells as jobs of a SLURM cluster, through submitit.

What is queued is known by its name in the queue, and what is done by the store: a submission that is cut off, repeated
or made twice at once leaves nothing to mend.
"""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.cluster import Slurm
from bench.errors import BenchError
from bench.launch import scheduler
from bench.launch.arrays import Array, plan_arrays
from bench.launch.bar import Bar
from bench.launch.queue import Place, note_sent, ours, submitted
from bench.launch.scheduler import SlurmError
from bench.launch.submission import CELLS, new_submission
from bench.launch.together import shared
from bench.launch.worker import Worker, fail, just_failed, settled, submission_id
from bench.plan import Cell
from bench.registry import ROOT
from bench.say import say
from bench.store import Store

STORE_SECONDS = 1.0  # between two looks at the store
QUEUE_SECONDS = 5.0  # between two looks at the queue
SIGNAL_SECONDS = 120  # before the time limit, at most; a quarter of a short one
REQUEUES = 1_000_000  # a job that makes progress may be queued again as often as it takes
COME_BACK = "`python -m bench status` tells how far they are; the same command again collects what is done"


class JobsQueuedError(BenchError):
    """The cells are queued, and nobody waits for them."""

    status = 4


def run_on_slurm(cells: Sequence[Cell], plan: Callable[[], list[Cell]], cluster: Slurm, store: Store) -> None:
    """Submit what is missing of the whole plan and wait for the cells.

    Raises:
        JobsQueuedError: the cluster's `wait` is false.
        SlurmError: no SLURM here, or it refuses.
    """
    submit(plan(), cluster, store)
    if not cluster.wait:
        raise JobsQueuedError(f"{describe_queue(store)}; {COME_BACK}")
    wait(cells, cluster, store)


def submit(cells: Sequence[Cell], cluster: Slurm, store: Store) -> list[Array]:
    """Queue the cells that are neither computed nor queued; gives the new arrays."""
    scheduler.demand_slurm()
    for stage in ("pretrain", "evaluate"):
        scheduler.demand_partition(cluster.resources(stage).partition)
    _demand_divisible(cells, cluster)
    with store.holds.held("submit"):  # two submissions at once would queue each cell twice
        jobs = scheduler.jobs()
        places, mine = submitted(store, jobs), ours(store, jobs)
        # of a submission that was cut off the work may never have been written
        cut_off = {place.job.id for place in places.values() if place.job and place.job.live and place.sent is None}
        scheduler.cancel(sorted(cut_off | {job.id for job in mine if job.stuck}))
        queued = {key for key, place in places.items() if place.live and place.sent is not None}
        todo = [cell for cell in cells if cell.key not in queued and not just_failed(cell, store)]
        if not todo:
            return []
        folder = new_submission(todo, store)
        room = None if cluster.max_jobs is None else cluster.max_jobs - sum(job.live for job in mine)
        return _send_all(todo, cluster, store, folder, room)


def _demand_divisible(cells: Sequence[Cell], cluster: Slurm) -> None:
    wanted = cluster.resources("pretrain")
    for cell in filter(shared, cells):
        count = wanted.nodes * wanted.processes(cell.config["device"])
        shards = cell.config["training"]["shards"]
        if shards % count:
            raise SlurmError(
                f"cluster: a job has {count} processes, which cannot share the {shards} shards of {cell.label} evenly; "
                f"set shards (defaults, training) to a multiple of {count}, or ask for fewer gpus, nodes or tasks"
            )


def _send_all(cells: list[Cell], cluster: Slurm, store: Store, folder: Path, room: int | None) -> list[Array]:
    """Queue cells; where the cluster takes fewer jobs from one user, cells share jobs until it takes them."""
    sent: list[Array] = []
    largest, rounds = scheduler.largest_array(), 0
    while cells:
        arrays = plan_arrays(cells, cluster, f"{folder.name}-{rounds}", largest, room)
        numbers: dict[str, str] = {}
        for array in arrays:
            array.write(folder)
            try:
                numbers[array.name] = _send(array, numbers.get(array.after or ""), cluster, store, folder)
            except SlurmError as error:
                array.forget(folder)
                count = sum(len(a.elements) for a in arrays)
                if "limit" not in str(error).lower() or count == 1:
                    raise
                room = max(1, count // 2)
                break
            note_sent(folder, array.name, numbers[array.name])
            sent.append(array)
        queued = {key for array in sent for keys in array.elements for key in keys}
        cells, rounds = [cell for cell in cells if cell.key not in queued], rounds + 1
    return sent


def wait(cells: Sequence[Cell], cluster: Slurm, store: Store) -> None:
    """Wait until each cell is done, or failed, or no job is left that would compute it."""
    looked = -QUEUE_SECONDS
    gone: dict[str, Gone] = {}
    try:
        with Bar(cells, store) as bar:
            while waiting := [cell for cell in cells if not settled(cell, store)]:
                bar.refresh()
                if time.monotonic() - looked >= QUEUE_SECONDS:
                    gone = _gone(waiting, gone, store)
                    looked = time.monotonic()
                for cell in (cell for cell in waiting if cell.key in gone):
                    since, why, log = gone[cell.key]
                    # what a machine wrote just before its job ended may be seen late
                    if looked - since > cluster.late_seconds and not settled(cell, store):
                        fail(cell, store, why, log)
                time.sleep(STORE_SECONDS)
            bar.refresh()
    except KeyboardInterrupt:
        say(f"the jobs go on; {COME_BACK}; `python -m bench cancel` ends them")
        raise


class Gone(NamedTuple):
    """A cell without a job: since when that is known, why, and the job's log."""

    since: float
    why: str
    log: str


def _gone(cells: Sequence[Cell], before: dict[str, Gone], store: Store) -> dict[str, Gone]:
    """The cells that no job computes any more."""
    try:
        places = submitted(store, scheduler.jobs())
    except SlurmError as error:  # the controller restarts: the jobs do not mind
        say(f"{error}; asking again")
        return before
    found = {}
    for cell in cells:
        place = places.get(cell.key)
        if (place and place.live) or store.holds.holder(cell.key) is not None:
            continue
        # the first reason stays: what is ended here would else be told as cancelled
        found[cell.key] = before.get(cell.key) or _lost(place, store)
        if place and place.job and place.job.stuck:
            scheduler.cancel([place.job.id])
    return found


def _lost(place: Place | None, store: Store) -> Gone:
    if place is None:
        return Gone(time.monotonic(), "no job was submitted for it", "")
    return Gone(time.monotonic(), place.ended(store.root) or "its job is not known", str(place.log or ""))


def describe_queue(store: Store) -> str:
    """The jobs of this store that run or wait."""
    live = [job for job in ours(store, scheduler.jobs()) if job.live]
    arrays = sorted({job.id.partition("_")[0] for job in live}, key=int)
    running = sum(job.state == "RUNNING" for job in live)
    return f"{len(live)} jobs are queued ({running} running), as {', '.join(arrays) or 'none'}"


def _send(array: Array, after: str | None, cluster: Slurm, store: Store, folder: Path) -> str:
    """Hand an array to sbatch; gives its job number."""
    import submitit

    kind, threads, device = array.environment
    python = cluster.python or shlex.quote(sys.executable)
    variables = {"PYTHONPATH": str(ROOT), "BENCH_SUBMISSION": submission_id(), "PYTHONUNBUFFERED": "1"}
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    executor = submitit.SlurmExecutor(
        folder, max_num_timeout=REQUEUES, python=f"env {settings} {python} -m bench.launch.enter {kind} {threads}"
    )
    wanted = cluster.resources(array.stage)
    seconds = min(SIGNAL_SECONDS, wanted.time * 60 // 4)
    more = {"requeue" if cluster.requeue else "no-requeue": True, "kill-on-invalid-dep": "yes"}
    given = {
        "partition": wanted.partition,
        "account": wanted.account,
        "qos": wanted.qos,
        "gres": wanted.gres,
        "gpus_per_node": None if wanted.gpus is None and wanted.gres else wanted.gpu_count(device) or None,
        "mem": None if wanted.memory is None else f"{round(wanted.memory * 1024)}M",
        "setup": wanted.setup or None,
        "dependency": None if after is None else f"aftercorr:{after}",
    }
    executor.update_parameters(
        job_name=array.name,
        time=wanted.time,
        nodes=wanted.nodes,
        ntasks_per_node=wanted.processes(device),
        cpus_per_task=wanted.cpus or threads,
        signal_delay_s=seconds,
        stderr_to_stdout=True,
        srun_args=["--kill-on-bad-exit=1"],
        array_parallelism=cluster.parallelism or len(array.elements),
        additional_parameters={**more, **wanted.extra},
        **{name: value for name, value in given.items() if value is not None},
    )
    worker = Worker(folder / CELLS, store.root, cluster.checkpoint_seconds)
    try:
        with executor.batch():
            jobs = [executor.submit(worker.serving_keys(keys, cluster, seconds)) for keys in array.elements]
    except submitit.core.utils.FailedJobError as error:
        raise SlurmError(f"sbatch refuses {len(array.elements)} jobs: {_last(str(error))}") from None
    return str(jobs[0].job_id).partition("_")[0]


def _last(text: str) -> str:
    told = [line.strip() for line in text.splitlines() if "sbatch" in line and "error" in line]
    return told[-1] if told else text.strip().rpartition("\n")[2]
