"""SimSiam: Chen and He, "Exploring simple siamese representation learning".

arXiv 2011.10566, section 3, eq. 1 to 4 and algorithm 1. z = projection of f(x), p = prediction of z; each view's p is
drawn to the other view's z, which carries no gradient. Neither negatives nor a momentum branch.

Deviations: widths are options; the predictor's learning rate follows the schedule (section 4.2 also fixes it).
"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from bench.encoders.base import Encoder
from bench.heads import Projector, mlp
from bench.losses import spread, unit
from bench.methods.base import Batch, DataInfo, Method
from bench.options import Head, PositiveInt


class SimSiam(Method):
    """SimSiam.

    Args:
        encoder: f.
        data: the training subset.
        seed: the cell's seed.
        head: of the projection: none, linear or mlp.
        dim: of z and p, and width of the projection's hidden layers.
        bottleneck: width of the prediction's hidden layer.
    """

    title: ClassVar[str] = "SimSiam"
    views: ClassVar[int] = 2

    def __init__(
        self, encoder: Encoder, data: DataInfo, *, seed: int, head: Head, dim: PositiveInt, bottleneck: PositiveInt
    ):
        super().__init__(encoder)
        self.projector = Projector(encoder.dim, head, [dim, dim], dim, last="plain_norm")
        self.predictor = mlp([self.projector.dim, bottleneck, self.projector.dim], last="linear")

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = (self.projector(self.encoder(x)) for x in batch.views)  # (n, d) each
        return {"z1": z1, "z2": z2, "p1": self.predictor(z1), "p2": self.predictor(z2)}

    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        loss = (simsiam_loss(e["p1"], e["z2"]) + simsiam_loss(e["p2"], e["z1"])) / 2
        return loss, {"z_std": spread(e["z1"])}


def simsiam_loss(p: Float[Tensor, "n d"], z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Eq. 1, one direction: -cos(p, z), mean over rows; z carries no gradient (eq. 3)."""
    return -(unit(p) * unit(z.detach())).sum(1).mean()
