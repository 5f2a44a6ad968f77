"""Cells as job arrays: one job is a pretraining cell and its missing evaluations."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.cluster import Slurm
from bench.files import read_json, write_json
from bench.launch.submission import Environment, by_environment
from bench.plan import Cell

PREFIX = "bench"


@dataclass(frozen=True)
class Array:
    """A job array.

    Args:
        name: of the job, unique: what is found in the queue is known by it.
        environment: numerics, threads and device of its cells.
        stage: whose resources it asks for.
        elements: the cells' keys, by element.
        after: the name of the array whose element i must have ended before element i begins.
    """

    name: str
    environment: Environment
    stage: str
    elements: tuple[tuple[str, ...], ...]
    after: str | None = None

    def write(self, folder: Path) -> None:
        """Note it in its submission, before it is submitted."""
        write_json(self._path(folder), asdict(self))

    def forget(self, folder: Path) -> None:
        """Undo `write`."""
        self._path(folder).unlink(missing_ok=True)

    def _path(self, folder: Path) -> Path:
        return folder / f"{self.name}.array.json"

    @classmethod
    def read(cls, path: Path) -> "Array":
        """What `write` noted."""
        noted = read_json(path)
        elements = tuple(tuple(keys) for keys in noted.pop("elements"))
        return cls(**{**noted, "environment": tuple(noted["environment"]), "elements": elements})


def plan_arrays(cells: Sequence[Cell], cluster: Slurm, label: str, largest: int, room: int | None) -> list[Array]:
    """Cut cells into arrays.

    Args:
        cells: what is to be computed, encoders and evaluations.
        cluster: which stages ask for other resources.
        label: of the submission, for names.
        largest: elements of an array, at most.
        room: jobs that the queue still takes, None for any number: cells share jobs where there are more.
    """
    arrays: list[Array] = []

    def add(kind: Environment, stage: str, jobs: Sequence[tuple[str, ...]], after: str | None = None) -> str:
        name = f"{PREFIX}-{label}-{len(arrays)}"
        arrays.append(Array(name, kind, stage, tuple(jobs), after))
        return name

    groups = by_environment(cells)
    for kind, group in groups.items():
        share = None if room is None else max(1, room // len(groups))
        apart = cluster.resources("pretrain") != cluster.resources("evaluate")
        families = _families(group)
        if not apart:
            for jobs in _cut(_pack(families, share), largest):
                add(kind, "pretrain", _keys(jobs))
            continue
        trained = [family for family in families if family[0].stage == "pretrain"]
        rest = [family for family in families if family[0].stage != "pretrain"]
        half = None if share is None else max(1, share // (1 + bool(trained) + bool(rest)))
        for jobs in _cut(_pack(trained, half), largest):
            first = [[cell for cell in job if cell.stage == "pretrain"] for job in jobs]
            then = [[cell for cell in job if cell.stage != "pretrain"] for job in jobs]
            name = add(kind, "pretrain", _keys(first))
            if any(then):
                add(kind, "evaluate", _keys(then), name)
        for jobs in _cut(_pack(rest, half), largest):
            add(kind, "evaluate", _keys(jobs))
    return arrays


def _families(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Each encoder with its evaluations; the encoders to train first, since theirs are the longest jobs."""
    found: dict[str, list[Cell]] = {}
    for cell in sorted(cells, key=lambda c: c.stage == "evaluate"):
        found.setdefault(cell.key if cell.stage == "pretrain" else cell.needs or cell.key, []).append(cell)
    return list(found.values())


def _pack(families: list[list[Cell]], room: int | None) -> list[list[Cell]]:
    if room is None or len(families) <= room:
        return families
    return [[cell for family in families[i::room] for cell in family] for i in range(room)]


def _cut(jobs: list[list[Cell]], largest: int) -> Iterator[list[list[Cell]]]:
    for i in range(0, len(jobs), largest):
        yield jobs[i : i + largest]


def _keys(jobs: Iterable[Sequence[Cell]]) -> list[tuple[str, ...]]:
    return [tuple(cell.key for cell in job) for job in jobs]
