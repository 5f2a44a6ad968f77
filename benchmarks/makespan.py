"""Makespan of cells against the ideal: their own times, as each measured them, shared by the slots.

`python -m benchmarks makespan`; no part of the default run. Once of 24 equal cells on four slots of a SLURM cluster,
which sleep for most of their time, so that four slots are four whatever the machine's cores; once of `make repro` here.
"""

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.cores import cores
from benchmarks.pipeline import shrunk
from benchmarks.rows import Measured, Row, overhead
from tests.workspace import Workspace

CELLS, SLOTS, SECONDS, STEPS = 24, 4, 20.0, 20
PORT = 17900
METHODS = ("supervised", "simclr", "moco_v2", "byol", "simsiam", "nnclr")
EPOCHS = 5  # of make repro's cells


def measure() -> Measured:
    """Seconds from the submission to the last cell's end, once.

    Raises:
        RuntimeError: there is no SLURM here.
    """
    from tests.slurm.cluster import Cluster, unavailable

    why = unavailable()
    if why:
        raise RuntimeError(f"no SLURM cluster: {why}")
    folder = Path(tempfile.mkdtemp(prefix="makespan-"))
    cluster = Cluster(folder / "slurm", PORT, folder / "hidden")
    (folder / "slurm").mkdir()
    try:
        cluster.up()
        elapsed, seconds = _submitted(_site(folder, cluster))
    finally:
        cluster.down()
    return against_ideal(elapsed, seconds, SLOTS)


def measure_repro() -> Measured:
    """Seconds from the first cell's start to the last one's end, once; what comes before and after is told."""
    with tempfile.TemporaryDirectory(prefix="makespan-") as folder:
        space = Workspace(Path(folder), whole=True)
        path = space.here / "params.yaml"
        path.write_text(lengthened(path.read_text()))
        start = time.time()
        space.run("bench", "repro")
        elapsed = time.time() - start
        found = notes(space)
    seconds = [note["seconds"] for note in found]
    span = max(note["started"] + note["seconds"] for note in found) - min(note["started"] for note in found)
    return against_ideal(span, seconds, cores(), f"; the whole command takes {elapsed - span:.1f} s more")


def lengthened(text: str) -> str:
    """The smoke profile's params.yaml with few cells of unequal lengths, and their kNN."""
    text = shrunk(text, METHODS)
    return text.replace("fraction: 0.1", "fraction: 1.0", 1).replace("epochs: 2\n", f"epochs: {EPOCHS}\n", 1)


def against_ideal(elapsed: float, seconds: list[float], slots: int, more: str = "") -> Measured:
    """What cells took together, and what they would at best."""
    ideal = sum(seconds) / slots
    cells = f"{len(seconds)} cells (the longest {max(seconds):.1f} s, median {median(seconds):.1f} s) on {slots} slots"
    return Measured(elapsed, ideal, 1, f"{cells}, {100 * (elapsed / ideal - 1):.1f} % above the ideal{more}")


def notes(space: Workspace) -> list[dict[str, Any]]:
    """What each finished cell notes of its own computation."""
    return [json.loads((path / "environment.json").read_text()) for path in (space.store / "cells").iterdir()]


def _site(folder: Path, cluster: Any) -> Any:
    """A project of equal cells, its data ready and the machine known, as after `make repro`."""
    from tests.slurm.site import Site

    site = Site(folder / "site", cluster)
    seeds = f"seeds: {list(range(CELLS))}"
    site.text = site.text.replace("seeds: [0, 1]", seeds).replace("  random_init: {}\n", "")
    site.set(seconds=SECONDS / STEPS)
    site.configure(max_jobs=SLOTS, checkpoint_seconds=30)
    site.run("bench", "submit", "--dry-run")
    site.run("bench", "probe")
    return site


def _submitted(site: Any) -> tuple[float, list[float]]:
    """Seconds of the submission and of each cell."""
    start = time.time()
    site.run("bench", "submit", "--only", "drowsy", "--wait")
    elapsed = time.time() - start
    return elapsed, [note["seconds"] for note in notes(site.space)]


IDEAL = "the ideal: their own times, shared by the slots"
ROWS = [
    Row(
        "makespan-slurm",
        f"{CELLS} equal cells on {SLOTS} slots of a SLURM cluster",
        IDEAL,
        "s",
        overhead(1.1),
        measure,
        default=False,
    ),
    Row(
        "makespan-repro",
        f"make repro: {len(METHODS)} encoders and their kNN on this machine's cores, first start to last end",
        IDEAL,
        "s",
        overhead(1.1),
        measure_repro,
        default=False,
    ),
]
