"""A submission: cells written where workers find them, in a folder that only its owner can read."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from bench.errors import BenchError
from bench.files import write_json
from bench.launch.worker import just_failed
from bench.plan import Cell
from bench.store import Store

CELLS = "cells.json"


class MixedNumericsError(BenchError):
    """Cells that cannot be computed in one process."""


class UnsafeFolderError(BenchError):
    """A folder of pickled work that others can write."""


Environment = tuple[str, int, str]  # numerics, threads, device: what a process is bound to before it imports torch


def environment(cell: Cell) -> Environment:
    """What must be set before torch is imported; an evaluation and the encoder it needs are always of one kind."""
    return cell.config["numerics"], cell.config["threads"], cell.config["device"]


def by_environment(cells: Iterable[Cell]) -> dict[Environment, list[Cell]]:
    """Cells that one process can compute, together."""
    return {kind: list(group) for kind, group in groupby(sorted(cells, key=environment), environment)}


def new_submission(cells: Sequence[Cell], store: Store) -> Path:
    """A folder that lists the cells; what failed under an earlier command is to be tried again."""
    for cell in cells:
        if not just_failed(cell, store):
            store.clear_failure(cell.key)
    folder = store.root / "submissions" / f"{time.time_ns():x}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700)
    write_json(folder / CELLS, [asdict(cell) for cell in cells])
    return folder


def demand_private(folder: Path, owner: int) -> None:
    """Refuse a folder that another user owns or can write: what is pickled there would be run.

    Raises:
        UnsafeFolderError: names the folder and how to mend it.
    """
    found = folder.stat()
    if found.st_uid != owner or found.st_mode & 0o077:
        raise UnsafeFolderError(
            f"{folder} belongs to user {found.st_uid} with mode {found.st_mode & 0o777:o}; jobs are read from folders "
            f"of one's own that nobody else can enter: `chmod 700 {folder}`, or remove it and submit again"
        )
