"""The weighted vote: against a naive loop with exact ties, against scikit-learn, and its limits."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from bench import products
from bench.evaluators.base import EvaluationData, Labelled
from bench.evaluators.knn import DIGITS, evaluate, knn_predict, nearest_rows
from bench.features import Trained


def likeness(a, b):
    """The cosine of two integer vectors, squared and signed: exact, and in the order of the cosine."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    lengths = sum(x * x for x in a) * sum(y * y for y in b)
    return Fraction(dot * abs(dot), lengths) if lengths else Fraction(0)


def naive_knn(bank, labels, queries, k, temperature, classes):
    """1805.01978, section 3.4, one query at a time; of equals, the lower row and the lower class."""
    predicted = []
    for query in queries:
        likenesses = [likeness(query, row) for row in bank]
        nearest = sorted(range(len(bank)), key=lambda row: (-likenesses[row], row))[:k]
        votes = [[] for _ in range(classes)]
        for row in nearest:
            cosine = math.copysign(math.sqrt(abs(likenesses[row])), likenesses[row])
            votes[labels[row]].append(math.exp(cosine / temperature))
        scores = [math.fsum(vote) for vote in votes]  # exactly rounded, so equal votes give equal scores
        predicted.append(scores.index(max(scores)))
    return predicted


def integers(n, d, seed, low=-2, high=3):
    return torch.randint(low, high, (n, d), generator=torch.Generator().manual_seed(seed))


def reals(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.2, 1.0, 30.0])
@pytest.mark.parametrize("k", [1, 2, 5, 20, 60])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_votes_equal_the_naive_loop_where_many_are_tied(dimensions, k, temperature):
    # multiples of one vector are equally similar, though their normalised floats may differ in a bit
    bank = integers(60, dimensions, 0) * integers(60, 1, 3, 1, 10)
    queries = integers(50, dimensions, 1) * integers(50, 1, 4, 1, 10)
    labels = integers(60, 1, 2, 0, 4)[:, 0]
    wanted = naive_knn(bank.tolist(), labels.tolist(), queries.tolist(), k, temperature, 4)
    given = knn_predict(bank.double(), labels, queries.double(), k, temperature, 4)
    assert given.tolist() == wanted
    # in single precision too: normalising and rounding bring ties of integers together again
    assert knn_predict(bank.float(), labels, queries.float(), k, temperature, 4).tolist() == wanted


# case: bank, its labels, query, k, the class that wins
TIES = {
    "first_of_equal_rows": ([[0, 1], [2, 0], [2, 0]], [0, 2, 1], [1, 0], 1, 2),
    "first_of_rows_that_differ_in_length": ([[0, 1], [3, 3], [1, 1]], [0, 2, 1], [5, 5], 1, 2),
    "the_last_place_goes_to_the_lower_row": ([[1, 0], [1, 2], [2, 1], [-1, 0]], [0, 2, 1, 0], [1, 1], 1, 2),
    "two_of_three_equal_rows": ([[1, 0], [1, 0], [1, 0]], [3, 3, 1], [1, 0], 2, 3),
    "lower_class_of_equal_scores": ([[0, 1], [1, 0]], [2, 1], [1, 1], 2, 1),
    "two_votes_against_two": ([[1, 1], [2, 2], [3, 3], [4, 4]], [3, 3, 1, 1], [1, 1], 4, 1),
    "a_zero_query_is_like_all": ([[1, 0], [0, 1], [1, 1]], [2, 1, 1], [0, 0], 1, 2),
    "a_zero_row_is_orthogonal": ([[-1, 0], [0, 0]], [0, 1], [1, 0], 1, 1),
}


@pytest.mark.parametrize(("bank", "labels", "query", "k", "winner"), TIES.values(), ids=TIES)
def test_ties_go_to_the_lower_row_then_the_lower_class(bank, labels, query, k, winner):
    assert naive_knn(bank, labels, [query], k, 0.5, 4) == [winner]
    tensors = torch.tensor(bank).float(), torch.tensor(labels), torch.tensor([query]).float()
    assert knn_predict(*tensors, k, 0.5, 4).tolist() == [winner]


@pytest.mark.parametrize("temperature", [0.05, 0.07, 1.0])
@pytest.mark.parametrize("k", [1, 7, 20, 300])
def test_votes_equal_scikit_learns(k, temperature):
    bank, labels, queries = reals(300, 8, 0), integers(300, 1, 1, 0, 5)[:, 0], reals(200, 8, 2)
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / temperature)
    )
    reference.fit(bank.double().numpy(), labels.numpy())
    wanted = reference.predict(queries.double().numpy())
    np.testing.assert_array_equal(knn_predict(bank, labels, queries, k, temperature, 5).numpy(), wanted)


REALS = (reals(120, 6, 3), integers(120, 1, 4, 0, 7)[:, 0], reals(90, 6, 5))


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-300])
def test_a_vanishing_temperature_leaves_the_nearest_row(temperature):
    assert torch.equal(knn_predict(*REALS, 20, temperature, 7), knn_predict(*REALS, 1, 1.0, 7))


@pytest.mark.parametrize("temperature", [1e-6, 0.07, 1e6])
def test_one_neighbour_needs_no_temperature(temperature):
    assert torch.equal(knn_predict(*REALS, 1, temperature, 7), knn_predict(*REALS, 1, 1.0, 7))


def test_rows_find_themselves():
    bank, labels, _ = REALS
    assert torch.equal(knn_predict(bank, labels, bank, 1, 0.07, 7), labels)


def test_an_infinite_temperature_counts_heads():
    bank, labels, queries = REALS
    nearest = np.argsort(-np.asarray(_cosines(queries, bank)), axis=1)[:, :15]
    heads = [np.bincount(labels.numpy()[rows], minlength=7) for rows in nearest]
    # 1e15: weights differ from 1 by less than what is called a tie; the lower class takes those
    for temperature in (1e15, math.inf):
        given = knn_predict(bank, labels, queries, 15, temperature, 7)
        assert given.tolist() == [int(count.argmax()) for count in heads]
    assert any((count == count.max()).sum() > 1 for count in heads)


def _cosines(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    return (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


def test_scales_of_rows_and_queries_do_not_matter():
    bank, labels, queries = REALS
    scaled = knn_predict(bank * 2.0 ** torch.arange(120)[:, None].remainder(9), labels, queries * 0.25, 9, 0.1, 7)
    assert torch.equal(scaled, knn_predict(*REALS, 9, 0.1, 7))


def test_a_class_without_rows_is_never_predicted():
    bank, labels, queries = REALS
    assert torch.equal(knn_predict(bank, labels, queries, 9, 0.1, 50), knn_predict(*REALS, 9, 0.1, 7))


@pytest.mark.parametrize("chunk", [1, 7, 89, 90, 91])
def test_chunks_change_no_prediction(chunk, monkeypatch):
    tied = integers(60, 3, 0).float(), integers(60, 1, 2, 0, 4)[:, 0], integers(90, 3, 1).float()
    wholes = [knn_predict(*data, 9, 0.2, 7) for data in (REALS, tied)]
    monkeypatch.setattr("bench.evaluators.knn.CHUNK", chunk)
    for data, whole in zip((REALS, tied), wholes, strict=True):
        assert torch.equal(knn_predict(*data, 9, 0.2, 7), whole)


def nearest_in_double(bank, queries, k):
    """Every cosine in double precision, rounded; of equals the lower row first."""
    cosines = F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).mT
    cosines = cosines.round(decimals=12)
    rows = cosines.argsort(dim=1, descending=True, stable=True)[:, :k]
    return rows, cosines.gather(1, rows)


# case: bank and queries; single precision tells apart all of the rows, some, or none
BANKS = {
    "apart": (reals(2_000, 8, 6), reals(30, 8, 7)),
    "often_equal": (integers(2_000, 4, 8).float(), integers(30, 4, 9).float()),
    "nearly_equal": (1 + 1e-4 * reals(2_000, 8, 10).double(), 1 + 1e-4 * reals(30, 8, 11).double()),
    "far_apart_but_for_a_hundred": (
        torch.cat([reals(1_900, 8, 12).double(), reals(1, 8, 13) + 1e-9 * reals(100, 8, 14).double()]),
        torch.cat([reals(15, 8, 13).double(), reals(15, 8, 15).double()]),
    ),
    "sorted_by_class": (
        F.normalize(reals(20, 64, 16), dim=1).repeat_interleave(100, 0) + 0.02 * reals(2_000, 64, 17),
        F.normalize(reals(20, 64, 16), dim=1)[:10] + 0.02 * reals(10, 64, 18),
    ),
    "all_equal": (torch.ones(2_000, 8), torch.ones(30, 8)),
}


@pytest.mark.parametrize("coarse", [False, True], ids=["single", "bfloat16"])
@pytest.mark.parametrize("k", [1, 20, 200, 1_990])
@pytest.mark.parametrize("name", BANKS)
def test_the_nearest_rows_are_those_of_double_precision(name, k, coarse, monkeypatch):
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: coarse)
    monkeypatch.setattr(products, "_multiplied", lambda a, b: (a.float() @ b.float().mT).to(a.dtype))
    bank, queries = BANKS[name]
    rows, cosines = nearest_rows(bank, queries, k)
    wanted, known = nearest_in_double(bank, queries, k)
    torch.testing.assert_close(cosines, known, rtol=0, atol=1e-11)
    # double precision's own last bits may round a cosine to the one decimal or the next: such rows change places
    exact = F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).mT
    assert ((exact.gather(1, rows) - exact.gather(1, wanted)).abs() <= 1.01 * 10**-DIGITS).all()
    assert name == "nearly_equal" or torch.equal(rows, wanted)


@pytest.mark.parametrize("coarse", [False, True], ids=["single", "bfloat16"])
@pytest.mark.parametrize("k", [1, 20, 60])
@pytest.mark.parametrize("name", ["apart", "sorted_by_class"])
def test_few_rows_are_looked_at_twice_whatever_their_order(name, k, coarse, monkeypatch):
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: coarse)
    monkeypatch.setattr(products, "_multiplied", lambda a, b: (a.float() @ b.float().mT).to(a.dtype))
    monkeypatch.delattr("bench.evaluators.knn._of_all")
    assert len(nearest_rows(*BANKS[name], k)[0]) == len(BANKS[name][1])


@pytest.mark.parametrize(("rows", "dim"), [(301, 64), (1027, 512), (1500, 33)])
def test_rows_equal_to_the_bit_are_equally_similar_whoever_else_asks(rows, dim, monkeypatch):
    monkeypatch.setattr("bench.evaluators.knn.DIGITS", 17)  # no bit is rounded away
    drawn = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(1, dim, generator=drawn).repeat(rows, 1), torch.randn(200, dim, generator=drawn)
    nearest, similarities = nearest_rows(bank, queries, 5)
    assert nearest.tolist() == [[0, 1, 2, 3, 4]] * len(queries)
    alone = [nearest_rows(bank, query[None], 5)[1] for query in queries[:20]]
    assert torch.equal(torch.cat(alone), similarities[:20])


def test_lengths_that_leave_single_precision_are_taken():
    bank, queries = 1e30 * reals(300, 8, 6), 1e-11 * reals(30, 8, 7)
    assert torch.equal(nearest_rows(bank, queries, 9)[0], nearest_in_double(bank, queries, 9)[0])


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 1e200])
def test_features_without_a_length_are_refused(wrong):
    rows = torch.eye(3, dtype=torch.float64)
    for given in ((rows, rows * wrong), (rows * wrong, rows)):
        with pytest.raises(ValueError, match="features hold values that are not finite, or too large"):
            nearest_rows(*given, 1)


def test_the_nearest_of_few_are_the_first_of_many():
    rows, cosines = nearest_rows(*BANKS["often_equal"], 200)
    for k in (1, 20, 199):
        few, similar = nearest_rows(*BANKS["often_equal"], k)
        assert torch.equal(few, rows[:, :k])
        assert torch.equal(similar, cosines[:, :k])


@pytest.mark.parametrize("queries", [0, 1])
def test_few_queries_are_answered(queries):
    bank, labels, _ = REALS
    assert knn_predict(bank, labels, bank[:queries], 1, 0.1, 7).tolist() == labels[:queries].tolist()


LABELS = torch.tensor([0, 1, 2])
WRONG = {
    "k_of_none": ({"k": 0}, "k wants 1 to the bank's 3 rows, not 0"),
    "k_above_the_bank": ({"k": 4}, "k wants 1 to the bank's 3 rows, not 4"),
    "temperature_zero": ({"temperature": 0.0}, r"temperature wants a positive number, not 0\.0"),
    "temperature_negative": ({"temperature": -0.1}, r"temperature wants a positive number, not -0\.1"),
    "label_above_the_classes": ({"classes": 2}, "labels want 0 to 1"),
    "label_below_zero": ({"bank_labels": LABELS - 1}, "labels want 0 to 2"),
}


@pytest.mark.parametrize(("change", "told"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named(change, told):
    right = {"bank": torch.eye(3), "bank_labels": LABELS, "queries": torch.eye(3)}
    right |= {"k": 3, "temperature": 0.1, "classes": 3}
    assert knn_predict(**right).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=told):
        knn_predict(**(right | change))


def drawn(n, seed):
    images = integers(n, 16, seed, 0, 256).to(torch.uint8).reshape(n, 4, 4, 1)
    return Labelled(images, integers(n, 1, seed + 1, 0, 3)[:, 0])


def test_the_bank_is_the_training_set_and_its_validation_part():
    train, validation, query = drawn(20, 0), drawn(6, 10), drawn(11, 20)
    result = evaluate(
        Trained(None), EvaluationData(train, validation, query, 3), seed=0, at=["h", "z"], k=[1, 26], temperature=0.1
    )
    pixels = [part.images.flatten(1).double() for part in (train, validation, query)]
    labels = torch.cat([train.labels, validation.labels])
    for k in (1, 26):
        wanted = knn_predict(torch.cat(pixels[:2]), labels, pixels[2], k, 0.1, 3)
        np.testing.assert_array_equal(result.arrays[f"predicted_k{k}"], wanted.numpy())
        assert result.metrics[f"top1_k{k}"] == np.mean((wanted == query.labels).numpy())
    assert list(result.metrics) == ["top1_k1", "top1_k26"]
