"""SimCLR: Chen et al., "A simple framework for contrastive learning of visual representations".

arXiv 2002.05709, section 2.1, eq. 1 and algorithm 1. Two views x1, x2 of an image; h = f(x), z = g(h)
with a projection head g of two layers; of the 2n - 1 other projections in the batch, the other view of
the same image is the positive. tau: temperature.

As an ablation, the n other views are the only candidates (InfoNCE, n keys), in both directions.

Deviations: batch normalisation in the head's hidden layer, as the authors' code has it, none after its
last layer. The loss is the mean over the 2n rows (their code adds two means over n, twice this).
"""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bench.encoders.base import Encoder
from bench.heads import Projector
from bench.losses import info_nce, scaled, similarities
from bench.methods.base import Batch, DataInfo, Method
from bench.options import Head, Positive, PositiveInt


class SimCLR(Method):
    """SimCLR.

    Args:
        encoder: f.
        data: the training subset.
        seed: the cell's seed.
        candidates: of a view, all others in the batch (the paper's), or the other_view of each image.
        temperature: tau.
        normalize: compare by cosine; else by plain products.
        head: of the projection: none, linear or mlp.
        hidden: width of the projection head's hidden layer.
        dim: of z.
    """

    title: ClassVar[str] = "SimCLR"
    views: ClassVar[int] = 2

    def __init__(
        self,
        encoder: Encoder,
        data: DataInfo,
        *,
        seed: int,
        candidates: Literal["all", "other_view"],
        temperature: Positive,
        normalize: bool,
        head: Head,
        hidden: PositiveInt,
        dim: PositiveInt,
    ):
        super().__init__(encoder)
        self.projector = Projector(encoder.dim, head, [hidden], dim, last="linear")
        self.candidates, self.temperature, self.normalize = candidates, temperature, normalize

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        x1, x2 = batch.views
        return {"z1": self.projector(self.encoder(x1)), "z2": self.projector(self.encoder(x2))}

    def chance(self, rows: int) -> float:
        return math.log(2 * rows - 1 if self.candidates == "all" else rows)

    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        z1, z2 = e["z1"], e["z2"]
        if self.candidates == "all":
            return nt_xent(z1, z2, self.temperature, normalize=self.normalize), {}
        both = [info_nce(*pair, self.temperature, normalize=self.normalize) for pair in ((z1, z2), (z2, z1))]
        return (both[0] + both[1]) / 2, {}


def nt_xent(
    z1: Float[Tensor, "n d"], z2: Float[Tensor, "n d"], temperature: float, *, normalize: bool = True
) -> Float[Tensor, ""]:
    """Eq. 1 over the 2n rows of algorithm 1, each with 2n - 1 candidates; mean.

    z1 and z2 are normalised here, unless `normalize` is false. At chance, and at collapse, it is ln(2n - 1).
    """
    n = len(z1)
    z = torch.cat([scaled(rows, normalize=normalize) for rows in (z1, z2)])  # (2n, d)
    logits = similarities(z, z, normalize=normalize) / temperature  # (2n, 2n)
    itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    positives = torch.arange(2 * n, device=z.device).roll(n)  # row i's is i + n, modulo 2n
    return F.cross_entropy(logits.masked_fill(itself, -torch.inf), positives)
