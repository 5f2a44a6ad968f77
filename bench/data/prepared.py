"""Image sets made ready once: arrays under the data root, and a manifest that vouches for them.

The manifest is small and is what the pipeline tracks; the arrays can be made again from the source.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.data import READERS
from bench.data.source import DataError, ImageSet
from bench.files import checkout, demand_writable, write_json

UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)  # what numpy raises for damaged files
ARRAYS = ("images", "labels", "test")


def data_root() -> Path:
    """Where arrays and downloads live: BENCH_DATA, else data/raw of the checkout."""
    return Path(os.environ.get("BENCH_DATA") or checkout() / "data" / "raw").resolve()


def prepare(name: str, reader: str, options: Mapping[str, Any], manifests: Path) -> dict[str, Any]:
    """Read a set, keep its arrays under the data root and write `manifests/<name>.json`.

    Returns:
        The manifest: rows, size, channels, classes, split, and a checksum of every array.
    """
    demand_writable(data_root(), "set BENCH_DATA to a folder that can")
    demand_writable(manifests, "the pipeline writes its manifests there")
    images = READERS[reader](**options)
    manifest = {"name": name, "reader": reader, "options": dict(options), **_describe(images)}
    folder = _folder(manifest)
    if not _intact(folder, manifest):
        _write(folder, images)
    write_json(manifests / f"{name}.json", manifest)
    return manifest


def load(manifest: Mapping[str, Any]) -> ImageSet:
    """The arrays a manifest names, checked against its checksums; made again where they are absent.

    Raises:
        DataError: an array's bytes are not those that the manifest vouches for.
    """
    return _load(json.dumps(manifest, sort_keys=True), data_root())


@lru_cache(maxsize=4)
def _load(text: str, root: Path) -> ImageSet:
    manifest = json.loads(text)
    folder = _folder(manifest)
    if not all((folder / f"{array}.npy").is_file() for array in ARRAYS):
        demand_writable(data_root(), "set BENCH_DATA to a folder that can")
        images = READERS[manifest["reader"]](**manifest["options"])
        if _describe(images)["arrays"] != manifest["arrays"]:
            raise DataError(
                f"the source of '{manifest['name']}' is no longer what its manifest vouches for; "
                "run `dvc repro` to prepare it again"
            )
        _write(folder, images)
    arrays = {}
    for array in ARRAYS:
        path = folder / f"{array}.npy"
        try:
            arrays[array] = np.load(path, mmap_mode="r" if array == "images" else None)
        except UNREADABLE as error:
            raise DataError(f"{path} cannot be read ({error}); {_mend(folder)}") from None
        if _checksum(arrays[array]) != manifest["arrays"][array]:
            raise DataError(f"{path} is damaged (its checksum is another); {_mend(folder)}")
    return ImageSet(**arrays, classes=manifest["classes"])


def _mend(folder: Path) -> str:
    return f"remove {folder} and run again: it is made anew from the source"


def _folder(manifest: Mapping[str, Any]) -> Path:
    return data_root() / "prepared" / f"{manifest['name']}-{manifest['sha256'][:12]}"


def _describe(images: ImageSet) -> dict[str, Any]:
    n, height, width, channels = images.images.shape
    arrays = {array: _checksum(getattr(images, array)) for array in ARRAYS}
    whole = hashlib.sha256("".join(arrays.values()).encode()).hexdigest()
    return {
        "rows": n,
        "test_rows": int(images.test.sum()),
        "height": height,
        "width": width,
        "channels": channels,
        "classes": images.classes,
        "per_class": np.bincount(images.labels, minlength=images.classes).tolist(),
        "arrays": arrays,
        "sha256": whole,
    }


def _checksum(array: np.ndarray) -> str:
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def _intact(folder: Path, manifest: Mapping[str, Any]) -> bool:
    try:
        arrays = {array: np.load(folder / f"{array}.npy") for array in ARRAYS}
    except UNREADABLE:
        return False
    return all(_checksum(arrays[array]) == manifest["arrays"][array] for array in ARRAYS)


def _write(folder: Path, images: ImageSet) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for array in ARRAYS:
        beside = folder / f".{array}.{os.getpid()}.npy"
        np.save(beside, getattr(images, array))
        beside.replace(folder / f"{array}.npy")
