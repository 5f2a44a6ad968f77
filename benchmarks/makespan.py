"""Makespan of 24 equal cells on four slots of a real SLURM cluster, against the ideal: `python -m benchmarks.makespan`.

Cells sleep for most of their time, so that four slots are four whatever the machine's cores. The ideal is the cells'
own times, as each measured them, shared by the slots.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.slurm.cluster import Cluster, unavailable
from tests.slurm.site import Site

CELLS, SLOTS, SECONDS, STEPS = 24, 4, 20.0, 20
PORT = 17900


def main() -> None:
    """Run it once and print a row."""
    why = unavailable()
    if why:
        sys.exit(f"no SLURM cluster: {why}")
    folder = Path(tempfile.mkdtemp(prefix="makespan-"))
    cluster = Cluster(folder / "slurm", PORT, folder / "hidden")
    (folder / "slurm").mkdir()
    try:
        cluster.up()
        site = Site(folder / "site", cluster)
        site.text = site.text.replace("seeds: [0, 1]", f"seeds: {list(range(CELLS))}").replace(
            "  random_init: {}\n", ""
        )
        site.set(seconds=SECONDS / STEPS)
        site.configure(max_jobs=SLOTS, checkpoint_seconds=30)
        site.run("bench", "submit", "--dry-run")  # data and imports are warm
        site.run("bench", "probe")  # and the machine is known, as after `make repro`
        start = time.time()
        site.run("bench", "submit", "--only", "drowsy", "--wait")
        elapsed = time.time() - start
        seconds = [
            json.loads((path / "environment.json").read_text())["seconds"]
            for path in (site.space.store / "cells").iterdir()
        ]
    finally:
        cluster.down()
    ideal = sum(seconds) / SLOTS
    print(
        f"{len(seconds)} cells (the longest {max(seconds):.1f} s, median {median(seconds):.1f} s) on {SLOTS} slots: "
        f"{elapsed:.1f} s, ideal {ideal:.1f} s, {100 * (elapsed / ideal - 1):.1f} % above"
    )


if __name__ == "__main__":
    main()
