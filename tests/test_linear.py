"""Linear evaluation: the optimum that scikit-learn finds, a penalty that only validation rows choose."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from bench.encoders.conv4 import Conv4
from bench.evaluators.base import EvaluationData, Labelled
from bench.evaluators.linear import evaluate, fit_path
from bench.evaluators.penalties import Rows, accuracy, choose_and_refit, log_spaced, mean_per_class
from bench.features import Trained
from bench.solvers import NotConvergedError

PATH = [1e2, 1e-2, 1.0, 1e4]


def digits(classes: int, rows: int):
    x, y = load_digits(return_X_y=True)
    chosen = np.flatnonzero(y < classes)[:rows]
    return x[chosen] / 16, y[chosen]


def gaussian(classes: int, rows: int):
    generator = np.random.default_rng(0)
    return generator.normal(size=(rows, 12)), np.arange(rows) % classes


def scikit(x, y, l2: float, classes: int):
    """scikit-learn's optimum as weights (d, C) and bias (C,), and whether its own gradient test is met."""
    # its binary model has one column: w in ours is -w/2 and w/2, so its penalty is half
    model = LogisticRegression(C=1 / (l2 if classes > 2 else l2 / 2), tol=1e-10, max_iter=20_000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y)
    weights, bias = torch.from_numpy(model.coef_.T), torch.from_numpy(model.intercept_)
    if classes == 2:
        weights, bias = torch.cat([-weights / 2, weights / 2], 1), torch.cat([-bias / 2, bias / 2])
    return weights, bias, not caught


def objective(x, y, weights, bias, l2):
    logs = torch.log_softmax(x @ weights + bias, 1)
    return (-logs[torch.arange(len(y)), y].sum() + l2 / 2 * weights.square().sum()).item()


@pytest.mark.parametrize(
    ("data", "classes", "rows"),
    [
        pytest.param(digits, 10, 600, id="digits"),
        pytest.param(digits, 2, 300, id="two_separable_classes"),
        pytest.param(gaussian, 5, 200, id="nothing_to_learn"),
        pytest.param(gaussian, 2, 200, id="two_classes_nothing_to_learn"),
    ],
)
def test_every_penalty_reaches_the_loss_and_predictions_of_scikit_learn(data, classes, rows):
    features, labels = data(classes, rows)
    x, y = torch.from_numpy(features), torch.from_numpy(labels).long()
    weights, bias = fit_path(x, y, PATH, classes=classes, tolerance=1e-9)
    start = rows * math.log(classes)  # the loss at W = 0
    compared = 0
    for i, l2 in enumerate(PATH):
        theirs_w, theirs_b, converged = scikit(features, labels, l2, classes)
        ours = objective(x, y, weights[i], bias[i], l2)
        theirs = objective(x, y, theirs_w, theirs_b, l2)
        assert ours <= theirs + 1e-6 * start
        if converged:
            compared += 1
            assert abs(ours - theirs) <= 1e-6 * start
            assert torch.equal((x @ weights[i] + bias[i]).argmax(1), (x @ theirs_w + theirs_b).argmax(1))
    assert compared >= 2


def test_the_order_of_penalties_does_not_matter():
    x, y = map(torch.from_numpy, digits(10, 300))
    there, back = (fit_path(x, y, path, classes=10, tolerance=1e-7) for path in (PATH, PATH[::-1]))
    assert torch.equal(there[0], back[0].flip(0))
    assert torch.equal(there[1], back[1].flip(0))


def test_a_larger_penalty_gives_smaller_weights_and_in_the_limit_the_priors():
    x, y = map(torch.from_numpy, digits(3, 200))
    weights, bias = fit_path(x, y, [1e-2, 1.0, 1e2, 1e9], classes=3, tolerance=1e-9)
    norms = weights.flatten(1).norm(dim=1)
    assert (norms[1:] < norms[:-1]).all()
    counts = torch.bincount(y, minlength=3).double()
    torch.testing.assert_close(bias[-1].softmax(0), counts / counts.sum(), rtol=1e-4, atol=1e-4)


def test_types_and_shapes_follow_the_features():
    x, y = map(torch.from_numpy, digits(4, 100))
    weights, bias = fit_path(x.float(), y, [1.0, 10.0], classes=4, tolerance=1e-5)
    assert (weights.shape, bias.shape) == ((2, 64, 4), (2, 4))
    assert weights.dtype == bias.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l2_values": [1.0, 0.0]}, "positive"),
        ({"tolerance": 0.0}, "positive"),
        ({"classes": 3}, "labels want 0 to 2, not 0 to 3"),
    ],
)
def test_bad_input_is_an_error(change, message):
    x, y = map(torch.from_numpy, digits(4, 60))
    arguments = {"l2_values": [1.0], "classes": 4, "tolerance": 1e-6, **change}
    with pytest.raises(ValueError, match=message):
        fit_path(x, y, arguments.pop("l2_values"), **arguments)


def test_a_fit_that_cannot_reach_its_tolerance_says_so():
    x, y = map(torch.from_numpy, digits(4, 60))
    with pytest.raises(NotConvergedError, match="raise the tolerance"):
        fit_path(x, y, [1.0], classes=4, tolerance=1e-30)


def images(labels, seed: int) -> Labelled:
    noise = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 60, (len(labels), 4, 4, 1), generator=noise)
    pixels[torch.arange(len(labels)), labels, 0, 0] += 120
    return Labelled(pixels.byte(), labels)


def test_test_labels_move_no_choice():
    parts = [images(torch.arange(n) % 4, seed) for seed, n in enumerate((80, 40, 40))]
    options = {"l2_low": 1e-2, "l2_high": 1e3, "l2_count": 6, "tolerance": 1e-6}
    shuffled = Labelled(parts[2].images, parts[2].labels.flip(0))
    found = [
        evaluate(Trained(None), EvaluationData(parts[0], parts[1], query, 4), seed=0, **options)
        for query in (parts[2], shuffled)
    ]
    assert found[0].metrics["l2"] == found[1].metrics["l2"]
    assert found[0].metrics["validation"] == found[1].metrics["validation"]
    assert np.array_equal(found[0].arrays["predicted"], found[1].arrays["predicted"])
    assert found[0].metrics["top1"] != found[1].metrics["top1"]


def test_the_refit_scales_the_penalty_by_the_ratio_of_rows():
    parts = [images(torch.arange(n) % 4, seed) for seed, n in enumerate((80, 40, 40))]
    options = {"l2_low": 5.0, "l2_high": 5.0, "l2_count": 1, "tolerance": 1e-8}
    result = evaluate(Trained(None), EvaluationData(*parts, 4), seed=0, **options)
    both = torch.cat([parts[0].images, parts[1].images])
    x = Trained(None).features(both).double()
    y = torch.cat([parts[0].labels, parts[1].labels])
    weights, bias = fit_path(x, y, [5.0 * 120 / 80], classes=4, tolerance=1e-8)
    expected = (Trained(None).features(parts[2].images).double() @ weights[0] + bias[0]).argmax(1)
    assert np.array_equal(result.arrays["predicted"], expected.numpy())


def test_the_encoder_stays_as_it_was_and_the_result_repeats():
    torch.manual_seed(0)
    encoder = Conv4(1, width=2, blocks=4, stem_stride=1, sobel=False).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    parts = [images(torch.arange(n) % 4, seed) for seed, n in enumerate((80, 40, 40))]
    options = {"l2_low": 1e-2, "l2_high": 1e3, "l2_count": 6, "tolerance": 1e-6}
    data = EvaluationData(*parts, 4)
    first, second = (evaluate(Trained(encoder), data, seed=seed, **options) for seed in (0, 1))
    assert encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert first.metrics == second.metrics
    assert np.array_equal(first.arrays["predicted"], second.arrays["predicted"])


def fits_seen(path, score, validation_rows=1):
    """What `choose_and_refit` asks of a model with one weight, its penalty, and what it chooses."""
    asked = []

    def fit(x, y, penalties, start=None):
        asked.append((len(x), list(penalties), start and start[0].item()))
        return torch.tensor(penalties).double()[:, None, None], torch.zeros(len(penalties), 1).double()

    ones = Rows(torch.ones(4, 1).double(), torch.zeros(4).long())
    validation = Rows(torch.ones(validation_rows, 1).double(), torch.zeros(validation_rows).long())
    return asked, choose_and_refit(fit, ones, validation, path, score)


# case: penalties, the score that the model with each gets on the validation rows, the one that is chosen
CHOICES = {
    "the_best": ([1.0, 2.0, 4.0], {1.0: 0.1, 2.0: 0.9, 4.0: 0.5}, 2.0),
    "the_largest_of_equals": ([4.0, 1.0, 2.0], {1.0: 0.9, 2.0: 0.9, 4.0: 0.5}, 2.0),
    "the_largest_of_all_equal": ([4.0, 8.0, 2.0], {2.0: 0.0, 4.0: 0.0, 8.0: 0.0}, 8.0),
    "scores_below_zero": ([1.0, 2.0], {1.0: -1.0, 2.0: -3.0}, 1.0),
}


@pytest.mark.parametrize(("path", "scores", "chosen"), CHOICES.values(), ids=CHOICES)
def test_the_choice_is_the_best_by_the_given_score_then_the_largest(path, scores, chosen):
    asked, found = fits_seen(path, lambda predicted, labels: scores[predicted.item()])
    assert (found.l2, found.validation) == (chosen, scores[chosen])
    assert asked == [(4, path, None), (5, [chosen * 5 / 4], chosen)]  # refitted from the weights that were chosen
    assert found.weights.item() == chosen * 5 / 4


def test_without_validation_rows_the_largest_penalty_is_fitted_once():
    asked, found = fits_seen([1.0, 4.0, 2.0], accuracy, validation_rows=0)
    assert asked == [(4, [4.0], None)]
    assert (found.l2, found.validation) == (4.0, 0.0)


def test_mean_per_class_weighs_classes_not_rows():
    labels = torch.tensor([0, 0, 0, 1, 3])
    scores = torch.eye(4)[torch.tensor([0, 0, 1, 1, 2])]
    assert accuracy(scores, labels) == pytest.approx(3 / 5)
    assert mean_per_class(scores, labels) == pytest.approx((2 / 3 + 1 + 0) / 3)  # class 2 has no rows
    assert mean_per_class(scores[2:], labels[2:]) == pytest.approx(accuracy(scores[2:], labels[2:]))


def test_penalties_are_evenly_spaced_in_the_logarithm():
    assert log_spaced(1e-2, 1e3, 6) == [1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3]
    assert log_spaced(3.0, 1e3, 1) == [3.0]
