"""DeepCluster: Caron et al., "Deep clustering for unsupervised learning of visual features".

arXiv 1807.05520, section 3. Before every `interval`-th epoch the representations h of the clean training images are
PCA-whitened, made unit and clustered by k-means (eq. 2); the clusters are pseudo-labels for a linear classifier on
relu(h), made anew each time, trained on one view (eq. 1).

Two remedies against trivial solutions (section 3.3): an empty cluster takes part of another one, and images are
drawn uniformly over pseudo-labels.

Deviations: k-means begins from a seed's rows each time (the released code draws one of 1,234 seeds); the uniform
order is drawn anew every epoch, also between clusterings. The history has the clusters' agreement with the last
clusters and with the labels.
"""

import math
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from bench.clustering import kmeans, nmi, pca_whiten
from bench.encoders.base import Encoder
from bench.errors import BenchError
from bench.losses import unit
from bench.methods.base import Batch, DataInfo, Extract, Method, ParameterGroup
from bench.options import PositiveInt, TrainingRowCount
from bench.random import Address, derive, permutation

HEAD_STD = 0.01  # of the classifier's initial weights, as in the released code


class DeepClusterError(BenchError, ValueError):
    """An option that does not fit the encoder."""


class DeepCluster(Method):
    """DeepCluster.

    Args:
        encoder: f.
        data: the training subset.
        seed: the cell's seed.
        clusters: k.
        pca_dim: dimensions that are clustered; at most the encoder's.
        iterations: of k-means, at most.
        interval: epochs from one clustering to the next.
        uniform: draw images uniformly over pseudo-labels.
        split_empty: an empty cluster takes part of another one.
    """

    title: ClassVar[str] = "DeepCluster"
    views: ClassVar[int] = 1
    assignments: Tensor
    agreement: Tensor
    agreement_with_labels: Tensor

    def __init__(
        self,
        encoder: Encoder,
        data: DataInfo,
        *,
        seed: int,
        clusters: TrainingRowCount,
        pca_dim: PositiveInt,
        iterations: PositiveInt,
        interval: PositiveInt,
        uniform: bool,
        split_empty: bool,
    ):
        super().__init__(encoder)
        if pca_dim > encoder.dim:
            raise DeepClusterError(f"pca_dim: {pca_dim} is more than the encoder's {encoder.dim} dimensions; lower it")
        self.head = nn.Linear(encoder.dim, clusters)
        self.register_buffer("assignments", torch.zeros(data.rows, dtype=torch.int64))
        self.register_buffer("agreement", torch.zeros((), dtype=torch.float64))  # with the last clustering
        self.register_buffer("agreement_with_labels", torch.zeros((), dtype=torch.float64))
        self.labels = data.labels
        self.seed, self.clusters, self.pca_dim, self.iterations = seed, clusters, pca_dim, iterations
        self.interval, self.uniform, self.split_empty = interval, uniform, split_empty

    def before_epoch(self, epoch: int, extract: Extract) -> None:
        if epoch % self.interval:
            return
        features = unit(pca_whiten(extract(self.encoder), self.pca_dim))  # (N, pca_dim)
        seed = derive(self.seed, "k-means", epoch)
        assignments, _ = kmeans(features, self.clusters, self.iterations, seed, split_empty=self.split_empty)
        self.agreement.fill_(nmi(self.assignments, assignments))
        self.assignments.copy_(assignments)
        if self.labels is not None:
            self.agreement_with_labels.fill_(nmi(self.labels.to(assignments.device), assignments))
        generator = torch.Generator().manual_seed(derive(self.seed, "head", epoch))
        with torch.no_grad():
            self.head.weight.copy_(HEAD_STD * torch.randn(self.head.weight.shape, generator=generator))
            self.head.bias.zero_()

    def resets(self, epoch: int) -> list[nn.Module]:
        return [] if epoch % self.interval else [self.head]

    def parameter_groups(self) -> list[ParameterGroup]:
        head = ["head.weight", "head.bias"]
        others = [name for name, _ in self.named_parameters() if name not in head]
        return [ParameterGroup(others), ParameterGroup(head, momentum=0.0)]  # as in the released code

    def order(self, epoch: int) -> Tensor | None:
        return uniform_order(self.assignments.cpu(), self.seed, epoch) if self.uniform else None

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        return {"logits": self.head(F.relu(self.encoder(batch.views[0])))}  # (n, k)

    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        sizes = torch.bincount(self.assignments, minlength=self.clusters)
        logs = {"nmi_with_last": self.agreement.item(), "nmi_with_labels": self.agreement_with_labels.item()}
        logs |= {"empty_clusters": (sizes == 0).sum().item()}
        logs |= {"smallest_cluster": sizes.min().item(), "largest_cluster": sizes.max().item()}
        labels = self.assignments[batch.index]
        return F.cross_entropy(e["logits"].float(), labels), {name: float(value) for name, value in logs.items()}

    def chance(self, rows: int) -> float:
        return math.log(self.clusters)


def uniform_order(assignments: Int[Tensor, " n"], seed: int, epoch: int) -> Int[Tensor, " n"]:
    """N rows, drawn so that each non-empty cluster is shown equally often, in an addressed order.

    As in the released code: int(N / non-empty clusters) + 1 rows from each, without replacement from clusters that
    are larger than that and with it from the others, shuffled, cut to N.
    """
    n = len(assignments)
    shuffled = permutation(seed, "cluster rows", np.arange(n), epoch)
    by_cluster = shuffled[np.argsort(assignments.numpy()[shuffled], kind="stable")]
    sizes = np.bincount(assignments.numpy())
    members = np.split(by_cluster, np.cumsum(sizes)[:-1])  # each cluster's rows, in a random order
    quota = n // int(np.count_nonzero(sizes)) + 1
    drawn = []
    for cluster, rows in enumerate(members):
        if 0 < len(rows) <= quota:
            u = Address(seed, "cluster draws", np.array([cluster]), epoch).uniform("row", quota)[0]
            rows = rows[(u * len(rows)).astype(np.int64)]
        drawn.append(rows[:quota])
    pool = np.concatenate(drawn)
    return torch.from_numpy(pool[permutation(seed, "cluster order", np.arange(len(pool)), epoch)[:n]])
