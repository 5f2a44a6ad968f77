"""K-means that leaves no cluster empty, PCA-whitening before it, and how much two partitions agree."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench import kernels
from bench.products import Queries, maximum_inner_product

NUDGE = 1e-3  # of a split centroid, relative to the spread of its rows
RANK = 1e-10  # share of the largest variance below which a direction holds round-off only


def pca_whiten(features: Float[Tensor, "n d"], dim: int) -> Float[Tensor, "n k"]:
    """The `dim` directions of largest variance, each centred and scaled to variance 1.

    Directions without variance, where features have fewer than `dim` others, are 0.

    Args:
        features: (n, d) rows.
        dim: at most d.

    Returns:
        (n, dim) rows, in the features' precision; the arithmetic is double.
    """
    x = features.double()
    x = x - x[0]  # exact zeros where all rows are equal, which their mean is not
    x = x - x.mean(0)
    variances, directions = torch.linalg.eigh(x.mT @ x / len(x))  # rising
    variances, directions = variances.flip(0)[:dim], directions.flip(1)[:, :dim]
    there = variances > RANK * variances[0].clamp_min(torch.finfo(x.dtype).tiny)
    scale = torch.where(there, variances.clamp_min(0).rsqrt(), 0.0)
    return (x @ directions * scale).to(features.dtype)


def kmeans(
    features: Float[Tensor, "n d"], clusters: int, iterations: int, seed: int, *, split_empty: bool = True
) -> tuple[Int[Tensor, " n"], Float[Tensor, "k d"]]:
    """Lloyd's k-means from random rows; an empty cluster takes part of another one.

    As DeepCluster has it (Caron et al., 1807.05520, section 3.3): a non-empty cluster is drawn, its centroid with
    a small random perturbation becomes the empty cluster's, and its rows are shared out between the two.

    Args:
        features: (n, d) rows.
        clusters: k.
        iterations: at most; it stops when no row moves.
        seed: of the first centroids and of what is drawn for empty clusters.
        split_empty: False leaves empty clusters empty.

    Returns:
        (n,) assignments, each to the nearest of the (k, d) centroids (but for the perturbation, where the last of
        the iterations split a cluster); no cluster is empty.

    Raises:
        ValueError: clusters is not in 1..n.
    """
    if not 1 <= clusters <= len(features):
        raise ValueError(f"clusters wants 1 to the {len(features)} rows, not {clusters}")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randperm(len(features), generator=generator)[:clusters].to(features.device)
    centroids = features[first].clone()
    rows = Queries.of(features)
    assignments = _assign(rows, centroids, split_empty, generator)
    for _ in range(iterations):
        centroids = _means(features, assignments, centroids)
        moved = _assign(rows, centroids, split_empty, generator)
        if torch.equal(moved, assignments):
            break
        assignments = moved
    return assignments, centroids


def objective(features: Float[Tensor, "n d"], assignments: Int[Tensor, " n"], centroids: Float[Tensor, "k d"]) -> float:
    """Mean squared distance of rows to the centroids they are assigned to (DeepCluster, eq. 2)."""
    return (features - centroids[assignments]).square().sum(1).mean().item()


def nearest_centroids(features: "Float[Tensor, 'n d'] | Queries", centroids: Float[Tensor, "k d"]) -> Int[Tensor, " n"]:
    """The centroid at the smallest distance of each row, the lower of equals."""
    # -|x - c|^2 / 2 = x . c - |c|^2 / 2, up to what x alone decides
    return maximum_inner_product(features, centroids, -centroids.double().square().sum(1) / 2)


def _assign(rows: Queries, centroids: Tensor, split_empty: bool, generator: torch.Generator) -> Tensor:
    """Each row's nearest centroid, the lower of equals; moves centroids of clusters that are split."""
    assignments = nearest_centroids(rows, centroids)
    sizes = torch.bincount(assignments, minlength=len(centroids))
    if split_empty:
        for empty in torch.nonzero(sizes == 0)[:, 0].tolist():
            _split(rows.rows, assignments, centroids, sizes, empty, generator)
    return assignments


def _split(
    features: Tensor, assignments: Tensor, centroids: Tensor, sizes: Tensor, empty: int, generator: torch.Generator
) -> None:
    """Give `empty` part of a cluster drawn in proportion to what it can spare, all in place."""
    donor = int(torch.multinomial((sizes - 1).clamp_min(0).double().cpu(), 1, generator=generator))
    rows = torch.nonzero(assignments == donor)[:, 0]
    nudge = NUDGE * math.sqrt(features[rows].std(0, correction=0).square().mean().item())
    step = torch.randn(centroids.shape[1], generator=generator).to(centroids) * nudge
    side = (features[rows] - centroids[donor]) @ step  # which of the two perturbed centroids is nearer
    taken = side > 0
    if not 0 < taken.sum() < len(rows):  # all on one side: the farther half goes
        taken = torch.zeros_like(taken)
        taken[side.argsort(descending=True, stable=True)[: len(rows) // 2]] = True
        step = torch.zeros_like(step)
    centroids[empty] = centroids[donor] + step
    centroids[donor] -= step
    assignments[rows[taken]] = empty
    sizes[empty] = taken.sum()
    sizes[donor] -= sizes[empty]


def _means(features: Tensor, assignments: Tensor, centroids: Tensor) -> Tensor:
    """The mean row of each cluster; an empty one keeps its centroid."""
    sizes = torch.bincount(assignments, minlength=len(centroids))
    sums = torch.zeros_like(centroids)
    if features.device.type == "cpu":
        kernels.add_rows(features.numpy(), assignments.numpy(), sums.numpy())
    else:
        sums.index_add_(0, assignments, features)
    return torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], centroids)


def nmi(a: Int[Tensor, " n"], b: Int[Tensor, " n"]) -> float:
    """Normalised mutual information of two partitions: I(a; b) over the mean of their entropies.

    1 for partitions that are equal up to names, 0 where one of two has a single part.
    """
    table = torch.stack([a, b]).double().unique(dim=1, return_counts=True)
    pairs, joint = table[0].long(), table[1].double() / len(a)
    names_a, at_a = pairs[0].unique(return_inverse=True)
    names_b, at_b = pairs[1].unique(return_inverse=True)
    share_a = torch.zeros(len(names_a), dtype=joint.dtype, device=joint.device).index_add_(0, at_a, joint)
    share_b = torch.zeros(len(names_b), dtype=joint.dtype, device=joint.device).index_add_(0, at_b, joint)
    if len(share_a) == len(share_b) == 1:
        return 1.0
    information = (joint * (joint / (share_a[at_a] * share_b[at_b])).log()).sum()
    entropies = -(share_a * share_a.log()).sum() - (share_b * share_b.log()).sum()
    return (2 * information / entropies).clamp(0, 1).item()
