"""How far a running cell is: written by who computes it, read by who shows the bar."""

import json
import time

from bench.store import Store

FILE = "progress.json"
SECONDS = 0.5  # between two writes


class Reporter:
    """Writes a cell's progress, at most twice a second."""

    def __init__(self, store: Store, key: str):
        self.path, self.last = store.running(key) / FILE, 0.0

    def __call__(self, step: int, steps: int) -> None:
        now = time.monotonic()
        if now - self.last >= SECONDS:
            self.last = now
            beside = self.path.with_suffix(".tmp")
            beside.write_text(json.dumps({"step": step, "steps": steps}))
            beside.replace(self.path)


def progress(store: Store, key: str) -> float:
    """The share of a running cell that is done, from 0 to 1; 0 where nothing is known."""
    try:
        seen = json.loads((store.root / "running" / key / FILE).read_text())
        return float(seen["step"] / seen["steps"])
    except (OSError, ValueError, KeyError):
        return 0.0
