"""One progress bar over cells."""

import sys
from collections.abc import Sequence

from tqdm import tqdm

from bench.plan import Cell
from bench.progress import progress
from bench.store import Store


class Bar:
    """Counts cells, the running ones by their share of steps.

    Where standard error is no terminal, a line for each finished cell instead.
    """

    def __init__(self, cells: Sequence[Cell], store: Store):
        self.cells, self.store = list(cells), store
        self.done: set[str] = set()
        self.bar = tqdm(
            total=len(cells),
            unit="cell",
            disable=None,
            bar_format="{l_bar}{bar}| {n:.1f}/{total} cells [{elapsed}<{remaining}]{postfix}",
        )

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def refresh(self) -> None:
        """Show what is done now."""
        for cell in (c for c in self.cells if c.key not in self.done):
            failed = self.store.failure(cell.key)
            if not (self.store.has(cell.key) or failed):
                continue
            self.done.add(cell.key)
            if self.bar.disable or failed:
                outcome = f"FAILED, {failed['error']}" if failed else "done"
                tqdm.write(f"[{len(self.done)}/{len(self.cells)}] {cell.label}: {outcome}", sys.stderr)
        if not self.bar.disable:
            shares = (progress(self.store, c.key) for c in self.cells if c.key not in self.done)
            self.bar.n = len(self.done) + sum(shares)
            self.bar.refresh()
