"""Things timed in turn in one process: a busy machine slows all of them alike, and their ratio stays."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from bench.say import say

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Spent:
    """Seconds on the wall and of CPU time (user and system, child processes too)."""

    wall: float
    cpu: float

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.wall - other.wall, self.cpu - other.cpu)

    def __truediv__(self, count: float) -> "Spent":
        return Spent(self.wall / count, self.cpu / count)


def now() -> Spent:
    """The clocks: differences of two of these mean something."""
    children = sum(_cpu_of(child.pid) for child in multiprocessing.active_children())
    return Spent(time.perf_counter(), time.process_time() + children)


def _cpu_of(pid: int | None) -> float:
    """CPU seconds of a running process, all its threads (man 5 proc: fields 14 and 15 of stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended, or this is no Linux
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICK


class Clock:
    """Marks the time after each step of a loop, of which the first and the last do not count.

    Workers run ahead of the first steps, by two batches each, and have nothing to do in the last ones.
    """

    def __init__(self, skip: int = 4):
        self.skip, self.marks = skip, list[Spent]()

    def __call__(self, *_: object) -> None:
        self.marks.append(now())

    @property
    def per_step(self) -> Spent:
        """The mean over the steps that count.

        Raises:
            ValueError: none is left.
        """
        counted = self.marks[self.skip - 1 : len(self.marks) - self.skip]
        if len(counted) < 2:
            least = 2 * self.skip + 1
            raise ValueError(
                f"{len(self.marks)} steps, of which {self.skip} at each end do not count; {least} at least"
            )
        return (counted[-1] - counted[0]) / (len(counted) - 1)


Candidate = Callable[[], object]
"""What is timed: from outside, or by itself where it returns `Spent`."""


def spend(run: Candidate) -> Spent:
    """Run it once."""
    start = now()
    result = run()
    return result if isinstance(result, Spent) else now() - start


def in_turn(candidates: Mapping[str, Candidate], repeats: int, *, warm: int = 1) -> dict[str, Spent]:
    """The medians of each, run in turn; the first `warm` rounds do not count."""
    seen: dict[str, list[Spent]] = {name: [] for name in candidates}
    for round_ in range(warm + repeats):
        for name, run in candidates.items():
            spent = spend(run)
            if round_ >= warm:
                seen[name].append(spent)
            say(f"    {name}: {spent.wall:.3f} s")
    return {name: Spent(median(s.wall for s in each), median(s.cpu for s in each)) for name, each in seen.items()}


def least(spent: Mapping[str, Spent], by: str = "wall") -> str:
    """The name of the one that took the least, `by` wall or cpu."""
    return min(spent, key=lambda name: getattr(spent[name], by))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Keep this process, with all its threads, on so many of its cores."""
    before = os.sched_getaffinity(0)
    _confine(set(sorted(before)[-count:]))
    try:
        yield
    finally:
        _confine(before)


def _confine(chosen: set[int]) -> None:
    for task in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), chosen)
        except ProcessLookupError:  # the thread has ended
            continue
