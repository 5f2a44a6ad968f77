"""Past embeddings: the first-in first-out support set of NNCLR and SNCLR, the memory bank of InstDisc."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bench.losses import unit
from bench.products import maximum_inner_product, rows_by_rows
from bench.random import derive

BLOCK = 4096  # rows of a support set that are compared at a time: their cosines stay in the cache
NOISE = -1  # the origin of a row that no image has filled yet


def _random_rows(size: int, dim: int, generator: torch.Generator) -> Float[Tensor, "q d"]:
    """Random unit rows, made so in place: a large set is never in memory twice."""
    rows = torch.randn(size, dim, generator=generator)
    for block in rows.split(BLOCK):
        block.copy_(unit(block))
    return rows


class SupportSet(nn.Module):
    """The last `size` embeddings pushed, of unit length (Dwibedi et al., NNCLR, 2104.14548, sec. 3.2).

    It begins as random unit rows. All of its state is in persistent buffers, so a resumed run finds the
    same neighbours; it moves with the module it belongs to.

    Args:
        size: how many embeddings it holds.
        dim: of an embedding.
        seed: of the initial rows.
    """

    ring: Tensor
    origins: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(derive(seed, "support set"))
        self.register_buffer("ring", _random_rows(size, dim, generator))
        self.register_buffer("origins", torch.full((size,), NOISE))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @property
    def size(self) -> int:
        """How many rows it holds."""
        return len(self.ring)

    @property
    def rows(self) -> Float[Tensor, "q d"]:
        """(size, dim) embeddings, oldest first."""
        return self.ring.roll(-self._oldest(), 0)

    @property
    def index(self) -> Int[Tensor, " q"]:
        """(size,) the image each row came from, -1 for the initial noise; oldest first."""
        return self.origins.roll(-self._oldest(), 0)

    @property
    def full(self) -> bool:
        """Whether pushed embeddings have replaced all of the initial noise."""
        return int(self.pushed) >= self.size

    def _oldest(self) -> int:
        return int(self.pushed) % self.size

    def nearest(
        self, z: Float[Tensor, "n d"], k: int = 1, allowed: Bool[Tensor, "..."] | None = None
    ) -> tuple[Float[Tensor, "n k d"], Int[Tensor, "n k"]]:
        """The k rows with the largest cosine to each z, nearest first; no gradient flows into them.

        Args:
            z: (n, dim) embeddings, of any length.
            k: how many.
            allowed: (size,) or (n, size) mask of the rows that may be chosen, oldest first.

        Returns:
            The neighbours (n, k, dim) and their positions (n, k) in `rows`.

        Raises:
            ValueError: k is not in 1..size, or fewer than k rows are allowed for some z.
        """
        if not 1 <= k <= self.size:
            raise ValueError(f"k wants 1 to the support set's {self.size} rows, not {k}")
        slots = self._nearest_slots(unit(z.detach()).to(self.ring.dtype), k, allowed)  # (n, k)
        return self.ring[slots], (slots - self._oldest()) % self.size

    @torch.no_grad()
    def _nearest_slots(self, z: Float[Tensor, "n d"], k: int, allowed: Tensor | None) -> Int[Tensor, "n k"]:
        """Places in the ring, which is not put in order first: that would copy all of it."""
        if k == 1 and allowed is None:
            return maximum_inner_product(z, self.ring)[:, None]
        if allowed is not None:
            allowed = allowed.roll(self._oldest(), -1).expand(len(z), -1)
        best: list[Tensor] = []
        slots: list[Tensor] = []
        for start in range(0, self.size, BLOCK):
            cosines = rows_by_rows(z, self.ring[start : start + BLOCK])  # (n, block)
            if allowed is not None:
                cosines = cosines.masked_fill(~allowed[:, start : start + BLOCK], -torch.inf)
            found = cosines.topk(min(k, cosines.shape[1]), 1)
            best.append(found.values)
            slots.append(found.indices + start)
        chosen = torch.cat(best, 1).topk(k, 1)
        if allowed is not None and not bool(chosen.values.isfinite().all()):
            raise ValueError(f"fewer than k = {k} rows are allowed for some queries")
        return torch.cat(slots, 1).gather(1, chosen.indices)

    @torch.no_grad()
    def replace(self, z: Float[Tensor, "N d"]) -> None:
        """Put new embeddings in the place of those that images left here; noise stays.

        Args:
            z: (N, dim) of all images that `index` may name; unit length is made here.
        """
        known = self.origins != NOISE
        self.ring[known] = unit(z)[self.origins[known]].to(self.ring.dtype)

    @torch.no_grad()
    def enqueue(self, z: Float[Tensor, "n d"], index: Int[Tensor, " n"] | None = None) -> None:
        """Push embeddings, the oldest rows leave; of a batch larger than the set, its last rows stay.

        Args:
            z: (n, dim) embeddings; unit length is made here.
            index: (n,) the images they came from.
        """
        slots = (self.pushed + torch.arange(len(z), device=z.device))[-self.size :] % self.size
        self.ring[slots] = unit(z)[-self.size :].to(self.ring.dtype)
        self.origins[slots] = NOISE if index is None else index[-self.size :]
        self.pushed += len(z)


class MemoryBank(nn.Module):
    """One unit embedding for each training image (Wu et al., InstDisc, 1805.01978, sec. 3.1).

    It begins as random unit rows; all of its state is in a persistent buffer.

    Args:
        rows: training images.
        dim: of an embedding.
        momentum: share of the old row in the new one, before it is made unit again; 0 replaces it.
        seed: of the initial rows.
    """

    rows: Tensor

    def __init__(self, rows: int, dim: int, momentum: float, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(derive(seed, "memory bank"))
        self.register_buffer("rows", _random_rows(rows, dim, generator))
        self.momentum = momentum

    @torch.no_grad()
    def update(self, index: Int[Tensor, " n"], z: Float[Tensor, "n d"]) -> None:
        """Move the rows of the images at `index` towards z; the others stay as they are.

        Args:
            index: (n,) rows.
            z: (n, dim) embeddings; unit length is made here.
        """
        mixed = self.momentum * self.rows[index] + (1 - self.momentum) * unit(z).to(self.rows.dtype)
        self.rows[index] = unit(mixed)
