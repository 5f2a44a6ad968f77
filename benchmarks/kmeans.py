"""K-means of the same rows from the same centroids for as many iterations, against faiss and scikit-learn."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bench.clustering import kmeans
from benchmarks.knn import features
from benchmarks.lookup import faster_search
from benchmarks.rows import Measured, Row, faster
from benchmarks.timing import in_turn

ROWS_COUNT, DIM = 50_000, 256
SEED = 7
ITERATIONS = {100: 20, 1000: 10, 10_000: 2}
REPEATS = {100: 3, 1000: 3, 10_000: 1}

Fit = Callable[[Tensor, int, int], np.ndarray]
"""Rows, clusters and iterations to centroids."""


def first_centroids(x: Tensor, clusters: int) -> np.ndarray:
    """The rows from which ours begins."""
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))[:clusters]
    return x[chosen].numpy().copy()


def ours(x: Tensor, clusters: int, iterations: int) -> np.ndarray:
    """bench.clustering: assigns once more than it moves the centroids."""
    return kmeans(x, clusters, iterations, SEED)[1].numpy()


def faiss_kmeans(x: Tensor, clusters: int, iterations: int) -> np.ndarray:
    """faiss.Kmeans of all rows, not of a sample, and the assignment to its last centroids."""
    import faiss

    faiss.omp_set_num_threads(1)
    bounds = {"min_points_per_centroid": 1, "max_points_per_centroid": len(x)}
    fit = faiss.Kmeans(x.shape[1], clusters, niter=iterations, seed=SEED, **bounds)
    fit.train(x.numpy(), init_centroids=first_centroids(x, clusters))
    fit.index.search(x.numpy(), 1)
    return fit.centroids


def sklearn_kmeans(x: Tensor, clusters: int, iterations: int) -> np.ndarray:
    """scikit-learn's Lloyd, which assigns once more too."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    begin = first_centroids(x, clusters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit = KMeans(clusters, init=begin, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(x.numpy())
    return fit.cluster_centers_


def inertia(x: Tensor, centroids: np.ndarray) -> float:
    """The mean squared distance to the nearest centroid, for a tenth of the rows."""
    nearest = torch.cdist(x[::10], torch.from_numpy(np.ascontiguousarray(centroids, dtype=np.float32)))
    return nearest.min(1).values.square().mean().item()


def measure(clusters: int, peer: Fit) -> Measured:
    """Seconds of the whole fit."""
    x, iterations, repeats = features(ROWS_COUNT, DIM, 0), ITERATIONS[clusters], REPEATS[clusters]
    kept: dict[str, np.ndarray] = {}
    so = faster_search(lambda: peer(x[::10], clusters // 4, 1))[1] if peer is faiss_kmeans else lambda same: same
    mine, other = (
        _keeping(kept, name, fit, x, clusters, iterations) for name, fit in (("ours", ours), ("theirs", peer))
    )
    spent = in_turn({"ours": mine, "theirs": so(other)}, repeats, warm=0)
    apart = inertia(x, kept["ours"]) / inertia(x, kept["theirs"]) - 1
    note = f"{iterations} iterations; inertia {100 * apart:+.3f} % of theirs"
    return Measured(spent["ours"].wall, spent["theirs"].wall, repeats, note)


def _keeping(kept: dict, name: str, fit: Fit, x: Tensor, clusters: int, iterations: int) -> Callable[[], None]:
    def run() -> None:
        kept[name] = fit(x, clusters, iterations)

    return run


TRIED = (
    "products in bfloat16 where the CPU has instructions for it, between whose largest double precision decides, in "
    "blocks that stay in the cache, centroids' sums in a compiled loop; with 100 clusters that product (0.35 s of 21 "
    "assignments) and the sums (0.07 s) alone are half of scikit-learn's time; the triangle inequality would skip few "
    "rows in the first steps, and of 1,000 clusters few in all"
)


def _rows(clusters: int) -> list[Row]:
    what = f"k-means of {ROWS_COUNT:,} rows, d = {DIM}, k = {clusters:,}"
    return [
        Row(
            f"kmeans-{clusters}-faiss",
            what,
            "faiss.Kmeans, the faster of its searches",
            "s",
            faster(1),
            lambda: measure(clusters, faiss_kmeans),
            tried=TRIED,
        ),
        Row(
            f"kmeans-{clusters}-sklearn",
            what,
            "scikit-learn KMeans (Lloyd)",
            "s",
            faster(2),
            lambda: measure(clusters, sklearn_kmeans),
            tried=TRIED,
        ),
    ]


ROWS = [row for clusters in ITERATIONS for row in _rows(clusters)]
