"""BYOL: Grill et al., "Bootstrap your own latent: a new approach to self-supervised learning".

arXiv 2006.07733, section 3.1 and eq. 2. An online branch (encoder, projection z, prediction p) predicts the
projection z' of a target branch, its moving average; no negatives. Both directions are added; the target carries no
gradient. tau: momentum of the target, from its base to 1 by a cosine; the average follows the optimiser's step.

Deviations: the target begins as a copy of the online branch (the released code draws it anew). Widths are options.
"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from bench.encoders.base import Encoder
from bench.heads import Projector, mlp
from bench.losses import precise, spread, unit
from bench.methods.base import Batch, DataInfo, Method, Progress
from bench.momentum import Momentum, cosine_to_one
from bench.options import Fraction, Head, PositiveInt


class BYOL(Method):
    """BYOL.

    Args:
        encoder: f.
        data: the training subset.
        seed: the cell's seed.
        momentum: tau at the start.
        normalize: p and z' are of unit length.
        head: of the projection: none, linear or mlp.
        hidden: width of the hidden layers of projection and prediction.
        dim: of z and p.
    """

    title: ClassVar[str] = "BYOL"
    views: ClassVar[int] = 2

    def __init__(
        self,
        encoder: Encoder,
        data: DataInfo,
        *,
        seed: int,
        momentum: Fraction,
        normalize: bool,
        head: Head,
        hidden: PositiveInt,
        dim: PositiveInt,
    ):
        super().__init__(encoder)
        self.projector = Projector(encoder.dim, head, [hidden], dim, last="unbiased")
        self.predictor = mlp([self.projector.dim, hidden, self.projector.dim], last="unbiased")
        self.target = Momentum(encoder, self.projector)
        self.momentum, self.normalize = momentum, normalize

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        p1, p2 = (self.predictor(self.projector(self.encoder(x))) for x in batch.views)  # (n, d) each
        z1, z2 = (self.target(x) for x in batch.views)
        return {"p1": p1, "p2": p2, "z1": z1, "z2": z2}

    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        pairs = (e["p1"], e["z2"]), (e["p2"], e["z1"])
        loss1, loss2 = (byol_loss(p, z, normalize=self.normalize) for p, z in pairs)
        return loss1 + loss2, {"z_std": spread(e["z1"])}

    def after_step(self, e: dict[str, Tensor], batch: Batch, progress: Progress) -> None:
        self.target.follow(cosine_to_one(self.momentum, progress.step, progress.steps))


def byol_loss(p: Float[Tensor, "n d"], z: Float[Tensor, "n d"], *, normalize: bool = True) -> Float[Tensor, ""]:
    """Eq. 2, one direction: |p / |p| - z / |z||^2 = 2 - 2 cos(p, z), mean over rows; z carries no gradient.

    |p - z|^2 where `normalize` is false.
    """
    if not normalize:
        return (precise(p) - precise(z.detach())).square().sum(1).mean()
    return 2 - 2 * (unit(p) * unit(z.detach())).sum(1).mean()
