"""NNCLR: Dwibedi et al., "With a little help from my friends: nearest-neighbor contrastive learning".

arXiv 2104.14548, section 3.2. Two views x1, x2 of an image; z = projection of f(x), p = prediction of z.
The positive of p2 is not z1 but NN(z1, Q), its nearest neighbour in the support set Q of past embeddings;
the other images' p are negatives (n candidates, none of the same view). tau: temperature.

Both directions are averaged; both look up Q as it was before the step; the neighbour carries no gradient;
view 1's z alone enters Q, after the step. Local views (multi-crop) are predicted from both neighbours too, and are
not looked up. An older embedding of the same image may be the neighbour: how
often it is, and how often the neighbour's class is the image's, is in the history (rows of Q that no image
has filled yet count as neither).

Deviations: none in the loss. Widths are options.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bench.encoders.base import Encoder
from bench.heads import mlp
from bench.losses import similarities
from bench.methods.base import Batch, DataInfo, Method, Progress
from bench.options import Positive, PositiveInt
from bench.support import NOISE, SupportSet


class NNCLR(Method):
    """NNCLR, without a momentum encoder.

    Args:
        encoder: f.
        data: the training subset.
        seed: the cell's seed.
        temperature: tau.
        support_size: how many embeddings Q holds.
        hidden: width of the projection's two hidden layers.
        dim: of z and p.
        predictor_hidden: width of the prediction's hidden layer.
    """

    title: ClassVar[str] = "NNCLR"
    views: ClassVar[int] = 2
    local_views: ClassVar[bool] = True
    labels: Tensor

    def __init__(
        self,
        encoder: Encoder,
        data: DataInfo,
        *,
        seed: int,
        temperature: Positive,
        support_size: PositiveInt,
        hidden: PositiveInt,
        dim: PositiveInt,
        predictor_hidden: PositiveInt,
    ):
        super().__init__(encoder)
        self.projector = mlp([encoder.dim, hidden, hidden, dim], last="norm")
        self.predictor = mlp([dim, predictor_hidden, dim], last="linear")
        self.support = SupportSet(support_size, dim, seed)
        self.register_buffer("labels", torch.full((data.rows,), NOISE))  # of images seen; for the history
        self.temperature = temperature

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        z = [self.projector(self.encoder(x)) for x in batch.views]  # (n, d) each
        predictions = {f"p{i}": self.predictor(rows) for i, rows in enumerate(z, 1)}
        return {"z1": z[0], "z2": z[1], **predictions}

    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        nn1, positions = self.support.nearest(e["z1"])  # (n, 1, d), (n, 1)
        nn2, _ = self.support.nearest(e["z2"])
        p1, p2, *local = (e[f"p{i}"] for i in range(1, len(batch.views) + 1))
        loss1 = self._predict(nn1[:, 0], [p2, *local])
        loss2 = self._predict(nn2[:, 0], [p1, *local])
        origin = self.support.index[positions[:, 0]]  # (n,)
        known = origin != NOISE
        pure = known & (self.labels[origin] == batch.labels)
        same = known & (origin == batch.index)
        logs = {"neighbour_purity": pure.float().mean().item(), "same_image": same.float().mean().item()}
        return (loss1 + loss2) / 2, logs

    def _predict(self, neighbours: Tensor, predictions: list[Tensor]) -> Tensor:
        losses = [nnclr_loss(neighbours, p, self.temperature) for p in predictions]
        return torch.stack(losses).mean()

    def chance(self, rows: int) -> float:
        return math.log(rows)

    def after_step(self, e: dict[str, Tensor], batch: Batch, progress: Progress) -> None:
        self.support.enqueue(e["z1"], batch.index)
        self.labels[batch.index] = batch.labels


def nnclr_loss(
    neighbours: Float[Tensor, "n d"], predictions: Float[Tensor, "n d"], temperature: float
) -> Float[Tensor, ""]:
    """Section 3.2: row i's logits are NN_i . p_k / tau over the n predictions, its positive is p_i; mean.

    Both are normalised here; neighbours carry no gradient. At chance, and at collapse, it is ln n.
    """
    logits = similarities(neighbours.detach(), predictions) / temperature  # (n, n)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
