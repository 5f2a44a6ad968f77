"""Images decoded once into a memory-mapped array: in parallel, and going on after a kill where it stopped.

The array is filled in chunks. A chunk is marked as finished, under a hash of the files that it is made of, once its
bytes are on the disk; a chunk whose files changed is made again.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from bench.cores import cores
from bench.data.content import checksum
from bench.data.prepared import DECODING, MOVED, UNREADABLE, data_root, identity
from bench.data.source import DataError
from bench.files import demand_writable, read_json

CHUNK_BYTES = 1 << 24
MARK = hashlib.sha256().digest_size
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}  # of 8 bits a channel

Pixels = NDArray[np.uint8]
Row = Callable[[int], Pixels]


def fit(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to `side` (bicubic, antialiased), then crop the centre: `side` x `side`."""
    w, h = image.size
    if w <= h:
        w, h = side, int(side * h / w)
    else:
        w, h = int(side * w / h), side
    left, top = round((w - side) / 2), round((h - side) / 2)
    return image.resize((w, h), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


def from_files(name: str, paths: Sequence[Path], side: int) -> Pixels:
    """The images of files, as RGB; side 0 keeps their size, which must then be one for all.

    Raises:
        DataError: a file is absent, damaged, of more than 8 bits a channel, or of another size; names it.
    """
    if not paths:
        raise DataError(f"{name} holds no image")
    Image.init()
    shape = (side, side, 3) if side else _rgb(paths[0], 0).shape

    def row(i: int) -> Pixels:
        found = _rgb(paths[i], side)
        if found.shape != shape:
            raise DataError(
                f"{name}: side 0 keeps sizes, but {paths[0]} is {shape[1]}x{shape[0]} and {paths[i]} is "
                f"{found.shape[1]}x{found.shape[0]}; set `side`"
            )
        return found

    return fill(name, [_file_identity(path) for path in paths], shape, row)


def from_arrays(name: str, images: Pixels, side: int) -> Pixels:
    """(n, h, w, c) images, resized; side 0 gives them as they are."""
    if side in (0, images.shape[1]) and side in (0, images.shape[2]):
        return images
    content, c = checksum(images), images.shape[3]

    def row(i: int) -> Pixels:
        pixels = images[i, ..., 0] if c == 1 else np.ascontiguousarray(images[i])
        return np.asarray(fit(Image.fromarray(pixels), side)).reshape(side, side, c)

    return fill(name, [f"{content} {i}" for i in range(len(images))], (side, side, c), row)


def fill(name: str, identities: Sequence[str], shape: tuple[int, ...], row: Row) -> Pixels:
    """(n, *shape) images, each made by `row(i)`, in a read-only map of a file under the data root.

    Args:
        name: of the set, for the progress bar and the folder.
        identities: what each row is made from; a row is made again when its own changes.
        shape: of one image.
        row: gives an image; called from several threads.
    """
    size = int(np.prod(shape))
    rows = max(1, CHUNK_BYTES // size)
    chunks = [range(start, min(start + rows, len(identities))) for start in range(0, len(identities), rows)]
    wanted = [_mark(identities[chunk.start : chunk.stop]) for chunk in chunks]
    key = hashlib.sha256(f"{name}\0{len(identities)}\0{shape}\0{rows}".encode()).hexdigest()[:12]
    folder = data_root() / "prepared" / DECODING / f"{name.strip('/').replace('/', '_')}-{key}"
    demand_writable(folder, "set BENCH_DATA to a folder that can")
    with FileLock(folder / ".lock"):
        elsewhere = _moved(folder, wanted)
        if elsewhere is not None:
            return elsewhere
        offset = _start(folder, (len(identities), *shape))
        missing = _missing(folder / "chunks", wanted)
        with tqdm(total=len(identities), desc=f"decode {name}", unit="img", disable=None) as bar:
            bar.update(len(identities) - sum(len(chunks[c]) for c in missing))
            _run(folder, [(c, chunks[c], wanted[c]) for c in missing], row, offset, size, bar)
        return _open(folder / "images.npy")


def _rgb(path: Path, side: int) -> Pixels:
    try:
        with Image.open(path) as image:
            if image.mode not in MODES:
                raise DataError(f"{path} has pixels of mode {image.mode}, not 8 bits a channel; convert it")
            whole = image.convert("RGB")
            return np.asarray(fit(whole, side) if side else whole)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; put it back") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be decoded ({error}); fetch it again") from None


def _file_identity(path: Path) -> str:
    try:
        seen = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); put it back") from None
    return f"{path}\0{seen.st_size}\0{seen.st_mtime_ns}"


def _mark(identities: Sequence[str]) -> bytes:
    return hashlib.sha256("\n".join([version("pillow"), *identities]).encode()).digest()


def _moved(folder: Path, wanted: Sequence[bytes]) -> Pixels | None:
    """The finished array, where a prepared set has taken it and nothing has changed since."""
    if (folder / "images.npy").is_file() or not (folder / MOVED).is_file():
        return None
    told = read_json(folder / MOVED)
    path = data_root() / told.pop("path")
    if path.is_file() and identity(path) == told and _marks(folder / "chunks") == b"".join(wanted):
        return _open(path)
    return None


def _start(folder: Path, shape: tuple[int, ...]) -> int:
    """Where the images begin in the file, which is made where there is none that can be gone on with."""
    path = folder / "images.npy"
    try:
        array: Any = np.load(path, mmap_mode="r")
        if array.shape == shape:
            return int(array.offset)
    except UNREADABLE:
        pass
    (folder / "chunks").unlink(missing_ok=True)
    (folder / MOVED).unlink(missing_ok=True)
    free, need = shutil.disk_usage(folder).free, int(np.prod(shape))
    if free < need:
        raise DataError(f"{folder} wants {need >> 20} MiB for the decoded images, {free >> 20} are free")
    return int(np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).offset)


def _open(path: Path) -> Pixels:
    array: Pixels = np.load(path, mmap_mode="r")
    return array


def _marks(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _missing(path: Path, wanted: Sequence[bytes]) -> list[int]:
    """The chunks without their mark; a mark of other files is wiped, lest a kill leave it on mixed bytes."""
    seen = _marks(path).ljust(MARK * len(wanted), b"\0")
    kept = [mark if seen[MARK * c : MARK * (c + 1)] == mark else bytes(MARK) for c, mark in enumerate(wanted)]
    path.write_bytes(b"".join(kept))
    return [c for c, mark in enumerate(kept) if mark == bytes(MARK)]


def _run(folder: Path, todo: list[tuple[int, range, bytes]], row: Row, offset: int, size: int, bar: Any) -> None:
    images, marks = (os.open(folder / file, os.O_RDWR) for file in ("images.npy", "chunks"))

    def work(c: int, chunk: range, mark: bytes) -> int:
        content = np.stack([row(i) for i in chunk])
        _put(images, content, offset + chunk.start * size)
        os.fsync(images)
        _put(marks, np.frombuffer(mark, dtype=np.uint8), c * MARK)
        return len(chunk)

    pool = ThreadPoolExecutor(cores())  # decoding and resizing let other threads run
    try:
        for done in as_completed([pool.submit(work, *task) for task in todo]):
            bar.update(done.result())
        os.fsync(marks)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror})") from None
    finally:
        pool.shutdown(cancel_futures=True)
        os.close(images)
        os.close(marks)


def _put(file: int, content: NDArray[np.uint8], offset: int) -> None:
    left = np.ascontiguousarray(content).reshape(-1).data
    while left:  # a write may be cut short at 2 GiB or by a signal
        done = os.pwrite(file, left, offset)
        left, offset = left[done:], offset + done
