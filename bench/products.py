"""Products of single-precision matrices that carry no gradient, as fast as the pinned numerics allow."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, float32, ops

from bench.numerics import is_portable


def rows_by_rows(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """The products of every row of a with every row of b.

    Portable numerics hold MKL, which torch multiplies with, to instructions that every x86-64 CPU has; oneDNN, which
    convolves, may use AVX2, and is 2 to 3 times as fast. Numerics are in a cell's key, so one path serves a key.
    """
    if is_portable() and a.device.type == "cpu" and a.dtype == b.dtype == float32:
        product: Tensor = ops.mkldnn._linear_pointwise(a.contiguous(), b.contiguous(), None, "none", [], "")
        return product
    return a @ b.mT


def _operations(a: Sequence[int], b: Sequence[int], *others: Any, **more: Any) -> int:
    return 2 * a[0] * a[1] * b[0]


# what torch's counter of operations does not know
FORMULAS: dict[Any, Callable[..., int]] = {ops.mkldnn._linear_pointwise: _operations}
