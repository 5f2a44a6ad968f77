"""Products of single-precision matrices that carry no gradient, as fast as the pinned numerics allow."""

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, bfloat16, float32, ops

from bench import kernels

ROWS = 1024  # of each side in a block: its products stay in the cache
ENTRIES = 2**25  # of a block of products, where there is room for more than a cache
ROUNDING = {float32: 2.0**-24, bfloat16: 2.0**-8}  # by how much it may move a number, relatively
SHORT = 1e-15  # a length whose square is no longer exact in single precision


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


@torch.no_grad()
def maximum_inner_product(
    queries: Float[Tensor, "n d"], rows: Float[Tensor, "m d"], bias: Float[Tensor, " m"] | None = None
) -> Int[Tensor, " n"]:
    """The place of the row whose product with each query is the largest, the first of equals; nan is passed over.

    In single precision on a CPU, double precision decides between the rows that a fast product cannot tell apart: one
    in bfloat16 where the CPU has instructions for it, else in single precision. What is found follows neither.

    Args:
        queries: (n, d).
        rows: (m, d), one at least.
        bias: (m,) added to the products with each row; 0 unless told.
    """
    bias = rows.new_zeros(len(rows)) if bias is None else bias
    if queries.device.type == "cpu" and queries.dtype == rows.dtype == bias.dtype == float32:
        return _screened(queries.contiguous(), rows.contiguous(), bias.contiguous())
    blocks = queries.split(max(1, ENTRIES // len(rows)))
    return torch.cat([(block @ rows.mT + bias).max(1).indices for block in blocks])


def _screened(queries: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    kind = bfloat16 if multiplies_bfloat16() else float32
    bits, shift = (torch.uint16, np.uint32(16)) if kind == bfloat16 else (torch.uint32, np.uint32(0))
    best = torch.full((len(queries),), -torch.inf, dtype=torch.float64)
    places = torch.zeros(len(queries), dtype=torch.int64)
    lengths = torch.linalg.vector_norm(queries, dim=1)
    for first in range(0, len(rows), ROWS):
        block, added = rows[first : first + ROWS], bias[first : first + ROWS]
        off, coarse = _off(kind, lengths, block, added), block.to(kind)
        parts = (part.split(ROWS) for part in (queries, off, best, places))
        for some, *rest in zip(*parts, strict=True):
            products = _multiplied(some.to(kind), coarse).view(bits).numpy()
            off_some, best_some, places_some = (part.numpy() for part in rest)
            asked, among = (some.numpy(), off_some), (block.numpy(), added.numpy())
            kernels.search(products, shift, asked, among, first, (best_some, places_some))
    return places


def _off(kind: torch.dtype, lengths: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """By how much a product, its bias added, may be off for each query; infinitely where that is not known."""
    longest = torch.linalg.vector_norm(rows, dim=1).max()
    most = lengths * longest
    off = relative_error(kind, rows.shape[1]) * most + 4 * ROUNDING[float32] * (most + bias.abs().max())
    return torch.where((lengths > SHORT) & (longest > SHORT), off, torch.inf).nan_to_num(nan=torch.inf)


def relative_error(kind: torch.dtype, dim: int) -> float:
    """By how much a product of two vectors of length 1 may be off, if they and it are rounded to a kind of number.

    A sum of d products in single precision is off by less than (d + 4) / 2^24, in whatever order it is summed.
    """
    rounded = 0.0 if kind == float32 else 3 * ROUNDING[kind] * (1 + ROUNDING[kind]) ** 2
    return rounded + (dim + 4) * ROUNDING[float32]


@cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16, and no pin keeps oneDNN from them."""
    has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return has and "ONEDNN_MAX_CPU_ISA" not in os.environ


def _operations(a: Sequence[int], b: Sequence[int], *others: Any, **more: Any) -> int:
    return 2 * a[0] * a[1] * b[0]


# what torch's counter of operations does not know
FORMULAS: dict[Any, Callable[..., int]] = {ops.mkldnn._linear_pointwise: _operations}
