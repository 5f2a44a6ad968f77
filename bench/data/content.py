"""What an image set holds: checksums and duplicates, without a second copy in memory."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.cores import cores

BLOCK_BYTES = 1 << 24


def checksum(array: NDArray[Any]) -> str:
    """The SHA-256 of an array's type, shape and bytes, read block by block."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    for block in _blocks(array):
        digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def duplicates(images: NDArray[np.uint8], test: NDArray[np.bool_]) -> dict[str, int]:
    """How many images repeat another one byte for byte.

    Returns:
        `within_train` and `within_test`: images that repeat an earlier one of their split; `across`: test images
        that are also training images.
    """
    with ThreadPoolExecutor(cores()) as pool:  # hashing lets other threads run
        digests = [digest for found in pool.map(_row_digests, _blocks(images)) for digest in found]
    train = [digest for digest, mark in zip(digests, test, strict=True) if not mark]
    tested = [digest for digest, mark in zip(digests, test, strict=True) if mark]
    known = set(train)
    return {
        "within_train": len(train) - len(known),
        "within_test": len(tested) - len(set(tested)),
        "across": sum(digest in known for digest in tested),
    }


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    rows = max(1, BLOCK_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _row_digests(block: NDArray[np.uint8]) -> list[bytes]:
    return [hashlib.sha256(row.data).digest()[:16] for row in np.ascontiguousarray(block).reshape(len(block), -1)]
