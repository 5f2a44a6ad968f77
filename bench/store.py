"""The store of computed cells: a cell appears whole, by one rename, and is never computed again.

`cells/<key>/` holds a finished cell with a checksum for each file; `running/<key>/` what an unfinished
one needs to go on; `failed/<key>.json` why one could not be computed; `locks/` who is at work.
"""

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.files import checkout, checkpoint_steps, demand_writable, read_json, sha256, write_json
from bench.holds import Holds

CELL = "cell.json"
ENVIRONMENT = "environment.json"


class Store:
    """The store in a folder; by default BENCH_STORE, else work/ of the checkout."""

    def __init__(self, root: Path | None = None):
        self.root = (root or Path(os.environ.get("BENCH_STORE") or checkout() / "work")).resolve()
        self.holds = Holds(self.root / "locks")

    def check(self) -> None:
        """Raise UnwritableError where a folder cannot be written."""
        for name in ("", "cells", "running", "failed", "locks"):
            demand_writable(self.root / name, "set BENCH_STORE to a folder that can")

    def path(self, key: str) -> Path:
        """The folder of a finished cell."""
        return self.root / "cells" / key

    def running(self, key: str) -> Path:
        """The folder of an unfinished cell, made if need be."""
        folder = self.root / "running" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def step(self, key: str) -> int:
        """The step of an unfinished cell's newest checkpoint; 0 where there is none."""
        return max(checkpoint_steps(self.root / "running" / key), default=0)

    def has(self, key: str) -> bool:
        """Whether a cell is finished."""
        return (self.path(key) / CELL).is_file()

    def damaged(self, key: str) -> list[str]:
        """Files of a cell that are missing, unreadable or whose checksum is another."""
        try:
            files = read_json(self.path(key) / CELL)["files"]
        except (OSError, ValueError, KeyError):
            return [CELL]
        return [
            name
            for name, checksum in files.items()
            if not (self.path(key) / name).is_file() or sha256(self.path(key) / name) != checksum
        ]

    def set_aside_if_damaged(self, key: str) -> str | None:
        """Move a damaged cell out of the way, so that it is computed again.

        Returns:
            What was damaged and where it is now, or None for an absent or intact cell.
        """
        if not self.path(key).exists() or not self.damaged(key):
            return None
        with self.holds.held(key):  # another process may just have mended it
            if not self.path(key).exists() or not (names := self.damaged(key)):
                return None
            target = self.root / "damaged" / f"{key}-{time.time_ns():x}"
            target.parent.mkdir(parents=True, exist_ok=True)
            self.path(key).rename(target)
        return f"{', '.join(names)} damaged; moved to {target}"

    def publish(self, key: str, config: Mapping[str, Any], folder: Path, environment: Mapping[str, Any]) -> None:
        """Make a finished cell of a folder's files, by one rename, and drop what it needed to run.

        A rename that finds the cell there is success: it is the same cell.
        """
        files = {f.name: sha256(f) for f in sorted(folder.iterdir())}
        write_json(folder / ENVIRONMENT, environment)
        write_json(folder / CELL, {"key": key, "config": config, "files": files})
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(target)
        except OSError:
            if not self.has(key):
                raise
        shutil.rmtree(self.root / "running" / key, ignore_errors=True)
        self.clear_failure(key)

    def environment(self, key: str) -> dict[str, Any]:
        """Where and when a finished cell was computed."""
        found: dict[str, Any] = read_json(self.path(key) / ENVIRONMENT)
        return found

    def copy_out(self, key: str, target: Path) -> None:
        """A finished cell's files, without its environment, in another folder."""
        target.mkdir(parents=True, exist_ok=True)
        for name in [*read_json(self.path(key) / CELL)["files"], CELL]:
            shutil.copyfile(self.path(key) / name, target / name)

    def fail(self, key: str, failure: Mapping[str, Any]) -> None:
        """Note why a cell could not be computed."""
        write_json(self.root / "failed" / f"{key}.json", failure)

    def failure(self, key: str) -> dict[str, Any] | None:
        """Why a cell could not be computed the last time, or None."""
        path = self.root / "failed" / f"{key}.json"
        return read_json(path) if path.is_file() else None

    def clear_failure(self, key: str) -> None:
        """Forget a failure."""
        (self.root / "failed" / f"{key}.json").unlink(missing_ok=True)
