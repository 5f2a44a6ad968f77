"""How far a plan is: what is done, runs, waits, failed or is missing, and why."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from bench.launch import scheduler
from bench.launch.estimate import Estimates
from bench.launch.queue import Place, submitted
from bench.launch.scheduler import SlurmError
from bench.plan import Cell, Plan
from bench.progress import progress
from bench.store import Store

STATES = ("done", "running", "pending", "failed", "missing")


@dataclass(frozen=True)
class State:
    """A cell's: one of STATES, what else is to be told, and its log."""

    name: str
    detail: str = ""
    log: str = ""


def places(store: Store) -> dict[str, Place]:
    """Where cells were sent, by key; nothing where no submission went to a cluster."""
    if not any((store.root / "submissions").glob("*/*.array.json")):
        return {}
    return submitted(store, scheduler.jobs())


def state(cell: Cell, store: Store, sent: Mapping[str, Place]) -> State:
    """The state of one cell."""
    place = sent.get(cell.key)
    log = str(place.log) if place and place.log else ""
    if store.has(cell.key):
        return State("done", log=log)
    failure = store.failure(cell.key)
    if failure is not None:
        return State("failed", failure["error"], failure["log"] or log)
    holder = store.holds.holder(cell.key)
    ended = place.ended(store.root) if place else None
    if holder is not None and not (ended and place and place.job and holder.job == place.job.id):
        return State("running", f"{progress(store, cell.key):.0%} by {holder}", log)
    if place is not None and place.live and place.job is not None:
        return State("pending", f"job {place.job.id}, {place.job.state.lower()}, {place.job.reason}", log)
    return State("failed", ended, log) if ended else State("missing")


def status(plan: Plan, store: Store, workers: int) -> str:
    """The plan's progress as text: a line for each method, protocol and study, the time left, and each failure.

    Args:
        plan: what is asked for.
        store: what is there.
        workers: cells that run at once, where no job tells.
    """
    try:
        sent, silent = places(store), ""
    except SlurmError as error:
        sent, silent = {}, f"(what is queued is not known: {error})"
    known = {cell.key: state(cell, store, sent) for cell in plan.cells()}
    rows = [
        (f"{stage} {name}", Counter(known[key].name for key in {cell.key for cell in cells}))
        for stage, groups in plan.stages().items()
        for name, cells in groups.items()
    ]
    width = max(len(title) for title, _ in rows)
    lines = [" " * width + "".join(f"{name:>9}" for name in STATES)]
    lines += [f"{title:{width}}" + "".join(f"{counts[s] or '-':>9}" for s in STATES) for title, counts in rows]
    total = Counter(found.name for found in known.values())
    lines += [f"{'all':{width}}" + "".join(f"{total[s] or '-':>9}" for s in STATES), ""]
    lines.append(_time_left(plan, known, store, workers))
    told = {cell.key: cell.label for cell in plan.cells()}
    lines += [f"running  {key}  {told[key]}: {s.detail}" for key, s in known.items() if s.name == "running"]
    for key, found in known.items():
        if found.name == "failed":
            lines.append(
                f"FAILED   {key}  {told[key]}: {found.detail}" + (f"\n         {found.log}" if found.log else "")
            )
    return "\n".join(filter(None, [*lines, silent]))


def _time_left(plan: Plan, known: Mapping[str, State], store: Store, workers: int) -> str:
    left = [cell for cell in plan.cells() if known[cell.key].name != "done"]
    if not left:
        return "everything is computed"
    estimates = Estimates(store)
    seconds, unknown = estimates.total(left)
    begun = sum((estimates.seconds(c) or 0.0) * progress(store, c.key) for c in left if known[c.key].name == "running")
    running = sum(s.name == "running" for s in known.values()) or workers
    if unknown == len(left):
        return "nothing like the cells that are left was measured yet"
    text = f"about {duration((seconds - begun) / running)} left with {running} at once"
    return text + (f", beside {unknown} cells unlike any that was measured" if unknown else "")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
