"""Linear SVM: the optimum that LIBLINEAR finds, and a penalty that only validation rows choose."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import LinearSVC

from bench.encoders.conv4 import Conv4
from bench.evaluators.base import EvaluationData, Labelled
from bench.evaluators.svm import evaluate, fit_svm
from bench.features import Trained

PATH = [1e2, 1e-2, 1.0, 1e4]
OPTIONS = {"l2_low": 1e-2, "l2_high": 1e3, "l2_count": 6, "tolerance": 1e-6}


def digits(classes: int, rows: int):
    x, y = load_digits(return_X_y=True)
    chosen = np.flatnonzero(y < classes)[:rows]
    return x[chosen] / 16, y[chosen]


def gaussian(classes: int, rows: int):
    return np.random.default_rng(0).normal(size=(rows, 12)), np.arange(rows) % classes


def liblinear(x, y, l2):
    """Its optimum as weights (d, C) and bias (C,), the bias nearly free: a feature of 1e4 carries it."""
    model = LinearSVC(C=1 / l2, dual=False, tol=1e-10, max_iter=100_000, intercept_scaling=1e4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(x, y)
    weights, bias = torch.from_numpy(model.coef_.T), torch.from_numpy(model.intercept_)
    if weights.shape[1] == 1:
        weights, bias = torch.cat([-weights, weights], 1), torch.cat([-bias, bias])
    return weights, bias


def objective(x, y, weights, bias, l2):
    signs = torch.full((len(y), len(bias)), -1.0).double()
    signs[torch.arange(len(y)), y] = 1
    losses = (1 - signs * (x @ weights + bias)).clamp_min(0).square()
    return (losses.sum() + l2 / 2 * weights.square().sum()).item()


@pytest.mark.parametrize(
    ("data", "classes", "rows"),
    [
        pytest.param(digits, 10, 600, id="digits"),
        pytest.param(digits, 2, 300, id="two_separable_classes"),
        pytest.param(gaussian, 5, 200, id="nothing_to_learn"),
        pytest.param(gaussian, 2, 200, id="two_classes_nothing_to_learn"),
    ],
)
def test_every_penalty_reaches_the_loss_and_predictions_of_liblinear(data, classes, rows):
    features, labels = data(classes, rows)
    x, y = torch.from_numpy(features), torch.from_numpy(labels).long()
    weights, bias = fit_svm(x, y, PATH, classes=classes, tolerance=1e-9)
    for i, l2 in enumerate(PATH):
        theirs_w, theirs_b = liblinear(features, labels, l2)
        ours, theirs = objective(x, y, weights[i], bias[i], l2), objective(x, y, theirs_w, theirs_b, l2)
        start = rows * classes  # the loss at W = 0
        assert ours <= theirs + 1e-10 * start
        assert theirs <= ours + 1e-6 * start  # its own tolerance, and its bias is not quite free
        assert torch.equal((x @ weights[i] + bias[i]).argmax(1), (x @ theirs_w + theirs_b).argmax(1))


def test_of_two_classes_each_is_the_others_negative():
    x, y = map(torch.from_numpy, digits(2, 100))
    weights, bias = fit_svm(x, y, [1.0], classes=2, tolerance=1e-10)
    torch.testing.assert_close(weights[0, :, 0], -weights[0, :, 1], rtol=0, atol=1e-7)
    torch.testing.assert_close(bias[0, 0], -bias[0, 1], rtol=0, atol=1e-7)


def test_classes_are_solved_as_if_alone():
    x, y = map(torch.from_numpy, digits(4, 150))
    (weights,), (bias,) = fit_svm(x, y, [1.0], classes=4, tolerance=1e-10)
    for c in range(4):
        (alone,), (alone_bias,) = fit_svm(x, (y == c).long(), [1.0], classes=2, tolerance=1e-10)
        torch.testing.assert_close(weights[:, c], alone[:, 1], rtol=0, atol=1e-6)
        torch.testing.assert_close(bias[c], alone_bias[1], rtol=0, atol=1e-6)


def test_types_and_shapes_follow_the_features():
    x, y = map(torch.from_numpy, digits(4, 100))
    weights, bias = fit_svm(x.float(), y, [1.0, 10.0], classes=4, tolerance=1e-5)
    assert (weights.shape, bias.shape) == ((2, 64, 4), (2, 4))
    assert weights.dtype == bias.dtype == torch.float32


def test_a_label_out_of_range_is_named():
    x, y = map(torch.from_numpy, digits(4, 60))
    for labels, told in ((y, "labels want 0 to 2, not 0 to 3"), (y - 1, "labels want 0 to 2, not -1 to 2")):
        with pytest.raises(ValueError, match=told):
            fit_svm(x, labels, [1.0], classes=3, tolerance=1e-6)


def images(rows: int, seed: int) -> Labelled:
    labels = torch.arange(rows) % 4
    pixels = torch.randint(0, 60, (rows, 8, 8, 1), generator=torch.Generator().manual_seed(seed))
    pixels[torch.arange(rows), labels, 0, 0] += 120
    return Labelled(pixels.byte(), labels)


PARTS = tuple(images(rows, seed) for seed, rows in enumerate((80, 40, 40)))


def test_query_labels_move_no_choice():
    swapped = Labelled(PARTS[2].images, PARTS[2].labels.flip(0))
    found = [
        evaluate(Trained(None), EvaluationData(*PARTS[:2], query, 4), seed=0, **OPTIONS)
        for query in (PARTS[2], swapped)
    ]
    assert list(found[0].metrics) == ["top1", "l2", "validation"]
    assert [found[0].metrics[name] for name in ("l2", "validation")] == [
        found[1].metrics[name] for name in ("l2", "validation")
    ]
    assert np.array_equal(found[0].arrays["predicted"], found[1].arrays["predicted"])
    assert found[0].metrics["top1"] != found[1].metrics["top1"]


def test_the_refit_takes_training_and_validation_rows():
    options = {"l2_low": 5.0, "l2_high": 5.0, "l2_count": 1, "tolerance": 1e-8}
    result = evaluate(Trained(None), EvaluationData(*PARTS, 4), seed=0, **options)
    x, y = (torch.cat([getattr(part, name) for part in PARTS[:2]]) for name in ("images", "labels"))
    weights, bias = fit_svm(Trained(None).features(x).double(), y, [5.0 * 120 / 80], classes=4, tolerance=1e-8)
    expected = (Trained(None).features(PARTS[2].images).double() @ weights[0] + bias[0]).argmax(1)
    assert np.array_equal(result.arrays["predicted"], expected.numpy())


def test_the_encoder_stays_as_it_was_and_the_result_repeats():
    torch.manual_seed(0)
    encoder = Conv4(1, width=2, blocks=4, stem_stride=1, sobel=False).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    data = EvaluationData(*PARTS, 4)
    first, second = (evaluate(Trained(encoder), data, seed=seed, **OPTIONS) for seed in (0, 1))
    assert encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert first.metrics == second.metrics
    assert np.array_equal(first.arrays["predicted"], second.arrays["predicted"])
