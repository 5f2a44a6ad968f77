"""Cells that DVC's cache already holds, put into the store instead of computed again.

After `dvc pull`, or in a clone whose cache is shared, the outputs that dvc.lock names are in the cache: as
listings of folders and objects by checksum. The lock still names them when a stage runs, though DVC has
removed them from the workspace by then.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from configparser import ConfigParser, Error
from pathlib import Path
from typing import Any

import yaml

from bench.store import CELL, Store

FOLDERS = ("runs", "records")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def adopt(keys: Iterable[str], store: Store, here: Path = Path()) -> list[str]:
    """Publish those cells that the cache of the pipeline in `here` holds whole.

    Returns:
        Their keys.
    """
    wanted = {key for key in keys if not store.has(key)}
    lock = here / "dvc.lock"
    if not wanted or not lock.is_file():
        return []
    adopted = []
    for key, files in _cached_cells(lock, _cache(here)):
        if key in wanted and all(path.is_file() for path in files.values()):
            with store.holds.held(key):
                if not store.has(key) and _publish(key, files, store):
                    adopted.append(key)
            wanted.discard(key)
    return adopted


def _publish(key: str, files: dict[str, Path], store: Store) -> bool:
    described = json.loads(files.pop(CELL).read_text()) if CELL in files else {}
    folder = store.running(key) / "adopted"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, path in files.items():
        shutil.copyfile(path, folder / name)
    if described.get("key") != key:
        return False
    store.publish(key, described["config"], folder, {"adopted": "from DVC's cache"})
    if json.loads((store.path(key) / CELL).read_text())["files"] == described["files"]:
        return True
    shutil.rmtree(store.path(key))  # an object of the cache is damaged
    return False


def _cached_cells(lock: Path, cache: Path) -> Iterator[tuple[str, dict[str, Path]]]:
    """Each cell that the lock's outputs name: its key, and where the cache has its files."""
    locked: dict[str, Any] = yaml.load(lock.read_text(), LOADER) or {}
    for stage in locked.get("stages", {}).values():
        for out in stage.get("outs", []):
            if out["path"].split("/")[0] not in FOLDERS or not out.get("md5", "").endswith(".dir"):
                continue
            listing = _object(cache, out["md5"])
            if not listing.is_file():
                continue
            cells: dict[str, dict[str, Path]] = {}
            for entry in json.loads(listing.read_text()):
                key, _, name = entry["relpath"].partition("/")
                cells.setdefault(key, {})[name] = _object(cache, entry["md5"])
            yield from cells.items()


def _object(cache: Path, checksum: str) -> Path:
    return cache / "files" / "md5" / checksum[:2] / checksum[2:]


def _cache(here: Path) -> Path:
    """The cache's folder: `cache.dir` of the local or the committed config, else .dvc/cache."""
    for name in ("config.local", "config"):
        config = ConfigParser()
        try:
            config.read_string("\n".join(map(str.strip, (here / ".dvc" / name).read_text().splitlines())))
            return (here / ".dvc" / config["cache"]["dir"]).resolve()
        except (OSError, Error, KeyError):
            continue
    return here / ".dvc" / "cache"
