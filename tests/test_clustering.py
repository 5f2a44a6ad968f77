"""K-means, whitening and normalised mutual information against loops, scikit-learn and the laws they obey."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

import bench.methods.deepcluster
from bench import products
from bench.clustering import kmeans, nearest_centroids, nmi, objective, pca_whiten

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64: a few hundred operations, each within 1e-16


def rows(n, d, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def draws(n, parts, seed=0):
    return torch.randint(0, parts, (n,), generator=torch.Generator().manual_seed(seed))


def distance(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def naive_objective(points, assignments, centroids):
    """1 / N sum_n ||f(x_n) - C y_n||^2, 1807.05520, eq. 2."""
    pairs = zip(points.tolist(), assignments.tolist(), strict=True)
    return sum(distance(x, centroids[a].tolist()) for x, a in pairs) / len(points)


def naive_lloyd(points, centroids, iterations):
    """Alternate means and nearest centroids; an empty cluster keeps its centroid."""
    points, centroids = points.tolist(), centroids.tolist()

    def nearest():
        return [min(range(len(centroids)), key=lambda j: distance(x, centroids[j])) for x in points]

    assignments = nearest()
    for _ in range(iterations):
        for j in range(len(centroids)):
            members = [x for x, a in zip(points, assignments, strict=True) if a == j]
            if members:
                centroids[j] = [sum(column) / len(members) for column in zip(*members, strict=True)]
        assignments = nearest()
    return assignments, centroids


# many rows coincide, so that rows drawn as first centroids coincide and clusters are empty
DUPLICATES = {
    "duplicates": (rows(6, 4).repeat(10, 1), 9),
    "as_many_as_distinct_rows": (rows(8, 3).repeat(5, 1), 8),
    "mostly_one_row": (torch.cat([torch.zeros(50, 3, dtype=torch.float64), rows(10, 3)]), 12),
    "unequal_duplicates": (rows(12, 3)[draws(80, 12)], 10),
    "duplicates_and_noise": (torch.cat([rows(30, 2) * 0.01, 1 + rows(30, 2, 1) * 0.01, rows(1, 2).repeat(40, 1)]), 20),
    "identical": (rows(1, 4).repeat(20, 1), 5),
    "identical_as_many_as_rows": (rows(1, 4).repeat(7, 1), 7),
    "duplicates_far_from_zero": (100 * torch.arange(4) + 1e-3 * rows(6, 4).repeat(10, 1), 9),
    "noise_far_from_zero": (torch.tensor([0, 100]) + 1e-3 * torch.cat([rows(50, 2), rows(1, 2).repeat(20, 1)]), 12),
}
DISTINCT = {
    "usual": (rows(60, 4), 7),
    "one_cluster": (rows(9, 3), 1),
    "as_many_as_rows": (rows(12, 3), 12),
    "one_row": (rows(1, 3), 1),
    "one_dimension": (rows(30, 1), 4),
    "blobs": (rows(4, 3).repeat_interleave(15, 0) * 10 + rows(60, 3, 1), 4),
}
duplicates = pytest.mark.parametrize(("x", "k"), DUPLICATES.values(), ids=DUPLICATES)
distinct = pytest.mark.parametrize(("x", "k"), DISTINCT.values(), ids=DISTINCT)
everything = pytest.mark.parametrize(("x", "k"), (DUPLICATES | DISTINCT).values(), ids=DUPLICATES | DISTINCT)
SEEDS = range(5)


def sizes(assignments, k):
    return torch.bincount(assignments, minlength=k)


def excess(x, assignments, centroids):
    """By how much each row's squared distance to its centroid exceeds that to the nearest."""
    distances = (x[:, None] - centroids[None]).square().sum(2)
    return distances.gather(1, assignments[:, None])[:, 0] - distances.min(1).values


def test_it_is_what_deepcluster_calls():
    assert bench.methods.deepcluster.kmeans is kmeans


@everything
def test_the_objective_equals_the_naive_loop(x, k):
    assignments, centroids = kmeans(x, k, 3, seed=0)
    wanted = naive_objective(x, assignments, centroids)
    assert objective(x, assignments, centroids) == pytest.approx(wanted, rel=1e-9, abs=1e-15)


@distinct
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_without_empty_clusters_it_equals_naive_lloyd(x, k, iterations):
    for seed in SEEDS:
        _, first = kmeans(x, k, 0, seed, split_empty=False)  # rows of x
        assignments, centroids = kmeans(x, k, iterations, seed)
        unsplit, _ = kmeans(x, k, iterations, seed, split_empty=False)
        if not torch.equal(assignments, unsplit):
            continue  # a cluster was split
        wanted, means = naive_lloyd(x, first, iterations)
        assert assignments.tolist() == wanted
        torch.testing.assert_close(centroids, torch.tensor(means, dtype=torch.float64), **CLOSE)


@distinct
def test_it_begins_from_distinct_rows(x, k):
    for seed in SEEDS:
        _, first = kmeans(x, k, 0, seed)
        found = [next(i for i, row in enumerate(x) if torch.equal(row, c)) for c in first]
        assert len(set(found)) == k


@pytest.mark.parametrize("name", ["usual", "one_cluster", "as_many_as_rows", "blobs"])
def test_without_empty_clusters_it_equals_scikit_learn(name):
    x, k = DISTINCT[name]
    compared = 0
    for seed in SEEDS:
        _, first = kmeans(x, k, 0, seed)
        assignments, centroids = kmeans(x, k, 300, seed)
        unsplit, _ = kmeans(x, k, 300, seed, split_empty=False)
        if not torch.equal(assignments, unsplit):
            continue
        theirs = KMeans(k, init=first.numpy(), n_init=1, algorithm="lloyd", max_iter=300, tol=0).fit(x.numpy())
        ours = objective(x, assignments, centroids)
        assert ours == pytest.approx(theirs.inertia_ / len(x), rel=1e-9, abs=1e-12)
        compared += 1
    assert compared >= 3


@everything
@pytest.mark.parametrize("seed", SEEDS)
def test_the_objective_never_rises_over_iterations(x, k, seed):
    values = [objective(x, *kmeans(x, k, iterations, seed)) for iterations in range(12)]
    slack = 1e-12 * (x - x.mean(0)).square().sum(1).mean().item() + 1e-24  # round-off, relative to the spread
    assert all(after <= before + slack for before, after in pairwise(values)), values


@everything
@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_no_cluster_is_empty(x, k, iterations):
    for seed in SEEDS:
        assignments, centroids = kmeans(x, k, iterations, seed)
        assert assignments.shape == (len(x),)
        assert centroids.shape == (k, x.shape[1])
        assert (sizes(assignments, k) > 0).all()
        assert len(sizes(assignments, k)) == k
        assert centroids.isfinite().all()


@distinct
@pytest.mark.parametrize("iterations", [1, 3, 100])
def test_rows_belong_to_their_nearest_centroid(x, k, iterations):
    for seed in SEEDS:
        assert excess(x, *kmeans(x, k, iterations, seed)).max() < 1e-12


@duplicates
@pytest.mark.parametrize("iterations", [1, 3, 100])
def test_rows_belong_to_their_nearest_centroid_but_for_the_nudge_of_a_split(x, k, iterations):
    spread = (x - x.mean(0)).square().sum(1).mean()
    for seed in SEEDS:
        # a split moves two centroids by about 1e-3 of the spread, and a squared distance by twice that times its root
        assert excess(x, *kmeans(x, k, iterations, seed)).max() <= 0.01 * spread + 1e-24


@distinct
def test_at_the_stop_centroids_are_means_and_nothing_moves_any_more(x, k):
    for seed in SEEDS:
        assignments, centroids = kmeans(x, k, 200, seed)
        again, same = kmeans(x, k, 201, seed)
        assert torch.equal(again, assignments)
        assert torch.equal(same, centroids)
        for j in range(k):
            torch.testing.assert_close(x[assignments == j].mean(0), centroids[j], **CLOSE)


def test_a_split_shares_rows_out_and_leaves_no_distinct_row_behind():
    # 8 distinct rows, 8 clusters: splits must end with one cluster for each of most of them
    x, k = DUPLICATES["as_many_as_distinct_rows"]
    split, unsplit = (objective(x, *kmeans(x, k, 50, 1, split_empty=e)) for e in (True, False))
    assert split <= unsplit


@everything
def test_the_same_seed_gives_the_same_bits_whatever_torch_has_drawn(x, k):
    first = kmeans(x, k, 5, seed=3)
    torch.rand(7)
    again = kmeans(x, k, 5, seed=3)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_another_seed_begins_elsewhere():
    x, k = DISTINCT["usual"]
    assert not torch.equal(kmeans(x, k, 0, seed=0)[1], kmeans(x, k, 0, seed=1)[1])


@everything
def test_features_are_left_as_they_are(x, k):
    before = x.clone()
    kmeans(x, k, 5, seed=0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("clusters", [-1, 0, 10, 11])
def test_fewer_clusters_than_one_or_more_than_rows_is_an_error(clusters):
    with pytest.raises(ValueError, match=f"1 to the 9 rows, not {clusters}"):
        kmeans(rows(9, 3), clusters, 3, seed=0)


@everything
@pytest.mark.parametrize("iterations", [1, 10])
def test_empty_clusters_may_be_left_and_never_raise(x, k, iterations):
    for seed in SEEDS:
        assignments, centroids = kmeans(x, k, iterations, seed, split_empty=False)
        assert centroids.isfinite().all()
        assert assignments.min() >= 0
        assert assignments.max() < k
        assert excess(x, assignments, centroids).max() < 1e-12 * (1 + x.square().sum(1).max())


@duplicates
def test_an_empty_cluster_that_is_left_keeps_its_centroid(x, k):
    left = 0
    for seed in SEEDS:
        assignments, first = kmeans(x, k, 0, seed, split_empty=False)
        _, centroids = kmeans(x, k, 1, seed, split_empty=False)
        empty = sizes(assignments, k) == 0
        assert torch.equal(centroids[empty], first[empty])
        left += empty.sum()
    assert left > 0


def test_identical_rows_leave_all_but_one_cluster_empty_unless_they_are_split():
    x, k = DUPLICATES["identical"]
    assert (sizes(kmeans(x, k, 5, 0, split_empty=False)[0], k) > 0).sum() == 1
    assert (sizes(kmeans(x, k, 5, 0)[0], k) > 0).sum() == 5


@everything
def test_names_of_clusters_do_not_matter_to_the_objective(x, k):
    assignments, centroids = kmeans(x, k, 3, seed=0)
    names = torch.randperm(k, generator=torch.Generator().manual_seed(0))
    renamed = torch.empty_like(centroids)
    renamed[names] = centroids
    assert objective(x, names[assignments], renamed) == objective(x, assignments, centroids)
    assert nmi(names[assignments], assignments) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_features_taken_in_blocks_give_the_same_clusters(monkeypatch, dtype):
    x, k = DISTINCT["usual"]
    x = x.to(dtype)
    whole = kmeans(x, k, 10, seed=0)
    monkeypatch.setattr(products, "ENTRIES", 3 * k + 1)
    monkeypatch.setattr(products, "ROWS", 3)
    in_blocks = kmeans(x, k, 10, seed=0)
    assert torch.equal(in_blocks[0], whole[0])
    torch.testing.assert_close(in_blocks[1], whole[1], **CLOSE)


def test_rows_far_from_zero_are_nearest_to_the_centroid_at_the_smallest_distance():
    x, centroids = (100 + rows(n, 128, n).float() for n in (2000, 200))
    exact = torch.cdist(x.double(), centroids.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(nearest_centroids(x, centroids), exact.argmin(1))


def test_blobs_far_apart_are_found():
    centres = 100 * torch.eye(2, dtype=torch.float64)
    truth = draws(50, 2)
    assignments, _ = kmeans(centres[truth] + rows(50, 2), 2, 20, seed=0)
    assert nmi(assignments, truth) == pytest.approx(1, abs=1e-12)


# Whitening


def skewed(n, d, seed=0):
    """Correlated features of unequal variances, far from zero."""
    return rows(n, d, seed) @ rows(d, d, seed + 1) * 3 + 10 * rows(1, d, seed + 2)


@pytest.mark.parametrize(("n", "d", "dim"), [(2000, 6, 6), (2000, 6, 2), (500, 20, 7), (300, 1, 1), (64, 9, 1)])
def test_whitened_features_have_mean_zero_and_the_identity_as_covariance(n, d, dim):
    white = pca_whiten(skewed(n, d), dim)
    assert white.shape == (n, dim)
    torch.testing.assert_close(white.mean(0), torch.zeros(dim).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(white.mT @ white / n, torch.eye(dim).double(), rtol=0, atol=1e-6)


def test_in_all_dimensions_products_are_those_of_mahalanobis():
    x = skewed(40, 5)
    centred = x - x.mean(0)
    inverse = torch.linalg.inv(centred.mT @ centred / 40)
    white = pca_whiten(x, 5)
    torch.testing.assert_close(white @ white.mT, centred @ inverse @ centred.mT, rtol=0, atol=1e-8)


def test_directions_of_largest_variance_are_kept():
    # orthogonal columns, standard deviations 1, 5 and 3
    x = torch.linalg.qr(rows(50, 4) - rows(50, 4).mean(0)).Q[:, :3] * 50**0.5
    white = pca_whiten(x * torch.tensor([1.0, 5.0, 3.0]).double() + 7, 2)
    torch.testing.assert_close(white.abs(), x[:, [1, 2]].abs(), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("n", "d", "rank"), [(50, 6, 2), (50, 6, 1), (4, 6, 3), (2, 5, 1)])
def test_directions_without_variance_are_zero(n, d, rank):
    x = rows(n, rank) @ rows(rank, d, 1) if n > rank + 1 else rows(n, d)
    white = pca_whiten(x + 3, d)
    assert white.isfinite().all()
    wanted = torch.diag((torch.arange(d) < rank).double())
    torch.testing.assert_close(white.mT @ white / n, wanted, rtol=0, atol=1e-6)
    assert (white[:, rank:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 7.7, -1e4])
@pytest.mark.parametrize("n", [1, 2, 3, 9, 26, 100])
def test_constant_features_are_zero(n, value, dtype):
    white = pca_whiten(torch.full((n, 4), value, dtype=dtype), 3)
    assert white.dtype == dtype
    assert white.shape == (n, 3)
    assert (white == 0).all()


@pytest.mark.parametrize(("n", "d", "dim"), [(40, 6, 6), (40, 6, 3), (5, 8, 4)])
def test_rotations_shifts_and_scales_of_features_do_not_matter(n, d, dim):
    x = rows(n, d) * torch.linspace(1, 3, d).double()
    rotation = torch.linalg.qr(rows(d, d, 2)).Q
    grams = [w @ w.mT for w in (pca_whiten(y, dim) for y in (x, x @ rotation, x + 5, 0.01 * x))]
    for gram in grams[1:]:
        torch.testing.assert_close(gram, grams[0], rtol=0, atol=1e-8)


def test_rows_permute_with_the_features():
    x, order = skewed(30, 4), torch.randperm(30, generator=torch.Generator().manual_seed(0))
    a, b = pca_whiten(x[order], 3), pca_whiten(x, 3)[order]
    torch.testing.assert_close(a @ a.mT, b @ b.mT, rtol=0, atol=1e-8)


# Normalised mutual information


def naive_nmi(a, b):
    """I(a; b) over the arithmetic mean of H(a) and H(b), from the contingency table."""
    n, joint, parts_a, parts_b = len(a), Counter(zip(a, b, strict=True)), Counter(a), Counter(b)
    information = sum(c / n * math.log(c * n / (parts_a[i] * parts_b[j])) for (i, j), c in joint.items())
    entropy_a, entropy_b = (-sum(c / n * math.log(c / n) for c in parts.values()) for parts in (parts_a, parts_b))
    return information / ((entropy_a + entropy_b) / 2)


PARTITIONS = {
    "random": (draws(200, 5), draws(200, 5, 1)),
    "unequal_numbers_of_parts": (draws(150, 2), draws(150, 11, 1)),
    "related": (draws(100, 6), draws(100, 6) // 2),
    "nearly_equal": (draws(90, 4), torch.cat([draws(90, 4)[:-1], torch.tensor([3])])),
    "two_rows": (torch.tensor([0, 1]), torch.tensor([5, 2])),
    "each_its_own": (torch.arange(20), draws(20, 3)),
    "names_with_gaps": (draws(60, 3) * 1000 + 7, draws(60, 4, 1) * 3),
    "independent": (torch.arange(4).repeat(6), torch.arange(6).repeat_interleave(4)),
    "constant_and_not": (torch.zeros(10, dtype=torch.int64), draws(10, 3)),
}
partitions = pytest.mark.parametrize(("a", "b"), PARTITIONS.values(), ids=PARTITIONS)


@partitions
def test_nmi_equals_the_contingency_table_and_scikit_learn(a, b):
    value = nmi(a, b)
    assert value == pytest.approx(naive_nmi(a.tolist(), b.tolist()), abs=1e-9)
    assert value == pytest.approx(normalized_mutual_info_score(a, b, average_method="arithmetic"), abs=1e-9)


@partitions
def test_nmi_is_between_zero_and_one_symmetric_and_blind_to_names_and_order(a, b):
    value = nmi(a, b)
    assert 0 <= value <= 1
    assert nmi(b, a) == pytest.approx(value, abs=1e-12)
    names = torch.randperm(int(a.max()) + 1, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(1))
    assert nmi(names[a][order], b[order]) == pytest.approx(value, abs=1e-12)


@partitions
def test_nmi_is_one_for_equal_partitions(a, b):
    for partition in (a, b):
        names = torch.randperm(int(partition.max()) + 1, generator=torch.Generator().manual_seed(0))
        assert nmi(partition, names[partition]) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("n", [2, 7, 500])
def test_nmi_is_zero_between_one_part_and_several(n):
    constant, several = torch.full((n,), 3), torch.arange(n) % 2
    assert nmi(constant, several) == nmi(several, constant) == 0
    assert nmi(constant, constant + 1) == 1  # equal up to names


def test_nmi_of_independent_partitions_is_zero():
    assert nmi(*PARTITIONS["independent"]) == pytest.approx(0, abs=1e-12)
