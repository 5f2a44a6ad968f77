"""Addressed randomness: every random number is a pure function of its address.

A counter-based generator (Philox 4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2,
3", SC 2011) turns (seed, purpose, op, epoch, image, occurrence, view) into numbers. Nothing is
consumed, so results depend on no worker, batch order, resume or world size. Only integer arithmetic
and exact float operations are used: the same address gives the same bits on every machine.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

_HALF = np.uint64(32)
_WORDS = 4  # one call of the generator gives four 32-bit words


def philox(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox 4x32-10.

    Args:
        counter: (..., 4) counters.
        key: two 32-bit words.

    Returns:
        (..., 4) words, the published algorithm's output for each counter.
    """
    from bench import kernels  # numba takes half a second to import, and many processes draw nothing

    words = np.empty((counter.size // _WORDS, _WORDS), np.uint32)
    kernels.philox(np.ascontiguousarray(counter).reshape(-1, _WORDS), np.uint64(key[0]), np.uint64(key[1]), words)
    return words.reshape(counter.shape)


def derive(seed: int, *names: str | int) -> int:
    """A 64-bit number for a seed and names; the key of a stream, or a seed for torch's generator."""
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Address:
    """Where the numbers of a batch of images live.

    Args:
        seed: the cell's seed.
        purpose: what they are for, such as "views" or "order".
        images: (n,) ids: rows of the unsplit source.
        epoch: the epoch, from 0.
        occurrence: (n,) tells apart two draws of one image in one epoch; zeros by default.
        view: the view's position in its recipe.
        seeds: of single ops, where they differ from `seed`; a number after an op's name does not count.
    """

    seed: int
    purpose: str
    images: NDArray[np.int64]
    epoch: int = 0
    occurrence: NDArray[np.int64] | None = None
    view: int = 0
    seeds: Mapping[str, int] = field(default_factory=dict)

    def at_view(self, view: int) -> "Address":
        """The same address for another view."""
        return replace(self, view=view)

    def words(self, op: str, count: int) -> NDArray[np.uint32]:
        """(n, count) words of 32 bits for one op; longer draws begin with the shorter ones."""
        blocks = -(-count // _WORDS)
        ids = np.asarray(self.images, dtype=np.int64)
        shown = np.zeros_like(ids) if self.occurrence is None else np.asarray(self.occurrence)
        counter = np.zeros((len(ids), blocks, _WORDS), dtype=np.uint32)
        counter[..., 0] = ids[:, None]
        counter[..., 1] = self.epoch
        counter[..., 2] = (shown[:, None].astype(np.int64) << 16) | self.view
        counter[..., 3] = np.arange(blocks)
        key = derive(self.seeds.get(op.rstrip("0123456789"), self.seed), self.purpose, op)
        words = philox(counter, (key & 0xFFFFFFFF, key >> 32))
        return words.reshape(len(ids), blocks * _WORDS)[:, :count]

    def uniform(self, op: str, count: int) -> NDArray[np.float64]:
        """(n, count) numbers inside (0, 1): the middle of each of 2^32 equal steps."""
        return (self.words(op, count).astype(np.float64) + 0.5) * 2.0**-32


def permutation(seed: int, purpose: str, images: ArrayLike, epoch: int = 0) -> NDArray[np.int64]:
    """An addressed order of rows.

    Args:
        seed: the cell's seed.
        purpose: what the order is for.
        images: (n,) ids. The order of a subset is the whole's order, restricted to it.
        epoch: the epoch.

    Returns:
        (n,) positions into `images`.
    """
    ids = np.asarray(images, dtype=np.int64)
    words = Address(seed, purpose, ids, epoch).words("order", 2).astype(np.uint64)
    rank = (words[:, 0] << _HALF) | words[:, 1]
    return np.lexsort((ids, rank)).astype(np.int64)
