"""NNCLR: Dwibedi et al., "With a little help from my friends: nearest-neighbor contrastive learning".

arXiv 2104.14548, section 3.2. Two views x1, x2 of an image; z = projection of f(x), p = prediction of z.
The positive of p2 is not z1 but NN(z1, Q), its nearest neighbour in the support set Q of past embeddings;
the other images' p are negatives (n candidates, none of the same view). tau: temperature.

Both directions are averaged; both look up Q as it was before the step; the neighbour carries no gradient;
view 1's z alone enters Q, after the step. Local views (multi-crop) are predicted from both neighbours too, and are
not looked up. An older embedding of the same image may be the neighbour: how
often it is, and how often the neighbour's class is the image's, is in the history (rows of Q that no image
has filled yet count as neither).

The ablations of sections 4.3 and 4.4 are options: the positive is the image itself, its `k` nearest neighbours (the
loss is the mean over them), the nearest of its own class, or a soft one, the mean of Q weighted by
softmax(z . q / tau); z of a momentum branch, looked up and stored; no prediction; a Q embedded anew before each epoch.

Deviations: none in the loss. Widths are options. How k neighbours enter the loss, the soft one's temperature and the
branch's constant momentum are ours: the paper does not say. Where Q holds too few rows of a class, the positive is the
image itself.
"""

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.encoders.base import Encoder
from bench.heads import Projector, mlp
from bench.losses import info_nce, similarities
from bench.methods.base import Batch, DataInfo, Extract, Method, Progress
from bench.momentum import Momentum
from bench.options import Annotated, AtMost, Fraction, Head, Positive, PositiveInt
from bench.support import NOISE, SupportSet


class NNCLR(Method):
    """NNCLR.

    Args:
        encoder: f.
        data: the training subset.
        seed: the cell's seed.
        temperature: tau.
        normalize: compare by cosine; else p as it is.
        positive: nearest, self, oracle (the nearest of the same class) or soft.
        k: how many neighbours, of nearest and oracle.
        support_size: how many embeddings Q holds.
        warm_up: the positive is the image itself until embeddings have filled Q.
        refresh: embed the images in Q anew, as they are, before each epoch.
        momentum: of a branch that gives z; null for none.
        head: of the projection: none, linear or mlp.
        hidden: width of the projection's two hidden layers.
        dim: of z and p.
        predictor: p is a prediction of z; else z itself.
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
        normalize: bool,
        positive: Literal["nearest", "self", "oracle", "soft"],
        k: Annotated[PositiveInt, AtMost("support_size")],
        support_size: PositiveInt,
        warm_up: bool,
        refresh: bool,
        momentum: Fraction | None,
        head: Head,
        hidden: PositiveInt,
        dim: PositiveInt,
        predictor: bool,
        predictor_hidden: PositiveInt,
    ):
        super().__init__(encoder)
        self.projector = Projector(encoder.dim, head, [hidden, hidden], dim, last="norm")
        dim = self.projector.dim
        self.predictor = mlp([dim, predictor_hidden, dim], last="linear") if predictor else nn.Identity()
        self.branch = None if momentum is None else Momentum(encoder, self.projector)
        self.support = SupportSet(support_size, dim, seed)
        self.register_buffer("labels", torch.full((data.rows,), NOISE))  # of images seen
        self.temperature, self.normalize, self.positive, self.k = temperature, normalize, positive, k
        self.warm_up, self.refresh, self.momentum = warm_up, refresh, momentum

    def before_epoch(self, epoch: int, extract: Extract) -> None:
        if self.refresh and epoch > 0:
            self.support.replace(extract(self.branch or nn.Sequential(self.encoder, self.projector)))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        z = [self.projector(self.encoder(x)) for x in batch.views]  # (n, d) each
        predictions = {f"p{i}": self.predictor(rows) for i, rows in enumerate(z, 1)}
        looked_up = z[: self.views] if self.branch is None else [self.branch(x) for x in batch.views[: self.views]]
        return {f"z{i}": rows for i, rows in enumerate(looked_up, 1)} | predictions

    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        positives1, logs = self._positives(e["z1"], batch)  # (n, k, d)
        positives2, _ = self._positives(e["z2"], batch)
        p1, p2, *local = (e[f"p{i}"] for i in range(1, len(batch.views) + 1))
        loss1 = self._predict(positives1, [p2, *local])
        loss2 = self._predict(positives2, [p1, *local])
        return (loss1 + loss2) / 2, logs

    def _positives(self, z: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """(n, k, d) positives of the images with these z, and what the neighbours among them are like."""
        itself = z.detach()[:, None]  # (n, 1, d)
        if self.positive == "self":
            return itself, {}
        if self.warm_up and not self.support.full:
            return itself, {} if self.positive == "soft" else _logs(0.0, 0.0)
        if self.positive == "soft":
            return soft_neighbour(z, self.support.rows, self.temperature)[:, None], {}
        origins = self.support.index  # (q,)
        if self.positive == "nearest":
            neighbours, positions = self.support.nearest(z, self.k)  # (n, k, d), (n, k)
        else:
            same = self._classes(origins) == batch.labels[:, None]  # (n, q)
            enough = same.sum(1, keepdim=True) >= self.k  # (n, 1)
            neighbours, positions = self.support.nearest(z, self.k, same | ~enough)
            neighbours = torch.where(enough[:, None], neighbours, itself.to(neighbours.dtype))
        first = origins[positions[:, 0]]
        pure = self._classes(first) == batch.labels
        own = first == batch.index
        return neighbours, _logs(pure.float().mean().item(), own.float().mean().item())

    def _classes(self, origins: Tensor) -> Tensor:
        return torch.where(origins == NOISE, NOISE, self.labels[origins])

    def _predict(self, positives: Tensor, predictions: list[Tensor]) -> Tensor:
        pairs = [(positive, p) for positive in positives.unbind(1) for p in predictions]
        return torch.stack([nnclr_loss(*pair, self.temperature, normalize=self.normalize) for pair in pairs]).mean()

    def chance(self, rows: int) -> float:
        return math.log(rows)

    def after_step(self, e: dict[str, Tensor], batch: Batch, progress: Progress) -> None:
        self.support.enqueue(e["z1"], batch.index)
        self.labels[batch.index] = batch.labels
        if self.branch is not None and self.momentum is not None:
            self.branch.follow(self.momentum)


def _logs(purity: float, same_image: float) -> dict[str, float]:
    return {"neighbour_purity": purity, "same_image": same_image}


def soft_neighbour(z: Float[Tensor, "n d"], rows: Float[Tensor, "q d"], temperature: float) -> Float[Tensor, "n d"]:
    """Section 4.4's soft nearest neighbour: the mean of the support set's rows, weighted by softmax(z . q / tau)."""
    with torch.no_grad():
        return (similarities(z, rows) / temperature).softmax(1) @ rows.to(torch.promote_types(z.dtype, rows.dtype))


def nnclr_loss(
    neighbours: Float[Tensor, "n d"], predictions: Float[Tensor, "n d"], temperature: float, *, normalize: bool = True
) -> Float[Tensor, ""]:
    """Section 3.2: row i's logits are NN_i . p_k / tau over the n predictions, its positive is p_i; mean.

    Both are normalised here, unless `normalize` is false; neighbours carry no gradient. At chance, and at collapse, it
    is ln n.
    """
    return info_nce(neighbours.detach(), predictions, temperature, normalize=normalize)
