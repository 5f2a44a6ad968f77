"""Linear evaluation: the optimum that scikit-learn finds, a penalty that only validation rows choose."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from bench.evaluators.base import EvaluationData, Labelled
from bench.evaluators.linear import NotConvergedError, evaluate, fit_path
from bench.features import Trained

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
