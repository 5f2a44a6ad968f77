"""Cells in this process, one after the other."""

from collections.abc import Callable, Sequence

from bench import numerics
from bench.cluster import Debug
from bench.launch.bar import Bar
from bench.launch.submission import CELLS, MixedNumericsError, by_environment, new_submission
from bench.launch.worker import Worker
from bench.plan import Cell
from bench.store import Store


def run_here(cells: Sequence[Cell], plan: Callable[[], list[Cell]], cluster: Debug, store: Store) -> None:
    """Compute cells.

    Raises:
        MixedNumericsError: they want several numerics, threads or devices.
    """
    groups = by_environment(cells)
    if len(groups) > 1:
        raise MixedNumericsError(
            "cells of several numerics, threads or devices cannot share the one process of cluster "
            f"'debug' ({sorted(groups)}); use cluster: local"
        )
    for kind, threads, _ in groups:
        numerics.pin(kind, threads)
    with Bar(cells, store) as bar:
        Worker(new_submission(cells, store) / CELLS, store.root, cluster.checkpoint_seconds)()
        bar.refresh()
