"""Three losses, one solver: the written-out objectives, their optima, and what must not matter to them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from bench.solvers import BinaryLogistic, Softmax, SquaredHinge, solve_path

CLASSES = 4


def softmax(scores, label):
    return math.log(math.fsum(math.exp(s - max(scores)) for s in scores)) + max(scores) - scores[label]


def squared_hinge(scores, label):
    return math.fsum(max(0.0, 1 - (s if c == label else -s)) ** 2 for c, s in enumerate(scores))


def binary_logistic(scores, label):
    return math.fsum(math.log1p(math.exp(-s if c == label else s)) for c, s in enumerate(scores))


# case: the loss of labels, and the loss of one row as the equation has it
LOSSES = {
    "softmax": (Softmax, softmax),
    "squared_hinge": (lambda y, classes: SquaredHinge(F.one_hot(y, classes)), squared_hinge),
    "binary_logistic": (lambda y, classes: BinaryLogistic(F.one_hot(y, classes)), binary_logistic),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def overlapping(rows=90, d=6, seed=0):
    """Classes that no linear model tells apart, of unequal numbers."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.rand(rows, generator=generator) ** 2 * CLASSES).long()
    x = torch.randn(rows, d, generator=generator, dtype=torch.float64)
    x[:, :CLASSES] += 0.7 * F.one_hot(y, CLASSES)
    return x, y


def separable(rows=60):
    x, y = overlapping(rows)
    return torch.cat([x, 8.0 * F.one_hot(y, CLASSES)], 1), y


def naive_objective(row_loss, x, y, weights, bias, l2):
    total = []
    for features, label in zip(x.tolist(), y.tolist(), strict=True):
        columns = zip(weights.mT.tolist(), bias.tolist(), strict=True)
        scores = [math.fsum(a * b for a, b in zip(features, w, strict=True)) + b for w, b in columns]
        total.append(row_loss(scores, label))
    return math.fsum(total) + l2 / 2 * math.fsum(w * w for w in weights.flatten().tolist())


def solved(name, x, y, path, tolerance=1e-9, classes=CLASSES, start=None):
    return solve_path(x, LOSSES[name][0](y, classes), path, tolerance=tolerance, start=start)


def slack(x):
    """How much larger an entry of the gradient may be here than in the centred principal axes, where it is judged."""
    return x.shape[1] ** 0.5 + x.mean(0).abs().max() + 1e-3


def gradients(name, x, y, weights, bias, l2):
    """Of the mean objective, by autograd."""
    weights, bias = weights.clone().requires_grad_(), bias.clone().requires_grad_()
    total, _ = LOSSES[name][0](y, CLASSES).total(x @ weights + bias)
    ((total + l2 / 2 * weights.square().sum()) / len(x)).backward()
    return torch.cat([weights.grad.flatten(), bias.grad])


@each_loss
@pytest.mark.parametrize("size", [0.0, 1.0, 40.0])
def test_the_sum_of_losses_equals_the_naive_loop(name, size):
    x, y = overlapping()
    weights = size * torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bias = torch.arange(CLASSES).double()
    total, _ = LOSSES[name][0](y, CLASSES).total(x @ weights + bias)
    assert total.item() == pytest.approx(naive_objective(LOSSES[name][1], x, y, weights, bias, 0.0), rel=1e-12)


@each_loss
def test_first_and_second_derivatives_equal_those_of_autograd(name):
    _, y = overlapping()
    loss = LOSSES[name][0](y, CLASSES)
    generator = torch.Generator().manual_seed(2)
    scores, change = torch.randn(2, len(y), CLASSES, generator=generator, dtype=torch.float64)
    scores.requires_grad_()
    total, state = loss.total(scores)
    (first,) = torch.autograd.grad(total, scores, create_graph=True)
    (moved,) = torch.autograd.grad(first, scores, change, retain_graph=True)
    slopes, second = loss.slopes(state)
    torch.testing.assert_close(slopes, first)
    torch.testing.assert_close(loss.curve(second, change), moved)
    alone = [torch.autograd.grad(first[:, c].sum(), scores, retain_graph=True)[0][:, c] for c in range(CLASSES)]
    torch.testing.assert_close(loss.diagonal(second), torch.stack(alone, 1))


@each_loss
@pytest.mark.parametrize("data", [overlapping, separable])
def test_the_gradient_vanishes_at_every_optimum(name, data):
    x, y = data()
    path = [1e3, 1.0, 1e-3]
    weights, bias = solved(name, x, y, path, 1e-8)
    for i, l2 in enumerate(path):
        assert gradients(name, x, y, weights[i], bias[i], l2).abs().max() <= slack(x) * 1e-8


@each_loss
@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_vanishes_though_rows_differ_wildly_in_size(name, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    x *= torch.randn(9, 1, generator=generator, dtype=torch.float64).exp() ** 3  # whole Newton steps overshoot
    y = torch.randint(0, CLASSES, (9,), generator=generator)
    (weights,), (bias,) = solved(name, x, y, [1e-3], 1e-6)
    assert gradients(name, x, y, weights, bias, 1e-3).abs().max() <= slack(x) * 1e-6


@each_loss
def test_no_step_away_lowers_the_naive_objective(name):
    x, y = overlapping(40)
    (weights,), (bias,) = solved(name, x, y, [0.5])
    lowest = naive_objective(LOSSES[name][1], x, y, weights, bias, 0.5)
    generator = torch.Generator().manual_seed(3)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(5):
            step = size * torch.randn(7, CLASSES, generator=generator, dtype=torch.float64)
            assert naive_objective(LOSSES[name][1], x, y, weights + step[:6], bias + step[6], 0.5) > lowest


@each_loss
@pytest.mark.parametrize("data", [overlapping, separable])
def test_a_larger_penalty_gives_smaller_weights(name, data):
    weights, _ = solved(name, *data(), [1e-3, 1e-1, 1e1, 1e3, 1e5])
    norms = weights.flatten(1).norm(dim=1)
    assert (norms[1:] < norms[:-1]).all()


@each_loss
def test_an_infinite_penalty_leaves_the_priors(name):
    x, y = overlapping()
    _, (bias,) = solved(name, x, y, [1e10])
    share = torch.bincount(y, minlength=CLASSES).double() / len(y)
    # the hinge's minimum over b of share (1 - b)^2 + (1 - share) (1 + b)^2 is 2 share - 1
    priors = {"softmax": bias.softmax(0), "squared_hinge": (bias + 1) / 2, "binary_logistic": bias.sigmoid()}
    torch.testing.assert_close(priors[name], share, rtol=0, atol=1e-6)


@each_loss
def test_the_order_of_penalties_does_not_matter(name):
    path = [1.0, 1e2, 1e-2, 1e2]
    there, back = solved(name, *overlapping(), path), solved(name, *overlapping(), path[::-1])
    assert torch.equal(there[0], back[0].flip(0))
    assert torch.equal(there[1], back[1].flip(0))
    assert torch.equal(there[0][1], there[0][3])


# case: rows and penalty another way, and the scores' change
SAME = {
    "rows_in_another_order": lambda x, y, l2: (x.flip(0), y.flip(0), l2, 1.0),
    "every_row_twice_at_twice_the_penalty": lambda x, y, l2: (x.repeat(2, 1), y.repeat(2), 2 * l2, 1.0),
    "features_times_1000": lambda x, y, l2: (1000 * x, y, 1e6 * l2, 1000.0),
    "features_over_1000": lambda x, y, l2: (x / 1000, y, l2 / 1e6, 1e-3),
    "features_moved": lambda x, y, l2: (x + 50, y, l2, 1.0),
    "every_feature_twice_at_twice_the_penalty": lambda x, y, l2: (x.repeat(1, 2), y, 2 * l2, 1.0),
    "a_constant_feature": lambda x, y, l2: (torch.cat([x, torch.ones(len(x), 1).double()], 1), y, l2, 1.0),
}


@each_loss
@pytest.mark.parametrize("case", SAME)
def test_what_leaves_the_problem_as_it_is_leaves_the_scores(name, case):
    x, y = overlapping()
    (weights,), (bias,) = solved(name, x, y, [0.5])
    other_x, other_y, l2, scale = SAME[case](x, y, 0.5)
    (other,), (other_bias,) = solved(name, other_x, other_y, [l2], 1e-9 * min(1.0, scale))
    scores = x @ weights + bias
    moved = (other_x @ other + other_bias)[: len(x)]
    torch.testing.assert_close(moved.flip(0) if case.startswith("rows") else moved, scores, rtol=1e-6, atol=1e-6)


@each_loss
def test_separable_rows_are_all_told_apart(name):
    x, y = separable()
    (weights,), (bias,) = solved(name, x, y, [1e-3])
    assert torch.equal((x @ weights + bias).argmax(1), y)


@each_loss
def test_a_class_without_rows_is_never_predicted(name):
    x, y = overlapping()
    weights, bias = solved(name, x, y, [1e2, 1e-2], 1e-6, classes=CLASSES + 1)
    assert ((x @ weights + bias[:, None]).argmax(2) < CLASSES).all()


@each_loss
def test_more_features_than_rows(name):
    x, y = overlapping(20, 50)
    (weights,), (bias,) = solved(name, x, y, [0.1], 1e-8)
    assert gradients(name, x, y, weights, bias, 0.1).abs().max() <= slack(x) * 1e-8


def test_a_softmax_of_two_is_one_logistic_at_half_the_penalty():
    x, y = overlapping()
    y = (y > 0).long()
    (both,), (both_bias,) = solve_path(x, Softmax(y, 2), [0.6], tolerance=1e-10)
    (one,), (one_bias,) = solve_path(x, BinaryLogistic(y[:, None]), [0.3], tolerance=1e-10)
    torch.testing.assert_close(both[:, 1] - both[:, 0], one[:, 0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close((both_bias[1] - both_bias[0])[None], one_bias, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("l2", [1e-2, 1.0, 1e2])
def test_rows_of_several_classes_or_none_reach_the_optima_of_scikit_learn(l2):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(120, 5, generator=generator, dtype=torch.float64)
    y = (x[:, :3] + torch.randn(120, 3, generator=generator) > 0.4).long()
    assert {0, 2} <= set(y.sum(1).tolist())
    (weights,), (bias,) = solve_path(x, BinaryLogistic(y), [l2], tolerance=1e-10)
    for c in range(3):
        model = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10_000).fit(x.numpy(), y[:, c].numpy())
        np.testing.assert_allclose(weights[:, c], model.coef_[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(bias[c], model.intercept_[0], rtol=1e-5, atol=1e-6)


WRONG = {
    "penalty_zero": ({"l2_values": [1.0, 0.0]}, "positive"),
    "penalty_negative": ({"l2_values": [-1.0]}, "positive"),
    "tolerance_zero": ({"tolerance": 0.0}, "positive"),
    "a_feature_that_is_not_finite": ({"x": torch.full((3, 2), math.inf)}, "not finite"),
    "fewer_features_than_labels": ({"x": torch.zeros(2, 2)}, "2 rows of features want as many labels, not 3"),
}


@pytest.mark.parametrize(("change", "told"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named(change, told):
    right = {"x": torch.eye(3)[:, :2], "loss": Softmax(torch.tensor([0, 1, 1]), 2), "l2_values": [1.0]}
    arguments = right | {"tolerance": 1e-6} | change
    with pytest.raises(ValueError, match=told):
        solve_path(arguments.pop("x"), arguments.pop("loss"), arguments.pop("l2_values"), **arguments)


def test_wrong_labels_and_targets_are_named():
    with pytest.raises(ValueError, match="labels want 0 to 1, not 0 to 2"):
        Softmax(torch.tensor([0, 2]), 2)
    for loss in (SquaredHinge, BinaryLogistic):
        with pytest.raises(ValueError, match="targets want 0 or 1"):
            loss(torch.tensor([[1, -1]]))


@pytest.mark.parametrize("scale", [1.0, 0.0], ids=["usual", "constant_features"])
def test_more_dimensions_than_rows_are_solved_in_the_rows_own_space(scale):
    generator = torch.Generator().manual_seed(3)
    x = 1 + scale * torch.randn(20, 50, generator=generator, dtype=torch.float64)
    y = torch.arange(20) % 3
    weights, bias = solve_path(x, Softmax(y, 3), [0.5], tolerance=1e-9)
    w, b = (t[0].clone().requires_grad_() for t in (weights, bias))
    objective = torch.nn.functional.cross_entropy(x @ w + b, y, reduction="sum") + 0.25 * w.square().sum()
    gradients = torch.autograd.grad(objective, (w, b))
    # the whole gradient vanishes, across the rows' space as well
    assert max(g.abs().max().item() for g in gradients) < 1e-6


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4])
def test_small_features_are_fitted_as_well_as_large_ones(scale):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (60,), generator=generator)
    wanted, _ = solve_path(x, Softmax(y, 3), [1.0], tolerance=1e-4)
    # scale times the features, 1 / scale times the weights and scale^2 times the penalty are the same objective
    weights, _ = solve_path(scale * x, Softmax(y, 3), [scale**2], tolerance=1e-4)
    torch.testing.assert_close(scale * weights, wanted, rtol=0, atol=3e-3)


@each_loss
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_a_start_changes_no_optimum(name, scale):
    x, y = overlapping()
    l2 = 0.5 * scale**2
    start = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(4)).double() / scale, torch.ones(CLASSES)
    (wanted,), (bias,) = solved(name, scale * x, y, [l2], 1e-8)
    (weights,), (started,) = solved(name, scale * x, y, [l2], 1e-8, start=start)
    torch.testing.assert_close(scale * weights, scale * wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(started - started.mean(), bias - bias.mean(), rtol=0, atol=1e-4)


@each_loss
def test_a_start_that_a_loose_tolerance_would_return_is_moved_towards_the_optimum(name):
    x, y = overlapping()
    some = 80
    (before,), (bias,) = solved(name, x[:some], y[:some], [0.5], 1e-8)
    (wanted,), _ = solved(name, x, y, [0.5 * len(x) / some], 1e-8)
    (found,), _ = solved(name, x, y, [0.5 * len(x) / some], 1.0, start=(before, bias))
    assert (found - wanted).norm() < 0.5 * (before - wanted).norm()


@each_loss
def test_a_start_at_the_optimum_is_returned(name):
    x, y = overlapping()
    (weights,), (bias,) = solved(name, x, y, [0.5], 1e-9)
    (again,), (again_bias,) = solved(name, x, y, [0.5], 1e-4, start=(weights, bias))
    torch.testing.assert_close(again, weights, rtol=0, atol=1e-12)
    torch.testing.assert_close(again_bias, bias, rtol=0, atol=1e-12)
