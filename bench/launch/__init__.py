"""Running cells: in this process (debug), on the cores of this machine (local) or as jobs of a cluster (slurm)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.adopt import adopt
from bench.cluster import Cluster
from bench.errors import BenchError
from bench.launch.debug import run_here
from bench.launch.local import run_locally
from bench.launch.slurm import run_on_slurm
from bench.plan import Cell
from bench.say import say
from bench.store import Store

# what is wanted, the whole plan's missing cells for a cluster that queues them, how, and where to
Runner = Callable[[Sequence[Cell], Callable[[], list[Cell]], Any, Store], None]
RUNNERS: dict[str, Runner] = {"debug": run_here, "local": run_locally, "slurm": run_on_slurm}


class CellsFailedError(BenchError, RuntimeError):
    """Some cells could not be computed; all others were. Names each with its reason and log."""

    status = 3


def ensure(cells: Sequence[Cell], known: Iterable[Cell], cluster: Cluster, store: Store) -> None:
    """Have every cell computed that is not in the store yet.

    Args:
        cells: what is wanted.
        known: more cells of the plan: those that `cells` need are found there, and a cluster that queues jobs is
            given all that are missing of them at once.
        cluster: where to run them.
        store: where they go.

    Raises:
        CellsFailedError: after all others are done, names those that failed.
        JobsQueuedError: they are queued, and `cluster.wait` says not to wait for them.
    """
    store.check()
    absent = [cell for cell in cells if not _intact(cell, store)]
    if not absent:
        return
    known = list(known)
    missing = to_compute(absent, known, store)
    if missing:
        RUNNERS[cluster.name](missing, lambda: to_compute([*cells, *known], [], store), cluster, store)
    failed = [cell for cell in missing if not store.has(cell.key)]
    if failed:
        raise CellsFailedError(_describe(failed, store))


def to_compute(cells: Sequence[Cell], known: Iterable[Cell], store: Store) -> list[Cell]:
    """What of the cells, and of the encoders they need, is neither in the store nor in DVC's cache."""
    missing = _missing(cells, {c.key: c for c in [*known, *cells]}, store)
    adopt([cell.key for cell in missing], store)
    return [cell for cell in missing if not store.has(cell.key)]


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
        say(f"{cell.label}: {damage} and computed again")
    return store.has(cell.key)


def _describe(failed: Sequence[Cell], store: Store) -> str:
    lines = [f"{len(failed)} cells could not be computed; all others are done:"]
    for cell in failed:
        failure = store.failure(cell.key) or {"error": "no reason noted", "log": ""}
        log = f" (log: {failure['log']})" if failure["log"] else ""
        lines.append(f"  {cell.key} {cell.label}: {failure['error']}{log}")
    return "\n".join(lines)
