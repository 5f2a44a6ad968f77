"""SNCLR: Ge et al., "Soft neighbors are positive supporters in contrastive visual representation learning".

arXiv 2303.17142, section 3. Two views of an image; y = projection of f(x), z = prediction of y; y' = projection by a
momentum branch. The K nearest neighbours of y2' in a queue of past y' support the positive y2' of z1, each with a
weight w_i ("positiveness") from a cross-attention of y1 with it: w = softmax_i(f1(y1) . f2(NN_i)) / gamma, f1 and f2
being learnt projections; NN_0 is y2' itself, w_0 = 1. Negatives are the other images' y2' and neighbours. tau:
temperature.

The ablations are options: a positiveness of 0 or 1, or 1 for what softmax gives more than 1 / K and 0 for the others;
the plain cosine for an attention; no momentum branch, the keys then being the online y; K; gamma; the queue's length.

Both directions are averaged and look up the queue as it was before the step; view 2's y' enters it after the step.
Keys and neighbours carry no gradient, w does (to f1, f2 and y1). The branch's momentum rises to 1 by a cosine.

Deviations: the loss is the paper's, with the weighted sum inside the logarithm; the released code takes the weighted
sum of logarithms, has no f1 and f2, and keeps a queue per device. f1 reads y1 at unit length, as neighbours are.
"""

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.encoders.base import Encoder
from bench.heads import Projector, mlp
from bench.losses import precise, scaled, similarities, unit
from bench.methods.base import Batch, DataInfo, Method, Progress
from bench.momentum import Momentum, cosine_to_one
from bench.options import Annotated, AtMost, Fraction, Head, NonNegativeInt, Positive, PositiveInt
from bench.support import NOISE, SupportSet


class SNCLR(Method):
    """SNCLR.

    Args:
        encoder: f.
        data: the training subset.
        seed: the cell's seed.
        temperature: tau.
        normalize: z, keys and neighbours are compared by cosine; else as they are.
        queue_size: past projections of the momentum branch.
        k: K, neighbours; 0 is contrastive learning with a momentum branch.
        positiveness: softmax, zero, one or threshold.
        attention: learnt (f1, f2), of softmax, or cosine; nothing would train f1 and f2 for a threshold.
        scale: gamma.
        momentum: of the momentum branch at the start; null for no branch.
        head: of the projection: none, linear or mlp.
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
        normalize: bool,
        queue_size: PositiveInt,
        k: Annotated[NonNegativeInt, AtMost("queue_size")],
        positiveness: Literal["softmax", "zero", "one", "threshold"],
        attention: Literal["learnt", "cosine"],
        scale: Positive,
        momentum: Fraction | None,
        head: Head,
        hidden: PositiveInt,
        dim: PositiveInt,
    ):
        super().__init__(encoder)
        self.projector = Projector(encoder.dim, head, [hidden, hidden], dim, last="plain_norm")
        dim = self.projector.dim
        self.predictor = mlp([dim, hidden, dim], last="plain_norm")
        learnt = k > 0 and positiveness == "softmax" and attention == "learnt"
        self.f1 = nn.Linear(dim, dim, bias=False) if learnt else nn.Identity()
        self.f2 = nn.Linear(dim, dim, bias=False) if learnt else nn.Identity()
        self.branch = None if momentum is None else Momentum(encoder, self.projector)
        self.queue = SupportSet(queue_size, dim, seed)
        self.labels = data.labels
        self.temperature, self.normalize, self.k, self.momentum = temperature, normalize, k, momentum
        self.positiveness, self.scale = positiveness, scale

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        y1, y2 = (self.projector(self.encoder(x)) for x in batch.views)  # (n, d) each
        k1, k2 = (y1.detach(), y2.detach()) if self.branch is None else (self.branch(x) for x in batch.views)
        e = {"z1": self.predictor(y1), "z2": self.predictor(y2), "k1": k1, "k2": k2}
        if self.k:
            (nn1, _), (nn2, at2) = (self.queue.nearest(k, self.k) for k in (k1, k2))  # (n, K, d), (n, K)
            e["at1"] = at2
            for name, y, neighbours in (("1", y1, nn2), ("2", y2, nn1)):
                a = torch.einsum("nd,nkd->nk", self.f1(unit(y)), self.f2(neighbours))
                e |= {"a" + name: a, "nn" + name: neighbours}  # attention of y, to its positive's neighbours
        return e

    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        losses, logs = [], {}
        for z, keys, own in ((e["z1"], e["k2"], "1"), (e["z2"], e["k1"], "2")):
            neighbours = e["nn" + own] if self.k else keys[:, None][:, :0]  # (n, K, d)
            weights = positiveness(e["a" + own], self.scale, self.positiveness) if self.k else keys[:, :0]  # (n, K)
            losses.append(snclr_loss(z, keys, neighbours, weights, self.temperature, normalize=self.normalize))
            if self.k and own == "1":
                logs["largest_weight"] = weights.max(1).values.mean().item()
                logs |= (
                    self._by_class(weights.detach(), e["at1"], self.labels, batch) if self.labels is not None else {}
                )
        return (losses[0] + losses[1]) / 2, logs

    def _by_class(self, weights: Tensor, positions: Tensor, labels: Tensor, batch: Batch) -> dict[str, float]:
        """How the weights (n, K) of neighbours of the image's class compare with those of others.

        `weight_auc` is the probability that a neighbour of the class has more weight than another one, over all of
        the batch. Rows of the queue that no image has filled yet count as neither. Where a batch lacks one of the two,
        its values are those of equal weights.
        """
        origins = self.queue.index[positions]  # (n, K)
        same = labels.to(origins.device)[origins] == batch.labels[:, None]
        mine, others = (weights[chosen & (origins != NOISE)] for chosen in (same, ~same))
        if not (len(mine) and len(others)):
            equal = float(weights.mean())
            return {"weight_same": equal, "weight_other": equal, "weight_auc": 0.5}
        order = others.sort().values
        below, upto = (torch.searchsorted(order, mine, right=right).double() for right in (False, True))
        auc = ((below + upto) / 2 / len(others)).mean()
        return {"weight_same": mine.mean().item(), "weight_other": others.mean().item(), "weight_auc": auc.item()}

    def chance(self, rows: int) -> float:
        weights = positiveness(torch.zeros(1, self.k), self.scale, self.positiveness) if self.k else torch.zeros(1, 0)
        return math.log(rows * (self.k + 1) / (1 + float(weights.sum())))

    def after_step(self, e: dict[str, Tensor], batch: Batch, progress: Progress) -> None:
        self.queue.enqueue(e["k2"], batch.index)
        if self.branch is not None and self.momentum is not None:
            # the released code moves the branch before the next step, at that step's momentum
            self.branch.follow(cosine_to_one(self.momentum, progress.step + 1, progress.steps))


def positiveness(attention: Float[Tensor, "n k"], scale: float, kind: str = "softmax") -> Float[Tensor, "n k"]:
    """Section 3.2: softmax over a row's own K neighbours, divided by gamma.

    Of the other kinds, "zero" and "one" are constant, and "threshold" is 1 where the softmax is above 1 / K, as an
    option of the released code; they too are divided by gamma.
    """
    weights = precise(attention).softmax(1)
    if kind == "threshold":
        weights = (weights > 1 / weights.shape[1]).to(weights.dtype)
    elif kind != "softmax":
        weights = torch.full_like(weights, float(kind == "one"))
    return weights / scale


def snclr_loss(
    z: Float[Tensor, "n d"],
    keys: Float[Tensor, "n d"],
    neighbours: Float[Tensor, "n k d"],
    weights: Float[Tensor, "n k"],
    temperature: float,
    *,
    normalize: bool = True,
) -> Float[Tensor, ""]:
    """Section 3.1: -log of the weighted share of a row's own key and K neighbours among all n (K + 1); mean.

    Weights stand in the numerator only, the key's is 1, and are taken as they are. z, keys and neighbours are
    normalised here, unless `normalize` is false; keys and neighbours carry no gradient. K = 0 is InfoNCE; at chance
    the loss is ln(n (K + 1) / (1 + sum of weights)).
    """
    n = len(z)
    keys, neighbours = (scaled(rows, normalize=normalize) for rows in (keys, neighbours))
    candidates = torch.cat([keys[:, None], neighbours], 1).detach()  # (n, K + 1, d)
    logits = similarities(z, candidates.flatten(0, 1), normalize=normalize) / temperature  # (n, n (K + 1))
    logits = logits.view(n, n, -1)
    rows = torch.arange(n, device=z.device)
    own = logits[rows, rows]  # (n, K + 1)
    weights = torch.cat([weights.new_ones(n, 1), weights], 1).to(own.dtype)
    shift = own.detach().masked_fill(weights == 0, -torch.inf).amax(1, keepdim=True)
    highest = math.log(torch.finfo(own.dtype).max) / 2  # that only a candidate of weight 0 can reach
    supported = (weights * (own - shift).clamp(max=highest).exp()).sum(1).log() + shift[:, 0]  # log of the numerator
    return (logits.flatten(1).logsumexp(1) - supported).mean()
