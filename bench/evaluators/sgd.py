"""Training by stochastic gradient descent inside an evaluation: addressed order, no generator consumed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.augment import make_views
from bench.draws import seed_torch
from bench.errors import BenchError
from bench.evaluators.base import Labelled
from bench.methods.base import ParameterGroup
from bench.optim import build, learning_rate, set_learning_rate
from bench.random import Address, derive, permutation

Loss = Callable[[NDArray[np.int64], int], Tensor]
"""Positions (m,) of rows and an epoch to the mean loss of those rows."""


class DivergedError(BenchError, RuntimeError):
    """Weights that are not finite; says what to lower."""


@dataclass(frozen=True)
class Sgd:
    """How long and how fast.

    Args:
        epochs: each takes every row once.
        batch: rows per step; the last step of an epoch takes what is left.
        rate: the learning rate of a step, from 0.
        momentum: of SGD.
        weight_decay: of matrices and kernels, not of biases and normalisation.
    """

    epochs: int
    batch: int
    rate: Callable[[int], float]
    momentum: float
    weight_decay: float


def descend(
    module: nn.Module,
    groups: Sequence[ParameterGroup],
    loss: Loss,
    ids: Int[Tensor, " n"],
    sgd: Sgd,
    *,
    seed: int,
    purpose: str,
    fewest: int = 1,
) -> None:
    """Move a module's parameters, in place.

    Args:
        module: whose parameters `groups` name.
        groups: what moves, with factors of the learning rate.
        loss: of some of the rows.
        ids: (n,) of all rows; they address the order.
        sgd: how long and how fast.
        seed: the cell's.
        purpose: of every address.
        fewest: rows that a step needs; a shorter last batch is left out.

    Raises:
        DivergedError: the learning rate is too high.
    """
    options: dict[str, Any] = {"name": "sgd", "lr": sgd.rate(0), "momentum": sgd.momentum}
    options |= {"weight_decay": sgd.weight_decay, "decay_norm_bias": False}
    optimizer = build(module, groups, options)
    if min(sgd.batch, len(ids)) < fewest:
        raise ValueError(f"{purpose}: a step wants {fewest} rows, not {min(sgd.batch, len(ids))}")
    step = 0
    for epoch in range(sgd.epochs):
        order = permutation(seed, purpose, ids.numpy(), epoch)
        for start in range(0, len(order), sgd.batch):
            rows = order[start : start + sgd.batch]
            if len(rows) < fewest:
                continue
            set_learning_rate(optimizer, sgd.rate(step))
            with torch.random.fork_rng(devices=[]):
                seed_torch(derive(seed, purpose, "torch", step))
                value = loss(rows, epoch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            step += 1
    if not all(bool(p.isfinite().all()) for p in module.parameters()):
        raise DivergedError(f"{purpose}: not finite after {step} steps; lower lr: the rate was {sgd.rate(0):g}")


def rates(
    base: float, rows: int, epochs: int, batch: int, *, decay: str, milestones: Sequence[int], factor: float
) -> Callable[[int], float]:
    """The learning rate of each step: `base`, then a cosine to 0, or times `factor` at each milestone (epochs)."""
    per_epoch = -(-rows // batch)
    return partial(
        learning_rate,
        base=base,
        steps=epochs * per_epoch,
        warmup=0,
        decay=decay,
        milestones=[epoch * per_epoch for epoch in milestones],
        factor=factor,
    )


def crop_and_flip(scale: Sequence[float], ratio: Sequence[float], flip: float) -> list[dict[str, Any]]:
    """A recipe's ops: random resized crop, and a mirror image with probability `flip`."""
    return [{"crop": {"scale": scale, "ratio": ratio}}, {"flip": {"p": flip}}]


def views(
    part: Labelled,
    ops: Sequence[dict[str, Any]],
    seed: int,
    purpose: str,
    rows: NDArray[np.int64],
    epoch: int,
) -> Float[Tensor, "m c h w"]:
    """Images of some rows as `ops` show them in an epoch, square and as large as they are high, where labels lie."""
    recipe = {"views": [{"count": 1, "size": part.images.shape[1], "ops": ops}]}
    chosen = torch.from_numpy(rows)
    address = Address(seed, purpose, part.ids[chosen].numpy(), epoch)
    return make_views(recipe, part.images[chosen].to(part.labels.device), address)[0]


def linear_head(dim: int, classes: int, std: float, seed: int, purpose: str) -> nn.Linear:
    """A linear classifier with weights N(0, std) of a seed's and biases 0."""
    head = nn.utils.skip_init(nn.Linear, dim, classes)
    generator = torch.Generator().manual_seed(derive(seed, purpose, "weights"))
    nn.init.normal_(head.weight, 0, std, generator=generator)
    nn.init.zeros_(head.bias)
    return head
