"""Barlow Twins: Zbontar et al., "Barlow Twins: self-supervised learning via redundancy reduction".

arXiv 2103.03230, eq. 1 and 2, algorithm 1. C is the cross-correlation, over the batch, of the two views' projections
z1 and z2, each entry normalised to mean 0 and variance 1; the loss draws C to the identity. lambda: `weight`.

Deviations: widths are options; the loss has no factor in front (others scale it with the learning rate).
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bench.encoders.base import Encoder
from bench.heads import Projector
from bench.losses import precise
from bench.methods.base import Batch, DataInfo, Method
from bench.options import Head, NonNegative, PositiveInt

EPSILON = 1e-5  # added to the variance, as in batch normalisation


class BarlowTwins(Method):
    """Barlow Twins.

    Args:
        encoder: f.
        data: the training subset.
        seed: the cell's seed.
        weight: lambda, of the off-diagonal terms.
        head: of the projection: none, linear or mlp.
        hidden: width of the projection's two hidden layers.
        dim: of z.
    """

    title: ClassVar[str] = "Barlow Twins"
    views: ClassVar[int] = 2

    def __init__(
        self,
        encoder: Encoder,
        data: DataInfo,
        *,
        seed: int,
        weight: NonNegative,
        head: Head,
        hidden: PositiveInt,
        dim: PositiveInt,
    ):
        super().__init__(encoder)
        self.projector = Projector(encoder.dim, head, [hidden, hidden], dim, last="unbiased")
        self.weight = weight

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = (self.projector(self.encoder(x)) for x in batch.views)  # (n, d) each
        return {"z1": z1, "z2": z2}

    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return barlow_twins_loss(e["z1"], e["z2"], self.weight), {}


def barlow_twins_loss(z1: Float[Tensor, "n d"], z2: Float[Tensor, "n d"], weight: float) -> Float[Tensor, ""]:
    """Eq. 1: sum of (C_ii - 1)^2 plus weight times the sum of C_ij^2 over i != j, with eq. 2's C."""
    with torch.autocast(z1.device.type, enabled=False):
        correlation = _standardised(z1).mT @ _standardised(z2) / len(z1)  # (d, d)
    diagonal = correlation.diagonal()
    redundant = correlation - torch.diag_embed(diagonal)
    return (diagonal - 1).square().sum() + weight * redundant.square().sum()


def _standardised(z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Mean 0 and (population) variance 1 over the batch, in at least single precision."""
    z = precise(z)
    centred = z - z.mean(0)
    return centred * (centred.square().mean(0) + EPSILON).rsqrt()
