"""The commands that run cells and tell how far they are: submit, status, cancel, logs."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.cluster import Cluster
    from bench.plan import Cell, Plan
    from bench.settings import Params
    from bench.store import Store

CLUSTERS = ("debug", "local", "slurm")  # those of bench.cluster, which is slow to import
WATCH_SECONDS = 5.0
LOG_LINES = 40
Add = Callable[[str, Callable[[argparse.Namespace], None], str], argparse.ArgumentParser]


class UnknownSelectionError(BenchError, ValueError):
    """A name that the plan does not have."""


class SubmitOptionsError(BenchError, ValueError):
    """Options that do not go together."""


def add_commands(add: Add) -> None:
    """Add the commands to the command line."""
    submit = add("submit", _submit, "compute every missing cell of the whole plan: here, or as jobs of a cluster")
    submit.add_argument("--cluster", choices=CLUSTERS, help="instead of params.yaml's, or BENCH_CLUSTER's")
    submit.add_argument("--workers", type=_positive, help="cells side by side, for local (default: the cores)")
    submit.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="of methods, protocols and studies (with what they need)"
    )
    submit.add_argument("--dry-run", action="store_true", help="say what would be run, and how long it may take")
    submit.add_argument("--wait", action="store_true", help="until the jobs of the cluster have ended")
    status = add("status", _status, "what of the plan is done, runs, waits, failed or is missing; the time left")
    status.add_argument("--watch", action="store_true", help=f"again every {WATCH_SECONDS:.0f} s, until all is settled")
    add("cancel", _cancel, "end the jobs that were submitted; what they computed stays")
    logs = add("logs", _logs, "what the job of a cell printed")
    logs.add_argument("cell", help="its key, or the first letters of it")
    logs.add_argument("--lines", type=_positive, default=LOG_LINES, help=f"of its end (default: {LOG_LINES})")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"wants 1 or more, not {value}")
    return value


def _submit(options: argparse.Namespace) -> None:
    from bench.cli import planned
    from bench.cluster import Slurm
    from bench.external import import_needed
    from bench.launch import ensure, to_compute
    from bench.store import Store

    settings, made = planned()
    cluster, store = _cluster(options, settings), Store()
    cells = select(made, options.only)
    missing = sum(not store.has(cell.key) for cell in cells)
    print(*made.remarks, f"{len(cells)} cells, {missing} to compute", sep="\n", file=sys.stderr)
    if options.dry_run:
        print(preview(to_compute(cells, made.cells(), store), cluster, store))
        return
    import_needed(settings, cells, store)
    if not isinstance(cluster, Slurm) or options.wait:
        ensure(to_compute(cells, made.cells(), store), [], _waiting(cluster), store)
        return
    from bench.launch.slurm import COME_BACK, describe_queue, submit

    store.check()
    submit(to_compute(cells, made.cells(), store), cluster, store)
    print(f"{describe_queue(store)}; {COME_BACK.replace('the same command again', '`dvc repro`')}", file=sys.stderr)


def _waiting(cluster: "Cluster") -> "Cluster":
    from bench.cluster import Slurm

    return cluster.model_copy(update={"wait": True}) if isinstance(cluster, Slurm) else cluster


def _cluster(options: argparse.Namespace, settings: "Params") -> "Cluster":
    from bench.cluster import KINDS, Local

    cluster = settings.cluster
    if options.cluster and options.cluster != cluster.name:
        cluster = KINDS[options.cluster]()
    if options.workers and not isinstance(cluster, Local):
        raise SubmitOptionsError(
            f"--workers {options.workers} is for cluster local, not {cluster.name}; "
            "slurm is limited by cluster.max_jobs and cluster.parallelism (docs/cluster.md)"
        )
    return cluster.model_copy(update={"workers": options.workers}) if options.workers else cluster


def select(plan: "Plan", names: Sequence[str]) -> "list[Cell]":
    """The plan's cells of some methods, protocols and studies; all of them where no name is given.

    Raises:
        UnknownSelectionError: names the name and its nearest kin.
    """
    from bench.registry import nearest_hint

    if not names:
        return plan.cells()
    cells = plan.cells()
    studies = {name: {c.key for point in points for c in point.cells} for name, points in plan.study.items()}
    known = {*plan.pretrain, *plan.evaluate, *studies, *(cell.method for cell in cells)}
    for name in names:
        if name not in known:
            raise UnknownSelectionError(f"--only: no method, protocol or study '{name}'; {nearest_hint(name, known)}")
    keys = {key for name in names for key in studies.get(name, ())}
    return [cell for cell in cells if cell.key in keys or {cell.method, cell.name} & set(names)]


def preview(cells: "Sequence[Cell]", cluster: "Cluster", store: "Store") -> str:
    """The cells, and how they would be run: nothing is computed or queued."""
    from bench.cluster import Slurm
    from bench.launch.arrays import plan_arrays
    from bench.launch.estimate import Estimates
    from bench.launch.status import duration

    estimates = Estimates(store)

    def told(some: "Sequence[Cell]", each: int = 1, unit: str = "core") -> str:
        seconds, unknown = estimates.total(some)
        beside = f", beside {unknown} cells unlike any that was measured" if unknown else ""
        return f"{seconds * each / 3600:.2f} {unit}-hours{beside}"

    lines = []
    for cell in cells:
        seconds = estimates.seconds(cell)
        takes = "not measured yet" if seconds is None else f"about {duration(seconds)}"
        lines.append(f"{cell.key}  {cell.stage:10}{cell.label}: {takes}")
    if not isinstance(cluster, Slurm):
        return "\n".join([*lines, f"on cluster {cluster.name}: {told(cells)}"])
    by_key = {cell.key: cell for cell in cells}
    for array in plan_arrays(cells, cluster, "new", sys.maxsize, cluster.max_jobs):
        wanted = cluster.resources(array.stage)
        some = [by_key[key] for keys in array.elements for key in keys]
        _, threads, device = array.environment
        gpus = wanted.gpu_count(device)
        each = wanted.nodes * (gpus or (wanted.tasks or 1) * (wanted.cpus or threads))
        asks = {k: v for k, v in wanted.model_dump().items() if v not in (None, [], {})}
        takes = told(some, each, "GPU" if gpus else "core")
        lines += [
            f"{array.name}: {len(array.elements)} jobs, {len(some)} cells, {takes}",
            *([f"  element i after element i of {array.after}"] if array.after else []),
            "  " + ", ".join(f"{k} {v}" for k, v in asks.items()),
        ]
    return "\n".join(lines)


def _status(options: argparse.Namespace) -> None:
    from bench.cli import planned
    from bench.cores import cores
    from bench.launch.status import status
    from bench.store import Store

    settings, made = planned()
    store, cluster = Store(), settings.cluster
    workers = getattr(cluster, "workers", None) or getattr(cluster, "parallelism", None) or cores()
    while True:
        text = status(made, store, workers)
        if not options.watch:
            print(text)
            return
        print(f"\x1b[H\x1b[2J{text}" if sys.stdout.isatty() else text + "\n", flush=True)
        if all(store.has(cell.key) or store.failure(cell.key) for cell in made.cells()):
            return
        time.sleep(WATCH_SECONDS)


def _cancel(options: argparse.Namespace) -> None:
    from bench.launch import scheduler
    from bench.launch.queue import ours
    from bench.store import Store

    scheduler.demand_slurm()
    live = [job for job in ours(Store(), scheduler.jobs()) if job.live or job.stuck]
    scheduler.cancel([job.id for job in live])
    print(f"cancelled {len(live)} jobs" if live else "no job of this store is queued")


def _logs(options: argparse.Namespace) -> None:
    from pathlib import Path

    from bench.cli import planned
    from bench.launch.queue import tail
    from bench.launch.status import places, state
    from bench.plan import find
    from bench.store import Store

    cell, store = find(planned()[1], options.cell), Store()
    found = state(cell, store, places(store))
    print(f"{cell.key} {cell.label}: {found.name}{f', {found.detail}' if found.detail else ''}")
    if found.log and Path(found.log).is_file():
        print(f"{found.log}:")
        print("\n".join(tail(Path(found.log), options.lines)))
