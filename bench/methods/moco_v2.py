"""MoCo v2: Chen et al., "Improved baselines with momentum contrastive learning".

arXiv 2003.04297; the algorithm is MoCo's (He et al., 1911.05722, algorithm 1 and eq. 1). View x1 gives the query
q, view x2 the key k through a momentum encoder; negatives are a queue of past keys. tau: temperature. One direction
only; keys enter the queue after the step, so no key is its own image's negative in its own step.

Deviations: no shuffled batch normalisation, which needs several devices; the queue begins as unit rows of a seed's.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bench.encoders.base import Encoder
from bench.heads import Projector
from bench.losses import scaled, unit
from bench.methods.base import Batch, DataInfo, Method, Progress
from bench.momentum import Momentum
from bench.options import Fraction, Head, Positive, PositiveInt
from bench.support import SupportSet


class MoCoV2(Method):
    """MoCo v2.

    Args:
        encoder: f.
        data: the training subset.
        seed: the cell's seed.
        temperature: tau.
        normalize: q is of unit length, as keys always are.
        queue_size: how many negatives.
        momentum: m of the key encoder, constant.
        head: of the projection: none, linear or mlp.
        hidden: width of the projection's hidden layer.
        dim: of q and k.
    """

    title: ClassVar[str] = "MoCo v2"
    views: ClassVar[int] = 2

    def __init__(
        self,
        encoder: Encoder,
        data: DataInfo,
        *,
        seed: int,
        temperature: Positive,
        normalize: bool,
        queue_size: PositiveInt,
        momentum: Fraction,
        head: Head,
        hidden: PositiveInt,
        dim: PositiveInt,
    ):
        super().__init__(encoder)
        self.projector = Projector(encoder.dim, head, [hidden], dim, last="linear", norm=False)
        self.key_encoder = Momentum(encoder, self.projector)
        self.queue = SupportSet(queue_size, self.projector.dim, seed)
        self.temperature, self.normalize, self.momentum = temperature, normalize, momentum

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        x1, x2 = batch.views
        return {"q": self.projector(self.encoder(x1)), "k": self.key_encoder(x2)}  # (n, d) each

    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return moco_loss(e["q"], e["k"], self.queue.rows, self.temperature, normalize=self.normalize), {}

    def chance(self, rows: int) -> float:
        return math.log(self.queue.size + 1)

    def after_step(self, e: dict[str, Tensor], batch: Batch, progress: Progress) -> None:
        self.queue.enqueue(e["k"], batch.index)
        self.key_encoder.follow(self.momentum)


def moco_loss(
    q: Float[Tensor, "n d"],
    k: Float[Tensor, "n d"],
    queue: Float[Tensor, "m d"],
    temperature: float,
    *,
    normalize: bool = True,
) -> Float[Tensor, ""]:
    """Eq. 1 of 1911.05722: a row's candidates are its own key and the queue's m rows; mean.

    q and k are normalised here, q unless `normalize` is false, k carries no gradient; the queue is taken as it is. At
    chance it is ln(m + 1).
    """
    with torch.autocast(q.device.type, enabled=False):
        q, k = scaled(q, normalize=normalize), unit(k.detach())
        positive = (q * k).sum(1, keepdim=True)  # (n, 1)
        negative = q @ queue.to(q.dtype).mT  # (n, m)
    logits = torch.cat([positive, negative], 1) / temperature  # (n, 1 + m)
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))
