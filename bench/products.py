"""Products of single-precision matrices that carry no gradient, as fast as the pinned numerics allow."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, bfloat16, float32, ops

from bench import kernels

ROWS = 1024  # of each side in a block: its products stay in the cache
ENTRIES = 2**25  # of a block of products, where there is room for more than a cache
ROUNDING = {float32: 2.0**-24, bfloat16: 2.0**-8}  # by how much it may move a number, relatively
BITS = {float32: torch.uint32, bfloat16: torch.uint16}
MOST = 16  # of the rows in a block may be left by a coarse product: more take a finer one
SHORT = 1e-15  # a length whose square is no longer exact in single precision
LARGE = 1e37  # a product that rounding may make infinite


def rows_by_rows(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """The products of every row of a with every row of b.

    By oneDNN on a CPU: portable numerics hold MKL, which torch multiplies with, to instructions that every x86-64 CPU
    has, where oneDNN may use AVX2 and is 2 to 3 times as fast; under native numerics it is not the slower one.
    """
    if a.device.type == "cpu" and a.dtype == b.dtype == float32:
        return _multiplied(a.contiguous(), b.contiguous())
    return a @ b.mT


def _multiplied(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return product


@dataclass(frozen=True)
class Queries:
    """Queries, and what a search wants to know of them whatever it is among.

    Attributes:
        rows: (n, d).
        lengths: (n,).
        rounded: (n, d) by the kinds of numbers that fast products are made in; none where none are made.
    """

    rows: Tensor
    lengths: Tensor
    rounded: dict[torch.dtype, Tensor]

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"]) -> "Queries":
        """As `maximum_inner_product` takes them."""
        rows = rows.detach().contiguous()
        kinds = screens(rows.device) if rows.device.type == "cpu" and rows.dtype == float32 else []
        return cls(rows, torch.linalg.vector_norm(rows, dim=1), {kind: rows.to(kind) for kind in kinds})

    def __getitem__(self, chosen: slice | Tensor) -> "Queries":
        rounded = {kind: rows[chosen] for kind, rows in self.rounded.items()}
        return Queries(self.rows[chosen], self.lengths[chosen], rounded)

    def __len__(self) -> int:
        return len(self.rows)


@torch.no_grad()
def maximum_inner_product(
    queries: "Float[Tensor, 'n d'] | Queries", rows: Float[Tensor, "m d"], bias: Float[Tensor, " m"] | None = None
) -> Int[Tensor, " n"]:
    """The place of the row whose product with each query is the largest.

    In single precision on a CPU, double precision decides between the rows that a fast product cannot tell apart: one
    in bfloat16 where the CPU has instructions for it, else in single precision. What is found follows neither: the
    first of equals; products that are nan or -inf are passed over (the first row, if there are no others).

    Args:
        queries: (n, d); `Queries` where they are searched for again, among other rows.
        rows: (m, d), one at least.
        bias: (m,) added to the products with each row, in any precision; 0 unless told.
    """
    bias = rows.new_zeros(len(rows)) if bias is None else bias
    asked = queries if isinstance(queries, Queries) else Queries.of(queries)
    if asked.rounded and rows.dtype == float32:
        return _screened(asked, rows.contiguous(), bias.double())
    added, blocks = bias.to(rows.dtype), asked.rows.split(max(1, ENTRIES // len(rows)))
    with torch.autocast(rows.device.type, enabled=False):
        return torch.cat([(block @ rows.mT + added).max(1).indices for block in blocks])


@dataclass(frozen=True)
class _Block:
    """Some rows of a larger matrix, from the first's place on.

    Attributes:
        rows: (m, d).
        bias: (m,), in double precision.
        longest: the length of the longest row.
        rounded: (m, d) by the kinds of numbers that fast products are made in.
        first: the place.
    """

    rows: Tensor
    bias: Tensor
    longest: Tensor
    rounded: dict[torch.dtype, Tensor]
    first: int


def _screened(queries: Queries, rows: Tensor, bias: Tensor) -> Tensor:
    kinds = list(queries.rounded)
    best = torch.full((len(queries),), -torch.inf, dtype=torch.float64)
    places = torch.zeros(len(queries), dtype=torch.int64)
    parts = [slice(start, start + ROWS) for start in range(0, len(queries), ROWS)]
    for first in range(0, len(rows), ROWS):
        some = rows[first : first + ROWS]
        longest = torch.linalg.vector_norm(some, dim=1).max()
        block = _Block(some, bias[first : first + ROWS], longest, {kind: some.to(kind) for kind in kinds}, first)
        for part in parts:
            _search(kinds, block, queries[part], best[part], places[part])
    return places


def _search(kinds: list[torch.dtype], block: _Block, queries: Queries, best: Tensor, places: Tensor) -> None:
    """`kernels.search` with products of the first kind, then of the next for queries that it is too coarse for."""
    kind, *finer = kinds
    off = _off(kind, queries.lengths, block.longest, block.bias, queries.rows.shape[1])
    undecided = kernels.search(
        bits_of_products(queries.rounded[kind], block.rounded[kind]),
        (queries.rows.numpy(), off.numpy()),
        (block.rows.numpy(), block.bias.numpy()),
        block.first,
        (best.numpy(), places.numpy()),
        MOST if finer else len(block.rows),
    )
    if undecided.any():
        left = torch.from_numpy(undecided)
        again = best[left], places[left]
        _search(finer, block, queries[left], *again)
        best[left], places[left] = again


def _off(kind: torch.dtype, lengths: Tensor, longest: Tensor, bias: Tensor, dim: int) -> Float[Tensor, " n"]:
    """By how much a product, its bias added, may be off for queries of so many lengths; infinite where not known."""
    largest = lengths * longest
    most = largest + bias.abs().max().float()
    off = relative_error(kind, dim) * largest + 4 * ROUNDING[float32] * most
    known = (lengths > SHORT) & (longest > SHORT) & (most < LARGE)  # false for nan
    return torch.where(known, off, torch.inf)


def relative_error(kind: torch.dtype, dim: int) -> float:
    """By how much a product of two vectors of length 1 may be off, if they and it are rounded to a kind of number.

    A sum of d products in single precision is off by less than (d + 4) / 2^24, in whatever order it is summed.
    """
    rounded = 0.0 if kind == float32 else 3 * ROUNDING[kind] * (1 + ROUNDING[kind]) ** 2
    return rounded + (dim + 4) * ROUNDING[float32]


def screens(device: torch.device) -> list[torch.dtype]:
    """The kinds of numbers that fast products are made in, coarse first."""
    return [bfloat16, float32] if device.type == "cpu" and multiplies_bfloat16() else [float32]


def bits_of_products(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> NDArray[np.uint32] | NDArray[np.uint16]:
    """The bits (n, m) of products on a CPU, as loops in `bench.kernels` read them; both of a kind in `screens`."""
    bits: NDArray[Any] = _multiplied(a, b).view(BITS[a.dtype]).numpy()
    return bits


@cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16, and no pin keeps oneDNN from them."""
    has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return has and "ONEDNN_MAX_CPU_ISA" not in os.environ


def _operations(a: Sequence[int], b: Sequence[int], *others: Any, **more: Any) -> int:
    return 2 * a[0] * a[1] * b[0]


# what torch's counter of operations does not know
FORMULAS: dict[Any, Callable[..., int]] = {ops.mkldnn._linear_pointwise: _operations}
