"""SNCLR: Ge et al., "Soft neighbors are positive supporters in contrastive visual representation learning".

arXiv 2303.17142, section 3. Two views of an image; y = projection of f(x), z = prediction of y; y' = projection by a
momentum branch. The K nearest neighbours of y2' in a queue of past y' support the positive y2' of z1, each with a
weight w_i ("positiveness") from a cross-attention of y1 with it: w = softmax_i(f1(y1) . f2(NN_i)) / gamma, f1 and f2
being learnt projections; NN_0 is y2' itself, w_0 = 1. Negatives are the other images' y2' and neighbours. tau:
temperature.

Both directions are averaged and look up the queue as it was before the step; view 2's y' enters it after the step.
Keys and neighbours carry no gradient, w does (to f1, f2 and y1). The branch's momentum rises to 1 by a cosine.

Deviations: the loss is the paper's, with the weighted sum inside the logarithm; the released code takes the weighted
sum of logarithms, has no f1 and f2, and keeps a queue per device. f1 reads y1 at unit length, as neighbours are.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.encoders.base import Encoder
from bench.heads import mlp
from bench.losses import similarities, unit
from bench.methods.base import Batch, DataInfo, Method, Progress
from bench.momentum import Momentum, cosine_to_one
from bench.options import Annotated, AtMost, Fraction, NonNegativeInt, Positive, PositiveInt
from bench.support import SupportSet


class SNCLR(Method):
    """SNCLR.

    Args:
        encoder: f.
        data: the training subset.
        seed: the cell's seed.
        temperature: tau.
        queue_size: past projections of the momentum branch.
        k: K, neighbours; 0 is contrastive learning with a momentum branch.
        scale: gamma.
        momentum: of the momentum branch at the start.
        hidden: width of the hidden layers of projection and prediction.
        dim: of y and z.
    """

    title: ClassVar[str] = "SNCLR"
    views: ClassVar[int] = 2

    def __init__(
        self,
        encoder: Encoder,
        data: DataInfo,
        *,
        seed: int,
        temperature: Positive,
        queue_size: PositiveInt,
        k: Annotated[NonNegativeInt, AtMost("queue_size")],
        scale: Positive,
        momentum: Fraction,
        hidden: PositiveInt,
        dim: PositiveInt,
    ):
        super().__init__(encoder)
        self.projector = mlp([encoder.dim, hidden, hidden, dim], last="plain_norm")
        self.predictor = mlp([dim, hidden, dim], last="plain_norm")
        self.f1 = nn.Linear(dim, dim, bias=False) if k else None
        self.f2 = nn.Linear(dim, dim, bias=False) if k else None
        self.branch = Momentum(encoder, self.projector)
        self.queue = SupportSet(queue_size, dim, seed)
        self.temperature, self.k, self.scale, self.momentum = temperature, k, scale, momentum

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        y1, y2 = (self.projector(self.encoder(x)) for x in batch.views)  # (n, d) each
        k1, k2 = (self.branch(x) for x in batch.views)
        e = {"z1": self.predictor(y1), "z2": self.predictor(y2), "k1": k1, "k2": k2}
        if self.f1 is not None and self.f2 is not None:
            nn1, nn2 = (self.queue.nearest(k, self.k)[0] for k in (k1, k2))  # (n, K, d) each
            for name, y, neighbours in (("1", y1, nn2), ("2", y2, nn1)):
                a = torch.einsum("nd,nkd->nk", self.f1(unit(y)), self.f2(neighbours))
                e |= {"a" + name: a, "nn" + name: neighbours}  # attention of y, to its positive's neighbours
        return e

    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        losses, logs = [], {}
        for z, keys, own in ((e["z1"], e["k2"], "1"), (e["z2"], e["k1"], "2")):
            neighbours = e["nn" + own] if self.k else keys[:, None][:, :0]  # (n, K, d)
            weights = positiveness(e["a" + own], self.scale) if self.k else keys[:, :0]  # (n, K)
            losses.append(snclr_loss(z, keys, neighbours, weights, self.temperature))
        if self.k:
            logs["largest_weight"] = positiveness(e["a1"], self.scale).max(1).values.mean().item()
        return (losses[0] + losses[1]) / 2, logs

    def chance(self, rows: int) -> float:
        return math.log(rows * (self.k + 1) / (1 + 1 / self.scale)) if self.k else math.log(rows)

    def after_step(self, e: dict[str, Tensor], batch: Batch, progress: Progress) -> None:
        self.queue.enqueue(e["k2"], batch.index)
        # the released code moves the branch before the next step, at that step's momentum
        self.branch.follow(cosine_to_one(self.momentum, progress.step + 1, progress.steps))


def positiveness(attention: Float[Tensor, "n k"], scale: float) -> Float[Tensor, "n k"]:
    """Section 3.2: softmax over a row's own K neighbours, divided by gamma."""
    dtype = torch.promote_types(attention.dtype, torch.float32)
    return attention.to(dtype).softmax(1) / scale


def snclr_loss(
    z: Float[Tensor, "n d"],
    keys: Float[Tensor, "n d"],
    neighbours: Float[Tensor, "n k d"],
    weights: Float[Tensor, "n k"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Section 3.1: -log of the weighted share of a row's own key and K neighbours among all n (K + 1); mean.

    Weights stand in the numerator only, the key's is 1. z, keys and neighbours are normalised here, keys and
    neighbours carry no gradient; weights are taken as they are. K = 0 is InfoNCE; at chance the loss is
    ln(n (K + 1) / (1 + sum of weights)).
    """
    n = len(z)
    candidates = torch.cat([unit(keys)[:, None], unit(neighbours)], 1).detach()  # (n, K + 1, d)
    logits = similarities(z, candidates.flatten(0, 1)) / temperature  # (n, n (K + 1))
    logits = logits.view(n, n, -1)
    rows = torch.arange(n, device=z.device)
    own = logits[rows, rows]  # (n, K + 1)
    weights = torch.cat([weights.new_ones(n, 1), weights], 1).to(own.dtype)
    shift = own.detach().masked_fill(weights == 0, -torch.inf).amax(1, keepdim=True)
    highest = math.log(torch.finfo(own.dtype).max) / 2  # that only a candidate of weight 0 can reach
    supported = (weights * (own - shift).clamp(max=highest).exp()).sum(1).log() + shift[:, 0]  # log of the numerator
    return (logits.flatten(1).logsumexp(1) - supported).mean()
