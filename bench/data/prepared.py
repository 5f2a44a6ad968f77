"""Image sets made ready once: arrays under the data root, and a manifest that vouches for them.

The manifest is small and is what the pipeline tracks; the arrays can be made again from the source.
"""

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.data import READERS
from bench.data.content import checksum, duplicates
from bench.data.source import DataError, ImageSet
from bench.files import checkout, demand_writable, read_json, write_json

UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)  # what numpy raises for damaged files
ARRAYS = ("images", "labels", "test")
LISTED = "label_list_"  # begins the names of further arrays: the rows of label lists, by fraction
LARGE = 1 << 28  # bytes: a larger array is checked once per file, not once per load
DECODING = ".decoding"  # where readers decode into, beside the prepared sets
MOVED = "moved.json"  # says where a decoded array went
SOURCES = ("numpy", "pillow", "torchvision", "scikit-learn", "mlxtend")  # packages that decide what readers give


def data_root() -> Path:
    """Where arrays and downloads live: BENCH_DATA, else data/raw of the checkout."""
    return Path(os.environ.get("BENCH_DATA") or checkout() / "data" / "raw").resolve()


def prepare(name: str, reader: str, options: Mapping[str, Any], manifests: Path) -> dict[str, Any]:
    """Read a set, keep its arrays under the data root and write `manifests/<name>.json`.

    Returns:
        The manifest: rows, size, channels, classes, metric, split, duplicates, and a checksum of every array.

    Raises:
        DataError: the source is absent, damaged or malformed, or a class has no training row.
    """
    demand_writable(data_root(), "set BENCH_DATA to a folder that can")
    demand_writable(manifests, "the pipeline writes its manifests there")
    images = READERS[reader](**options)
    manifest = {"name": name, "reader": reader, "options": dict(options), **_describe(name, images)}
    paths = _paths(manifest)
    if not _intact(paths, manifest):
        _write(paths, images)
        _vouch(paths["images"], images.images, manifest["arrays"]["images"])
    _remark(name, manifest, images.notes)
    path = manifests / f"{name}.json"
    write_json(path, manifest)
    write_json(_recorded(name, reader, options), manifest)
    return manifest


def is_prepared(name: str, reader: str, options: Mapping[str, Any]) -> bool:
    """Whether `ensure` has nothing to do but to read."""
    return _recorded(name, reader, options).is_file()


def ensure(name: str, reader: str, options: Mapping[str, Any], manifests: Path) -> dict[str, Any]:
    """The manifest of a set, prepared unless that was done before by the same reader, code and packages.

    The source is not read again: `prepare` does that. Preparing runs in a process of its own, since a reader may
    import torch, which whoever plans must not.
    """
    done = _recorded(name, reader, options)
    if done.is_file():
        manifest: dict[str, Any] = read_json(done)
        path = manifests / f"{name}.json"
        if not path.is_file() or read_json(path) != manifest:
            write_json(path, manifest)
        return manifest
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(prepare, name, reader, dict(options), manifests).result()


def load(manifest: Mapping[str, Any]) -> ImageSet:
    """The arrays a manifest names, checked against its checksums; made again where they are absent.

    A large array is checked once and then trusted as long as its file keeps its size and time.

    Raises:
        DataError: an array's bytes are not those that the manifest vouches for.
    """
    return _load(json.dumps(manifest, sort_keys=True), data_root())


@lru_cache(maxsize=4)
def _load(text: str, root: Path) -> ImageSet:
    manifest = json.loads(text)
    folder, paths = _folder(manifest), _paths(manifest)
    if not all(path.is_file() for path in paths.values()):
        demand_writable(data_root(), "set BENCH_DATA to a folder that can")
        images = READERS[manifest["reader"]](**manifest["options"])
        if _checksums(images) != manifest["arrays"]:
            raise DataError(
                f"the source of '{manifest['name']}' is no longer what its manifest vouches for; "
                "run `dvc repro` to prepare it again"
            )
        _write(paths, images)
    arrays = {}
    for array, path in paths.items():
        mend = f"remove {folder if array in ARRAYS else path} and run again: it is made anew from the source"
        try:
            arrays[array] = np.load(path, mmap_mode="r" if array == "images" else None)
        except UNREADABLE as error:
            raise DataError(f"{path} cannot be read ({error}); {mend}") from None
        if not _is(path, arrays[array], manifest["arrays"][array]):
            raise DataError(f"{path} is damaged (its checksum is another); {mend}")
    lists = {float(array.removeprefix(LISTED)): arrays.pop(array) for array in paths if array not in ARRAYS}
    return ImageSet(**arrays, classes=manifest["classes"], metric=manifest.get("metric", "top1"), label_lists=lists)


def _folder(manifest: Mapping[str, Any]) -> Path:
    """Of the images, whatever label lists there are: another list must not mean another copy of them."""
    whole = {array: manifest["arrays"][array] for array in ARRAYS}
    return data_root() / "prepared" / f"{manifest['name']}-{_sha256(whole)[:12]}"


def _paths(manifest: Mapping[str, Any]) -> dict[str, Path]:
    """The file of each array; a label list's is named by its content as well, since lists share the images' folder."""
    folder = _folder(manifest)
    return {
        array: folder / (f"{array}.npy" if array in ARRAYS else f"{array}-{found[:12]}.npy")
        for array, found in manifest["arrays"].items()
    }


def _sha256(arrays: Mapping[str, str]) -> str:
    """Of a set, from the checksums of its arrays; the fraction that a label list is for counts as much as its rows."""
    parts = [found if array in ARRAYS else f"{array}{found}" for array, found in arrays.items()]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _describe(name: str, images: ImageSet) -> dict[str, Any]:
    n, height, width, channels = images.images.shape
    per_class, trained = _per_class(images, slice(None)), _per_class(images, ~images.test)
    if not all(trained):
        raise DataError(
            f"{name}: class {trained.index(0)} has no training row ({per_class[trained.index(0)]} in all); "
            "give it some, or take the class out"
        )
    arrays = _checksums(images)
    return {
        "rows": n,
        "test_rows": int(images.test.sum()),
        "height": height,
        "width": width,
        "channels": channels,
        "classes": images.classes,
        "metric": images.metric,
        "per_class": per_class,
        "duplicates": duplicates(images.images, images.test),
        "notes": list(images.notes),
        "arrays": arrays,
        "sha256": _sha256(arrays),
    }


def _per_class(images: ImageSet, rows: Any) -> list[int]:
    labels = images.labels[rows]
    if images.metric == "map11":
        return [int(count) for count in labels.sum(0)]
    return [int(count) for count in np.bincount(labels, minlength=images.classes)]


def _arrays(images: ImageSet) -> dict[str, NDArray[Any]]:
    lists = {f"{LISTED}{fraction}": images.label_lists[fraction] for fraction in sorted(images.label_lists)}
    return {**{array: getattr(images, array) for array in ARRAYS}, **lists}


def _checksums(images: ImageSet) -> dict[str, str]:
    return {array: checksum(values) for array, values in _arrays(images).items()}


def _remark(name: str, manifest: Mapping[str, Any], notes: tuple[str, ...]) -> None:
    across = manifest["duplicates"]["across"]
    if across:
        notes = (*notes, f"{across} of {manifest['test_rows']} test images are training images too, byte for byte")
    for note in notes:
        print(f"warning: {name}: {note}", file=sys.stderr)


def _recorded(name: str, reader: str, options: Mapping[str, Any]) -> Path:
    """Where the manifest is kept that this reader, this code and these packages gave."""
    text = json.dumps([name, reader, dict(options), _code(), [_version(package) for package in SOURCES]])
    return data_root() / ".manifests" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


def _code() -> str:
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *here.glob("readers/*.py"), here.parent / "random.py"])
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _intact(paths: Mapping[str, Path], manifest: Mapping[str, Any]) -> bool:
    try:
        arrays = {array: np.load(path, mmap_mode="r") for array, path in paths.items()}
    except UNREADABLE:
        return False
    return all(_is(path, arrays[array], manifest["arrays"][array]) for array, path in paths.items())


def _is(path: Path, array: NDArray[Any], wanted: str) -> bool:
    """Whether a file holds what a checksum vouches for; a large one is read once, then known by size and time."""
    if array.nbytes <= LARGE:
        return checksum(array) == wanted
    try:
        if read_json(_checked(path)) == identity(path, wanted):
            return True
    except (OSError, ValueError):
        pass
    if checksum(array) != wanted:
        return False
    _vouch(path, array, wanted)
    return True


def _vouch(path: Path, array: NDArray[Any], found: str) -> None:
    if array.nbytes > LARGE:
        try:
            write_json(_checked(path), identity(path, found))
        except OSError:  # a data root that is only read: it is checked at each load
            pass


def _checked(path: Path) -> Path:
    return path.with_name(f".{path.stem}.checked.json")


def identity(path: Path, checksum: str = "") -> dict[str, Any]:
    """What tells a file from a changed one without reading it."""
    seen = path.stat()
    return {"file": path.name, "size": seen.st_size, "mtime_ns": seen.st_mtime_ns, "checksum": checksum}


def _write(paths: Mapping[str, Path], images: ImageSet) -> None:
    for array, values in _arrays(images).items():
        target = paths[array]
        target.parent.mkdir(parents=True, exist_ok=True)
        if _file(values) != target and not _moved(values, target):
            beside = target.with_name(f".{array}.{os.getpid()}.npy")
            np.save(beside, values)
            beside.replace(target)


def _file(values: NDArray[Any]) -> Path:
    return Path(getattr(values, "filename", None) or os.devnull)


def _moved(values: NDArray[Any], target: Path) -> bool:
    """Move a whole array that a reader decoded under the data root; its folder keeps where it went."""
    source = _file(values)
    if source.parent.parent != data_root() / "prepared" / DECODING:
        return False
    try:
        if source.stat().st_size != getattr(values, "offset", 0) + values.nbytes:  # a part of the file
            return False
        source.replace(target)
    except FileNotFoundError:  # another process was first, and wrote the same
        return False
    write_json(source.parent / MOVED, {"path": str(target.relative_to(data_root())), **identity(target)})
    return True
