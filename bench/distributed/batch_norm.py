"""Batch normalisation over shards: the statistics are those of all rows of the batch, forwards and backwards.

Ioffe and Szegedy, 1502.03167, algorithm 1. In single precision inside for rows of half precision, as torch's own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.distributed.shards import Shards


def batch_norm(
    shards: Shards,
    parts: Sequence[Tensor],
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> list[Tensor]:
    """What torch's `batch_norm` makes of all rows in training, for those of this process's shards.

    Args:
        shards: how the batch is cut.
        parts: (n, c, ...) rows of each of this process's shards.
        running_mean: (c,) moved in place, alike on every process; None for none.
        running_var: (c,) likewise.
        weight: (c,) its gradient is that of all rows.
        bias: (c,) likewise.
        momentum: share of this batch in the running statistics.
        eps: added to the variance.
    """
    mean, var = _statistics(shards, parts)
    if running_mean is not None and running_var is not None:
        n = _values(shards, parts)
        running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
        running_var.mul_(1 - momentum).add_(var, alpha=momentum * n / (n - 1))
    return list(_Normalise.apply(shards, (mean, var, eps), weight, bias, *parts))


@torch.no_grad()
def _statistics(shards: Shards, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance (c,) of each channel over all rows, in at least single precision.

    The variance between shards is added to the mean variance inside them; no difference of large numbers.
    """
    kind = torch.promote_types(parts[0].dtype, torch.float32)
    unused = parts[0].new_zeros(2, parts[0].shape[1], dtype=kind)  # torch moves what it is given; by nothing, at 0.0
    inside = [torch.stack(torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)) for x in parts]  # (2, c) each
    means, variances = torch.stack(list(shards.gather(inside))).unbind(1)  # (shards, c) each
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0)


def _values(shards: Shards, parts: Sequence[Tensor]) -> int:
    """How many values of a channel all shards hold."""
    return shards.count * parts[0].numel() // parts[0].shape[1]


class _Normalise(torch.autograd.Function):
    """Rows normalised by a mean and a variance that depend on them."""

    @staticmethod
    def forward(
        ctx: Any,
        shards: Shards,
        statistics: tuple[Tensor, Tensor, float],
        weight: Tensor | None,
        bias: Tensor | None,
        *parts: Tensor,
    ) -> tuple[Tensor, ...]:
        mean, var, eps = statistics
        ctx.shards, ctx.eps = shards, eps
        ctx.save_for_backward(mean, var, weight, *parts)
        return tuple(torch.batch_norm(x, weight, bias, mean, var, False, 0.0, eps, False) for x in parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        mean, var, weight, *parts = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        pairs = list(zip(gradients, parts, strict=True))
        # (c,) each, over all rows: sums of g times normalised x, and of g
        along, across = ctx.shards.total([_sums(g, x, scale, (mean, var, ctx.eps)) for g, x in pairs])
        inverse, n = (var + ctx.eps).rsqrt(), _values(ctx.shards, parts)
        of_g = scale * inverse
        of_x = -of_g * inverse * along / n
        constant = -of_g * across / n - of_x * mean
        shape = (1, -1, *[1] * (parts[0].ndim - 2))
        of_g, of_x, constant = (factor.view(shape) for factor in (of_g, of_x, constant))
        # of_g g + of_x x + constant, rounded once
        moved = [torch.addcmul(constant, x, of_x).addcmul_(g, of_g).to(x.dtype) for g, x in pairs]
        wanted = ctx.needs_input_grad
        return None, None, along if wanted[2] else None, across if wanted[3] else None, *moved


def _sums(g: Tensor, x: Tensor, scale: Tensor, statistics: tuple[Tensor, Tensor, float]) -> Tensor:
    """(2, c): sums over a shard's rows of g times normalised x, and of g."""
    mean, var, eps = statistics
    # torch's gradient of weight and bias for fixed statistics, which are these sums
    wanted, unsaved = [False, True, True], mean.new_empty(0)  # a GPU wants the batch's statistics, if only empty ones
    _, along, across = torch.ops.aten.native_batch_norm_backward(
        g, x, scale, mean, var, unsaved, unsaved, False, eps, wanted
    )
    return torch.stack([along, across])
