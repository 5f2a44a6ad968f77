"""How well clusters of representations are classes: k-means on h, scored against the labels that it never saw.

As DeepCluster judges its clusterings (Caron et al., 1807.05520, section 4.1): normalised mutual information; beside it
adjusted mutual information (Vinh et al., 2010, corrected for chance) and purity, the share of rows whose class is
the most frequent one of their cluster.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from bench.clustering import kmeans, nearest_centroids, nmi, objective
from bench.evaluators.base import EvaluationData, Result
from bench.features import Trained
from bench.options import PositiveInt
from bench.random import derive

DIGITS = 10  # of scikit-learn's adjusted mutual information: its logarithms differ in the last bits between CPUs


def evaluate(
    trained: Trained,
    data: EvaluationData,
    *,
    seed: int,
    per_class: PositiveInt,
    iterations: PositiveInt,
    restarts: PositiveInt,
) -> Result:
    """Scores of the best of several k-means runs, best by its objective: nmi, ami, purity (fractions).

    Args:
        trained: the encoder.
        data: training and validation rows are clustered, queries are assigned to the nearest centroid and scored.
        seed: the cell's; of the first centroids.
        per_class: clusters for each class.
        iterations: of k-means, at most.
        restarts: runs of k-means.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    rows, queries = (F.normalize(trained.features(part.images), dim=1) for part in (data.fitted, data.query))
    count = min(per_class * data.classes, len(rows))
    found = [kmeans(rows, count, iterations, derive(seed, "clusters", run)) for run in range(restarts)]
    _, centroids = min(found, key=lambda pair: objective(rows, *pair))
    assignments = nearest_centroids(queries, centroids)
    labels = data.query.labels
    ami = adjusted_mutual_info_score(labels.cpu().numpy(), assignments.cpu().numpy())
    metrics = {"nmi": nmi(assignments, labels), "ami": round(float(ami), DIGITS), "purity": purity(assignments, labels)}
    return Result(metrics, {"assignments": assignments.cpu().numpy()})


def purity(assignments: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> float:
    """Share of rows that carry the most frequent class of their cluster."""
    classes = int(labels.max()) + 1
    table = torch.bincount(assignments * classes + labels, minlength=(int(assignments.max()) + 1) * classes)
    return table.view(-1, classes).max(1).values.sum().item() / len(labels)
