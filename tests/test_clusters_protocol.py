"""The protocol that scores clusters of representations: purity by hand, scikit-learn's scores, blobs and chance."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from bench.clustering import kmeans, objective
from bench.evaluators.base import EvaluationData, Labelled
from bench.evaluators.clusters import evaluate, purity
from bench.features import Trained
from bench.random import derive

ROUNDED = 1e-10  # of ami; and far above the rounding of a sum of a few hundred logarithms
OPTIONS = {"per_class": 1, "iterations": 50, "restarts": 5}


def draws(n, parts, seed=0):
    return torch.randint(0, parts, (n,), generator=torch.Generator().manual_seed(seed))


def naive_purity(assignments, labels):
    groups = {}
    for cluster, label in zip(assignments.tolist(), labels.tolist(), strict=True):
        groups.setdefault(cluster, Counter())[label] += 1
    return sum(max(group.values()) for group in groups.values()) / len(labels)


# case: assignments, labels, purity
CASES = {
    "as_the_classes": ([0, 0, 1, 1, 2], [0, 0, 1, 1, 2], 1.0),
    "under_other_names": ([2, 2, 0, 0, 1], [0, 0, 1, 1, 2], 1.0),
    # cluster 0 holds classes 0, 0, 1 (2 right), cluster 1 holds 1, 1, 2, 2 (2 right), cluster 2 holds 2 (1 right)
    "five_of_eight": ([0, 0, 0, 1, 1, 1, 1, 2], [0, 0, 1, 1, 1, 2, 2, 2], 5 / 8),
    "one_cluster": ([0, 0, 0, 0, 0], [0, 1, 1, 2, 1], 3 / 5),
    "each_row_its_own": ([0, 1, 2, 3], [0, 0, 1, 1], 1.0),
    "numbers_left_out": ([7, 7, 3, 3, 3], [5, 5, 5, 2, 2], 4 / 5),
    "one_row": ([0], [3], 1.0),
    "two_classes_share_a_cluster": ([0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2], 4 / 6),
}


@pytest.mark.parametrize(("assignments", "labels", "wanted"), CASES.values(), ids=CASES)
def test_purity_equals_that_worked_out_by_hand(assignments, labels, wanted):
    assignments, labels = torch.tensor(assignments), torch.tensor(labels)
    assert purity(assignments, labels) == naive_purity(assignments, labels) == wanted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("clusters", "classes"), [(1, 1), (2, 9), (9, 2), (30, 30), (5, 1), (1, 5)])
def test_purity_equals_the_naive_loop_and_is_at_least_the_largest_class(clusters, classes, seed):
    assignments, labels = draws(70, clusters, seed), draws(70, classes, seed + 10)
    given = purity(assignments, labels)
    assert given == naive_purity(assignments, labels)
    assert labels.bincount().max() / 70 <= given + 1e-6 <= 1 + 1e-6


# ---- the protocol, on images of one shade each: raw pixels are their directions


def shades(labels, noise=0, seed=0):
    """Images 4 x 4, each with the block of its class lit: blobs far apart in direction."""
    images = torch.full((len(labels), 4, 4, 1), 10)
    images[torch.arange(len(labels)), labels % 4] = 200
    if noise:
        images += torch.randint(-noise, noise + 1, images.shape, generator=torch.Generator().manual_seed(seed))
    return Labelled(images.clamp(0, 255).byte(), labels)


def blobs(noise=0, classes=4):
    counts = (40, 20, 30)
    return EvaluationData(*(shades(torch.arange(n) % classes, noise, i) for i, n in enumerate(counts)), classes)


def noise_alone(n, classes, seed):
    pixels = torch.randint(0, 256, (n, 4, 4, 1), generator=torch.Generator().manual_seed(seed))
    return Labelled(pixels.byte(), draws(n, classes, seed + 1))


def mixed():
    """Blobs, of whose labels a third are wrong."""
    parts = []
    for i, n in enumerate((90, 30, 80)):
        part = shades(torch.arange(n) % 4, 60, i)
        wrong = draws(n, 3, i + 5) == 0
        parts.append(Labelled(part.images, torch.where(wrong, draws(n, 4, i + 9), part.labels)))
    return EvaluationData(*parts, 4)


def test_blobs_that_are_classes_score_one():
    for noise in (0, 20):
        for seed in range(3):
            metrics = evaluate(Trained(None), blobs(noise), seed=seed, **OPTIONS).metrics
            assert metrics == pytest.approx({"nmi": 1.0, "ami": 1.0, "purity": 1.0}, abs=ROUNDED)


def test_the_metrics_are_named_in_order():
    assert list(evaluate(Trained(None), blobs(), seed=0, **OPTIONS).metrics) == ["nmi", "ami", "purity"]


def test_labels_of_chance_score_no_adjusted_information_and_a_little_of_the_other():
    data = EvaluationData(noise_alone(300, 10, 0), noise_alone(60, 10, 10), noise_alone(400, 10, 20), 10)
    found = [evaluate(Trained(None), data, seed=seed, **OPTIONS).metrics for seed in range(5)]
    for metrics in found:
        # (10 - 1)^2 / (2 * 400) = 0.1 nats of 2.3 are expected of chance (Miller, 1955): 0.044, its deviation 0.007
        assert 0.02 < metrics["nmi"] < 0.08
        assert abs(metrics["ami"]) < 0.03  # the same four deviations
        assert 0.1 < metrics["purity"] < 0.3
    assert abs(np.mean([metrics["ami"] for metrics in found])) < 0.02


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(mixed(), id="a_third_of_labels_wrong"),
        pytest.param(blobs(90), id="noisy_blobs"),
        pytest.param(
            EvaluationData(noise_alone(60, 3, 0), noise_alone(20, 3, 4), noise_alone(50, 3, 8), 3), id="noise"
        ),
    ],
)
@pytest.mark.parametrize("per_class", [1, 3])
def test_scores_equal_scikit_learns_of_the_assignments(data, per_class):
    result = evaluate(Trained(None), data, seed=0, **{**OPTIONS, "per_class": per_class})
    given, labels = result.arrays["assignments"], data.query.labels.numpy()
    assert result.metrics["nmi"] == pytest.approx(normalized_mutual_info_score(labels, given), abs=ROUNDED)
    assert result.metrics["ami"] == pytest.approx(adjusted_mutual_info_score(labels, given), abs=ROUNDED)
    assert result.metrics["purity"] == naive_purity(torch.from_numpy(given), data.query.labels)


@pytest.mark.parametrize("seed", range(3))
def test_queries_go_to_the_nearest_centroid_of_the_best_run(seed):
    data = EvaluationData(noise_alone(60, 5, 0), noise_alone(20, 5, 4), noise_alone(50, 5, 8), 5)
    pixels = [F.normalize(part.images.flatten(1).float() / 255, dim=1) for part in (data.fitted, data.query)]
    runs = [kmeans(pixels[0], 10, 4, derive(seed, "clusters", run)) for run in range(6)]
    scores = [objective(pixels[0], *found) for found in runs]
    _, centroids = runs[scores.index(min(scores))]
    wanted = [(query - centroids).square().sum(1).argmin().item() for query in pixels[1]]
    result = evaluate(Trained(None), data, seed=seed, per_class=2, iterations=4, restarts=6)
    assert result.arrays["assignments"].tolist() == wanted


def test_representations_are_compared_by_direction():
    """Brighter images of the same pattern are one cluster, though farther apart than classes are."""
    parts = []
    for n in (40, 24, 32):
        labels = torch.arange(n) % 4
        images = torch.full((n, 4, 4, 1), 100)
        images[torch.arange(n), labels] = 130
        images[n // 2 :] = images[n // 2 :] // 5
        parts.append(Labelled(images.byte(), labels))
    metrics = evaluate(Trained(None), EvaluationData(*parts, 4), seed=0, **OPTIONS).metrics
    assert metrics == pytest.approx({"nmi": 1.0, "ami": 1.0, "purity": 1.0}, abs=ROUNDED)


def test_one_seed_gives_one_clustering_and_seeds_differ():
    data = EvaluationData(noise_alone(60, 3, 0), noise_alone(20, 3, 4), noise_alone(50, 3, 8), 3)
    options = {"per_class": 3, "iterations": 5, "restarts": 1}
    found = [evaluate(Trained(None), data, seed=seed, **options) for seed in (0, 0, 1)]
    assert found[0].metrics == found[1].metrics
    np.testing.assert_array_equal(found[0].arrays["assignments"], found[1].arrays["assignments"])
    assert found[0].metrics != found[2].metrics


def test_no_label_of_training_or_validation_rows_has_a_part():
    data = mixed()
    wanted = evaluate(Trained(None), data, seed=0, **OPTIONS)
    parts = [Labelled(part.images, draws(len(part.images), 4, 77)) for part in (data.train, data.validation)]
    given = evaluate(Trained(None), EvaluationData(*parts, data.query, 4), seed=0, **OPTIONS)
    assert given.metrics == wanted.metrics
    np.testing.assert_array_equal(given.arrays["assignments"], wanted.arrays["assignments"])


def test_validation_rows_are_clustered_too():
    """One row of training and three of validation: four clusters want all of them."""
    rows = shades(torch.arange(4))
    parts = [Labelled(rows.images[part], rows.labels[part]) for part in (slice(0, 1), slice(1, 4))]
    result = evaluate(Trained(None), EvaluationData(*parts, shades(torch.arange(12) % 4), 4), seed=0, **OPTIONS)
    assert result.metrics["purity"] == 1.0
    assert len(set(result.arrays["assignments"].tolist())) == 4


def test_there_are_at_most_as_many_clusters_as_rows():
    data = blobs(30)
    result = evaluate(Trained(None), data, seed=0, **{**OPTIONS, "per_class": 1000})
    assert result.arrays["assignments"].max() < len(data.fitted.images)


def test_classes_without_queries_change_nothing_but_the_clusters():
    query = shades(torch.zeros(10, dtype=torch.long))
    data = blobs()
    result = evaluate(Trained(None), EvaluationData(data.train, data.validation, query, 4), seed=0, **OPTIONS)
    # one class in one cluster: equal partitions
    assert result.metrics == {"nmi": 1.0, "ami": 1.0, "purity": 1.0}
