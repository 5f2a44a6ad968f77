"""Transfer: VOC2007's average precision, accuracy per class, images as the encoder takes them, and the protocol."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from bench.evaluators.base import EvaluationData, Labelled
from bench.evaluators.linear import fit_path
from bench.evaluators.penalties import accuracy, mean_per_class
from bench.evaluators.transfer import SCORES, as_seen, average_precision, evaluate, map11
from bench.features import Trained
from bench.solvers import BinaryLogistic, solve_path

CLOSE = {"rel": 1e-12, "abs": 1e-12}  # eleven doubles, each within 1e-16


def naive_average_precision(scores, relevant):
    """Everingham et al., 2010, section 4.2, exact: of each tenth of recall, the best precision from it on."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    hits = [sum(relevant[i] for i in order[: rank + 1]) for rank in range(len(order))]
    if not sum(relevant):
        return 0.0
    best = [
        max(Fraction(h, rank + 1) for rank, h in enumerate(hits) if Fraction(h, sum(relevant)) >= Fraction(level, 10))
        for level in range(11)
    ]
    return float(sum(best) / 11)


# Case: relevance in the order of falling scores, and the mean worked out by hand. For the first: precisions
# 1/1, 1/2, 2/3, 3/4, 3/5, 3/6 at recalls 1/3, 1/3, 2/3, 1, 1, 1. The best from recall 0, .1, .2 and .3 on is 1; that
# from .4, .5 and .6 on is 3/4 (not the 2/3 of recall 2/3: a higher precision follows), as from .7 to 1 on.
RANKED = {
    "six_rows": ([1, 0, 1, 1, 0, 0], (4 * 1 + 7 * 3 / 4) / 11),
    # 0, 1/2, 1/3, 1/4, 2/5, 3/6 at recalls 0, 1/3, 1/3, 1/3, 2/3, 1: never better than 1/2, and 1/2 at the end
    "second_and_last_two": ([0, 1, 0, 0, 1, 1], 1 / 2),
    # 1, .., 2/4, .., 3/6 at recalls 1/3, .., 2/3, .., 1
    "falls_to_a_half": ([1, 0, 0, 1, 0, 1], (4 * 1 + 7 * 1 / 2) / 11),
    # recall 1/2 is a level itself: 0 to .5 are six levels at 1, the other five at 2/6
    "recall_equal_to_a_level": ([1, 0, 0, 0, 0, 1], (6 * 1 + 5 * 2 / 6) / 11),
    # recalls .1 to 1 are the levels: each relevant row is one, and level 0 has the first one's precision
    "ten_relevant_one_miss": ([1] * 5 + [0] + [1] * 5, (6 * 1 + 5 * 10 / 11) / 11),
    # recall 3/10 is a level, though 3 * 0.1 is above it in floating point
    "three_tenths": ([1] * 3 + [0] * 90 + [1] * 7, (4 * 1 + 7 * 10 / 100) / 11),
    "one_row": ([1], 1),
    "the_last_of_four": ([0, 0, 0, 1], 1 / 4),
    "nothing_relevant": ([0, 0, 0], 0),
    "no_rows": ([], 0),
}


@pytest.mark.parametrize(("relevant", "wanted"), RANKED.values(), ids=RANKED)
def test_average_precision_equals_that_worked_out_by_hand(relevant, wanted):
    scores = -torch.arange(len(relevant)).double()
    given = average_precision(scores, torch.tensor(relevant, dtype=torch.long))
    assert given == pytest.approx(wanted, **CLOSE)
    assert naive_average_precision(scores.tolist(), relevant) == pytest.approx(wanted, **CLOSE)


def whole(n, seed, high):
    return torch.randint(0, high, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("levels", [2, 7, 10**6], ids=["almost_all_tied", "many_tied", "none_tied"])
@pytest.mark.parametrize("share", [2, 5, 20], ids=["half_relevant", "a_fifth", "a_twentieth"])
@pytest.mark.parametrize("n", [1, 10, 41, 200])
def test_average_precision_equals_the_naive_loop(n, share, levels):
    for seed in range(5):
        scores, relevant = whole(n, seed, levels).double(), (whole(n, seed + 50, share) == 0).long()
        wanted = naive_average_precision(scores.tolist(), relevant.tolist())
        assert average_precision(scores, relevant) == pytest.approx(wanted, **CLOSE)


@pytest.mark.parametrize("n", [1, 2, 9, 30])
@pytest.mark.parametrize("relevant", [1, 2, 5])
def test_a_perfect_ranking_is_one_and_the_worst_is_the_share_of_what_is_relevant(n, relevant):
    labels = torch.cat([torch.ones(relevant), torch.zeros(n)]).long()
    scores = torch.linspace(1, -1, len(labels), dtype=torch.float64)
    assert average_precision(scores, labels) == 1
    # relevant rows last: precision rises with every one of them, to m / n at recall 1, which counts at all levels
    assert average_precision(-scores, labels) == pytest.approx(relevant / (n + relevant), **CLOSE)


def test_of_equal_scores_the_lower_row_is_ranked_first():
    labels = torch.tensor([0, 1, 0, 1])
    tied = average_precision(torch.zeros(4), labels)
    assert tied == average_precision(-torch.arange(4.0), labels) == 1 / 2
    assert average_precision(torch.zeros(4), labels.flip(0)) != tied


def test_average_precision_knows_only_the_order_of_scores():
    scores, relevant = torch.randn(60, generator=torch.Generator().manual_seed(0)).double(), whole(60, 1, 3) == 0
    wanted = average_precision(scores, relevant.long())
    assert average_precision(scores.exp() * 7 - 3, relevant.long()) == wanted


def test_map11_is_the_mean_over_classes():
    cases = [RANKED[name] for name in ("six_rows", "second_and_last_two", "falls_to_a_half")]
    labels = torch.tensor([relevant for relevant, _ in cases]).T
    scores = -torch.arange(6.0).double()[:, None].expand(6, 3)
    assert map11(scores, labels) == pytest.approx(sum(wanted for _, wanted in cases) / 3, **CLOSE)
    # a class that no row carries counts as 0
    more = torch.cat([labels, torch.zeros(6, 1, dtype=torch.long)], 1)
    assert map11(scores[:, :1].expand(6, 4), more) == pytest.approx(sum(wanted for _, wanted in cases) / 4, **CLOSE)


# ---- accuracy per class


def scores_of(predicted, classes):
    return F.one_hot(torch.tensor(predicted), classes).double()


def test_accuracy_and_mean_per_class_equal_those_worked_out_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
    scores = scores_of([0, 0, 0, 0, 0, 1, 1, 0, 2, 2], 3)
    assert accuracy(scores, labels) == pytest.approx(8 / 10, **CLOSE)
    assert mean_per_class(scores, labels) == pytest.approx((5 / 6 + 1 / 2 + 2 / 2) / 3, **CLOSE)
    # a class without rows has no accuracy, though others may be taken for it
    assert mean_per_class(scores_of([0, 3, 1], 4), torch.tensor([0, 0, 1])) == pytest.approx((1 / 2 + 1) / 2, **CLOSE)


@pytest.mark.parametrize("seed", range(5))
def test_mean_per_class_is_top1_where_classes_are_as_large(seed):
    labels = torch.arange(60) % 5
    scores = torch.randn(60, 5, generator=torch.Generator().manual_seed(seed)).double()
    assert mean_per_class(scores, labels) == pytest.approx(accuracy(scores, labels), **CLOSE)
    assert abs(mean_per_class(scores[:33], labels[:33]) - accuracy(scores[:33], labels[:33])) < 0.1  # and differs less


def test_always_the_largest_class_is_one_over_the_classes():
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    scores = scores_of([0] * 100, 3)
    assert (accuracy(scores, labels), mean_per_class(scores, labels)) == (0.9, pytest.approx(1 / 3, **CLOSE))


# ---- images


def pictures(n, side, channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, side, side, channels), generator=generator).byte()


@pytest.mark.parametrize("channels", [1, 3])
def test_images_that_fit_are_as_they_are(channels):
    images = pictures(5, 12, channels)
    assert torch.equal(as_seen(images, pictures(2, 12, channels, 1)), images)


def test_gray_becomes_three_equal_channels():
    images = pictures(5, 12, 1)
    seen = as_seen(images, pictures(2, 12, 3))
    assert (seen.shape, seen.dtype) == ((5, 12, 12, 3), torch.uint8)
    assert torch.equal(seen, images.expand(-1, -1, -1, 3))


def test_colour_becomes_its_luminance():
    images = pictures(5, 12, 3)
    seen = as_seen(images, pictures(2, 12, 1))
    assert (seen.shape, seen.dtype) == ((5, 12, 12, 1), torch.uint8)
    wanted = images.double() @ torch.tensor([[0.2989], [0.587], [0.114]], dtype=torch.float64)  # ITU-R 601-2
    assert (seen.double() - wanted).abs().max() < 0.5 + 1e-3  # rounded to a byte


@pytest.mark.parametrize("side", [6, 12, 13, 40])
@pytest.mark.parametrize(("channels", "wanted"), [(1, 1), (3, 3), (1, 3), (3, 1)])
def test_images_are_resized_to_the_side_that_the_encoder_saw(side, channels, wanted):
    images = pictures(4, side, channels)
    seen = as_seen(images, pictures(2, 12, wanted))
    assert (seen.shape, seen.dtype) == ((4, 12, 12, wanted), torch.uint8)
    x = images.permute(0, 3, 1, 2).double()
    x = F.interpolate(x, size=(12, 12), mode="bilinear", antialias=True)
    if wanted < channels:
        x = (x * torch.tensor([0.2989, 0.587, 0.114]).double()[:, None, None]).sum(1, keepdim=True)
    # rounded to a byte, after single precision
    assert (seen.permute(0, 3, 1, 2).double() - x).abs().max() < 0.5 + 1e-2


@pytest.mark.parametrize("channels", [1, 3])
def test_black_and_white_stay_so(channels):
    images = torch.zeros(2, 20, 20, channels, dtype=torch.uint8)
    images[1] = 255
    for wanted in (1, 3):
        seen = as_seen(images, pictures(1, 8, wanted))
        assert (seen[0] == 0).all()
        assert (seen[1] == 255).all()


def test_chunks_change_no_image(monkeypatch):
    images, like = pictures(11, 9, 3), pictures(1, 12, 1)
    whole_set = as_seen(images, like)
    monkeypatch.setattr("bench.evaluators.transfer.CHUNK", 4)
    assert torch.equal(as_seen(images, like), whole_set)


# ---- several labels


def several(n, d, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator).double()
    directions = torch.randn(d, classes, generator=generator).double()
    noise = torch.randn(n, classes, generator=generator).double()
    return x, (x @ directions + 2 * noise > 1).long()


def scikit_scores(x, y, l2, query):
    """One class against the rest, C = 1/l2, each to its optimum."""
    fits = [
        LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(x, column)
        for column in y.T
    ]
    return np.stack([fit.decision_function(query) for fit in fits], 1)


@pytest.mark.parametrize("l2", [0.1, 1.0, 100.0])
def test_scores_of_several_labels_equal_scikit_learns_one_class_against_the_rest(l2):
    x, y = several(150, 9, 4)
    query, _ = several(60, 9, 4, 1)
    weights, bias = solve_path(x, BinaryLogistic(y), [l2], tolerance=1e-10)
    # both gradients are 1e-8 or less, and the curvature along each direction 0.1 or more
    np.testing.assert_allclose(query @ weights[0] + bias[0], scikit_scores(x, y, l2, query), rtol=0, atol=1e-6)


# ---- the protocol


def labelled(n, classes, seed, side=4, shares=None):
    """Images of noise with one brighter pixel, which is the class; shares: of the classes."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.ones(classes) if shares is None else torch.tensor(shares)
    labels = torch.multinomial(shares, n, replacement=True, generator=generator)
    pixels = torch.randint(0, 100, (n, side, side, 1), generator=generator)
    pixels[torch.arange(n), labels // side, labels % side, 0] += 60
    return Labelled(pixels.byte(), labels)


def of_several(part, classes):
    """Each image of its class and of the next one, or of its class alone."""
    both = F.one_hot(part.labels, classes) + F.one_hot((part.labels + 1) % classes, classes) * (
        part.labels[:, None] % 2
    )
    return replace(part, labels=both)


def made(classes, seed, metric="top1", **options):
    train, validation, query = (labelled(n, classes, seed + i, **options) for i, n in enumerate((90, 40, 60)))
    if metric == "map11":
        train, validation, query = (of_several(part, classes) for part in (train, validation, query))
    return EvaluationData(train, validation, query, classes, metric)


OPTIONS = {"l2_low": 1e-2, "l2_high": 1e2, "l2_count": 5, "tolerance": 1e-8, "k": 5, "temperature": 0.1}


def transferred(targets, trained=None, base=None, **options):
    data = replace(base or made(3, 90), targets=targets)
    given = {"targets": list(targets), **OPTIONS, **options}
    return evaluate(trained or Trained(None), data, seed=0, **given).metrics


def test_the_headline_is_the_mean_over_targets():
    targets = {"a": made(3, 0), "b": made(4, 10, "mean_per_class"), "c": made(3, 20, "map11")}
    metrics = transferred(targets)
    own = [metrics[f"{name}_linear"] for name in targets]
    assert len(set(own)) == 3
    assert metrics["linear"] == pytest.approx(sum(own) / 3, **CLOSE)
    assert next(iter(metrics)) == "linear"
    # each target's numbers are its own, whatever stands beside it
    for name, target in targets.items():
        alone = transferred({name: target})
        assert {key: metrics[key] for key in alone if key != "linear"} == {
            k: v for k, v in alone.items() if k != "linear"
        }
        assert alone["linear"] == alone[f"{name}_linear"]


def test_only_the_targets_that_the_protocol_names_are_judged():
    data = replace(made(3, 90), targets={"a": made(3, 0), "b": made(4, 10)})
    metrics = evaluate(Trained(None), data, seed=0, targets=["b"], **OPTIONS).metrics
    assert set(metrics) == {"linear", "b_linear", "b_l2", "b_knn"}


def test_there_is_no_vote_where_images_carry_several_labels():
    assert set(transferred({"c": made(3, 20, "map11")})) == {"linear", "c_linear", "c_l2"}


def test_each_target_is_scored_by_its_own_metric():
    """One penalty, so that nothing is chosen: the same predictions under either metric."""
    shares = [6.0, 2.0, 1.0]
    found = {
        m: transferred({"a": made(3, 30, m, shares=shares)}, l2_high=1e-2, l2_count=1)
        for m in ("top1", "mean_per_class")
    }
    target = made(3, 30, shares=shares)
    parts = [Trained(None).features(part.images).double() for part in (target.fitted, target.query)]
    l2 = 1e-2 * len(target.fitted.labels) / len(target.train.labels)
    weights, bias = fit_path(parts[0], target.fitted.labels, [l2], classes=3, tolerance=1e-8)
    scores = parts[1] @ weights[0] + bias[0]
    for metric, metrics in found.items():
        assert metrics["a_linear"] == SCORES[metric](scores, target.query.labels)
    assert found["top1"]["a_linear"] != found["mean_per_class"]["a_linear"]
    assert found["top1"]["a_knn"] != found["mean_per_class"]["a_knn"]


@pytest.mark.parametrize("l2", [1e-2, 1.0])
def test_several_labels_are_scored_as_scikit_learn_would_have_it(l2):
    target = made(3, 20, "map11")
    given = transferred({"c": target}, l2_low=l2, l2_high=l2, l2_count=1)["c_linear"]
    x, query = (Trained(None).features(part.images).double().numpy() for part in (target.fitted, target.query))
    refit = l2 * len(target.fitted.labels) / len(target.train.labels)
    scores = torch.from_numpy(scikit_scores(x, target.fitted.labels.numpy(), refit, query))
    assert given == pytest.approx(map11(scores, target.query.labels), **CLOSE)


@pytest.mark.parametrize("metric", ["top1", "mean_per_class", "map11"])
def test_the_targets_own_validation_part_chooses_by_its_own_metric(metric):
    target, base = made(3, 40, metric), made(3, 90)
    wanted = transferred({"a": target})
    # the labels of the set that the encoder was trained on have no part
    for part in ("train", "validation", "query"):
        changed = replace(getattr(base, part), labels=getattr(base, part).labels.roll(1))
        assert transferred({"a": target}, base=replace(base, **{part: changed})) == wanted
    # nor have the target's queries
    query = replace(target.query, labels=target.query.labels.roll(1, 0))
    assert transferred({"a": replace(target, query=query)})["a_l2"] == wanted["a_l2"]
    # its validation rows: where those of other classes are right, nothing is better than saying little
    moved = [replace(target.validation, labels=target.validation.labels.roll(by, 0)) for by in (1, 2, 3)]
    penalties = {transferred({"a": replace(target, validation=part)})["a_l2"] for part in moved}
    assert penalties != {wanted["a_l2"]}


def test_a_target_of_another_size_and_colour_is_seen_as_the_encoder_takes_it():
    """Raw pixels of 4 x 4 gray stand for an encoder that takes such images alone."""
    small = made(3, 50)
    large = {
        part: replace(own, images=own.images.repeat_interleave(3, 1).repeat_interleave(3, 2).expand(-1, -1, -1, 3))
        for part in ("train", "validation", "query")
        for own in [getattr(small, part)]
    }
    seen = as_seen(large["query"].images, small.query.images)
    assert seen.shape == small.query.images.shape
    found = transferred({"a": replace(small, **large)})
    shrunk = {part: replace(own, images=as_seen(own.images, small.query.images)) for part, own in large.items()}
    assert found == transferred({"a": replace(small, **shrunk)})


def test_more_neighbours_than_rows_are_all_rows():
    target = {"a": made(3, 0)}
    assert transferred(target, k=10**6)["a_knn"] == transferred(target, k=130)["a_knn"]
