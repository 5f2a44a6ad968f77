"""Products of single-precision matrices that carry no gradient, as fast as the pinned numerics allow."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, float32, int64, ops

from bench import kernels


def rows_by_rows(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], bias: Float[Tensor, " m"] | None = None
) -> Float[Tensor, "n m"]:
    """The products of every row of a with every row of b, to which a number for each row of b is added.

    By oneDNN on a CPU: portable numerics hold MKL, which torch multiplies with, to instructions that every x86-64 CPU
    has, where oneDNN may use AVX2 and is 2 to 3 times as fast; under native numerics it is not the slower one.
    """
    if a.device.type == "cpu" and a.dtype == b.dtype == float32:
        product: Tensor = ops.mkldnn._linear_pointwise(a.contiguous(), b.contiguous(), bias, "none", [], "")
        return product
    return a @ b.mT if bias is None else (a @ b.mT).add_(bias)


def largest(values: Float[Tensor, "n m"]) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """The largest value of every row and its place, the first of equals."""
    if values.device.type == "cpu" and values.dtype == float32:
        best, places = values.new_empty(len(values)), values.new_empty(len(values), dtype=int64)
        kernels.largest(values.contiguous().numpy(), best.numpy(), places.numpy())
        return best, places
    found = values.max(1)
    return found.values, found.indices


def _operations(a: Sequence[int], b: Sequence[int], *others: Any, **more: Any) -> int:
    return 2 * a[0] * a[1] * b[0]


# what torch's counter of operations does not know
FORMULAS: dict[Any, Callable[..., int]] = {ops.mkldnn._linear_pointwise: _operations}
