"""Makespan of 24 equal cells on four slots of a real SLURM cluster, against the ideal.

`python -m benchmarks makespan`; no part of the default run. Cells sleep for most of their time, so that four slots are
four whatever the machine's cores. The ideal is the cells' own times, as each measured them, shared by the slots.
"""

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rows import Measured, Row, Target

CELLS, SLOTS, SECONDS, STEPS = 24, 4, 20.0, 20
PORT = 17900


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
    ideal = sum(seconds) / SLOTS
    cells = f"{len(seconds)} cells (the longest {max(seconds):.1f} s, median {median(seconds):.1f} s) on {SLOTS} slots"
    return Measured(elapsed, ideal, 1, f"{cells}, {100 * (elapsed / ideal - 1):.1f} % above the ideal")


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
    notes = [path / "environment.json" for path in (site.space.store / "cells").iterdir()]
    return elapsed, [json.loads(note.read_text())["seconds"] for note in notes]


ROWS = [
    Row(
        "makespan",
        f"{CELLS} equal cells on {SLOTS} slots of a SLURM cluster",
        "the ideal: their own times, shared by the slots",
        "s",
        Target("overhead", None),
        measure,
        default=False,
    )
]
