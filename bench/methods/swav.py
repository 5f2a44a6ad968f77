"""SwAV: Caron et al., "Unsupervised learning of visual features by contrasting cluster assignments".

arXiv 2006.09882, section 3 and algorithm of appendix A. z = unit projection of f(x); scores s = C z with K unit
prototypes C; the assignment q of a global view, balanced over the batch by Sinkhorn-Knopp, is predicted from the scores
of every other view, local ones too (multi-crop, section 3.3). tau: temperature of the prediction, epsilon: of
the assignment. Assignments carry no gradient.

A queue of past z of each global view can join the batch when assignments are made, from epoch `queue_from` on and
once it is full. Prototypes do not move in the first `freeze_steps` steps; they are made unit after each step.

Deviations: batch statistics per view (the released code runs views of one size together); the queue fills from the
first epoch on, not from `queue_from`.
"""

import math
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.encoders.base import Encoder
from bench.heads import Projector
from bench.losses import precise, scaled, unit
from bench.methods.base import Batch, DataInfo, Method, ParameterGroup, Progress
from bench.options import Head, NonNegativeInt, Positive, PositiveInt
from bench.support import SupportSet


class SwAV(Method):
    """SwAV.

    Args:
        encoder: f.
        data: the training subset.
        seed: the cell's seed.
        prototypes: K.
        temperature: tau.
        normalize: z is of unit length, as the queue's rows are.
        epsilon: of the Sinkhorn-Knopp algorithm.
        iterations: of the Sinkhorn-Knopp algorithm; 0 is a softmax.
        queue_size: past projections kept for each global view; 0 for none.
        queue_from: the epoch, from 0, from which on the queue is used.
        freeze_steps: steps in which prototypes do not move.
        head: of the projection: none, linear or mlp.
        hidden: width of the projection's hidden layer.
        dim: of z.
    """

    title: ClassVar[str] = "SwAV"
    views: ClassVar[int] = 2
    local_views: ClassVar[bool] = True

    def __init__(
        self,
        encoder: Encoder,
        data: DataInfo,
        *,
        seed: int,
        prototypes: PositiveInt,
        temperature: Positive,
        normalize: bool,
        epsilon: Positive,
        iterations: NonNegativeInt,
        queue_size: NonNegativeInt,
        queue_from: NonNegativeInt,
        freeze_steps: NonNegativeInt,
        head: Head,
        hidden: PositiveInt,
        dim: PositiveInt,
    ):
        super().__init__(encoder)
        self.projector = Projector(encoder.dim, head, [hidden], dim, last="linear")
        self.prototypes = nn.Linear(self.projector.dim, prototypes, bias=False)
        self._normalise_prototypes()
        queues = self.views if queue_size else 0
        self.queues = nn.ModuleList(SupportSet(queue_size, self.projector.dim, seed) for _ in range(queues))
        self.temperature, self.normalize, self.epsilon, self.iterations = temperature, normalize, epsilon, iterations
        self.queue_from, self.freeze_steps = queue_from, freeze_steps

    def parameter_groups(self) -> list[ParameterGroup]:
        frozen = ["prototypes.weight"]
        others = [name for name, _ in self.named_parameters() if name not in frozen]
        return [ParameterGroup(others), ParameterGroup(frozen, frozen_until=self.freeze_steps)]

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        z = [scaled(self.projector(self.encoder(x)), normalize=self.normalize) for x in batch.views]  # (n, d) each
        scores = {f"s{i}": self.prototypes(rows) for i, rows in enumerate(z, 1)}  # (n, K) each
        return scores | {f"z{i}": rows for i, rows in enumerate(z[: self.views], 1)}

    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        scores = [e[f"s{i}"] for i in range(1, len(batch.views) + 1)]
        assignments = [self._assign(i, rows, batch.epoch) for i, rows in enumerate(scores[: self.views])]
        used = assignments[0].argmax(1).unique().numel() / assignments[0].shape[1]
        return swav_loss(scores, assignments, self.temperature), {"prototypes_used": used}

    @torch.no_grad()
    def _assign(self, view: int, scores: Tensor, epoch: int) -> Tensor:
        rows = precise(scores)
        queue = cast(SupportSet, self.queues[view]) if self.queues else None
        if queue is not None and queue.full and epoch >= self.queue_from:
            rows = torch.cat([rows, queue.rows @ self.prototypes.weight.mT])
        return sinkhorn(rows, self.epsilon, self.iterations)[: len(scores)]

    def chance(self, rows: int) -> float:
        return math.log(self.prototypes.out_features)

    def after_step(self, e: dict[str, Tensor], batch: Batch, progress: Progress) -> None:
        if progress.step >= self.freeze_steps:  # making unit rows unit again moves their last bits
            self._normalise_prototypes()
        for i, queue in enumerate(self.queues, 1):
            cast(SupportSet, queue).enqueue(e[f"z{i}"], batch.index)

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        self.prototypes.weight.copy_(unit(self.prototypes.weight))


def swav_loss(
    scores: list[Float[Tensor, "n k"]], assignments: list[Float[Tensor, "n k"]], temperature: float
) -> Float[Tensor, ""]:
    """Section 3.1 and eq. 6: cross-entropy of each view's prediction with every other global view's assignment.

    Args:
        scores: of all views, the global ones first; not yet divided by tau.
        assignments: of the global views.
        temperature: tau.

    Returns:
        The mean over rows, over the other views, and over the global views. Uniform scores give ln K.
    """
    dtype = torch.promote_types(scores[0].dtype, torch.float32)
    predictions = [F.log_softmax(s.to(dtype) / temperature, dim=1) for s in scores]
    losses = []
    for i, q in enumerate(assignments):
        others = [p for j, p in enumerate(predictions) if j != i]
        losses.append(torch.stack([-(q * p).sum(1).mean() for p in others]).mean())
    return torch.stack(losses).mean()


def sinkhorn(scores: Float[Tensor, "n k"], epsilon: float, iterations: int) -> Float[Tensor, "n k"]:
    """Eq. 3 to 5: assignments of n rows to K prototypes that use the prototypes alike.

    exp(scores / epsilon), its columns and then its rows scaled to equal sums in turn; in logarithms, so that no score
    overflows. Rows sum to 1; 0 iterations are a softmax.
    """
    log_q = scores / epsilon
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(0, keepdim=True)  # prototypes
        log_q = log_q - log_q.logsumexp(1, keepdim=True)  # rows
    return log_q.softmax(1)
