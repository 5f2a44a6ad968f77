"""Linear evaluation by SGD: the optimum it nears, what it is shown, and that it changes and chooses nothing."""

import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from bench.augment import to_float
from bench.encoders.base import Encoder
from bench.encoders.conv4 import Conv4
from bench.evaluators import EVALUATORS, linear_sgd
from bench.evaluators.base import EvaluationData, Labelled
from bench.evaluators.linear_sgd import STD, evaluate
from bench.evaluators.sgd import DivergedError, Sgd
from bench.features import Trained
from bench.optim import learning_rate
from bench.params import check_options

SGD = {"momentum": 0.9, "weight_decay": 1e-2}
OPTIONS = {
    "epochs": 3,
    "batch": 32,
    "lr": 1.0,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "decay": "cosine",
    "milestones": [],
    "factor": 1.0,
    "crop_scale": [0.2, 1.0],
    "crop_ratio": [0.75, 1.33],
    "flip": 0.5,
}
WHOLE = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "flip": 0.0}
STEPS = {"decay": "step", "momentum": 0.0}


def fit(shown, y, classes, rate, *, seed, epochs, batch, momentum, weight_decay):
    part = Labelled(torch.zeros(len(y), 1, 1, 1, dtype=torch.uint8), y)
    return linear_sgd.fit(shown, part, classes, Sgd(epochs, batch, rate, momentum, weight_decay), seed=seed)


def digits(classes: int, rows: int):
    x, y = load_digits(return_X_y=True)
    chosen = np.flatnonzero(y < classes)[:rows]
    return x[chosen] / 16, y[chosen]


def gaussian(classes: int, rows: int):
    return np.random.default_rng(0).normal(size=(rows, 12)), np.arange(rows) % classes


def fitted(x, y, classes, **changes):
    """The classifier on rows as they are, as weights (d, C) and bias (C,)."""
    given = {"epochs": 200, "batch": 50, "lr": 1.0, "seed": 0, "weight_decay": 1e-2, **changes}
    epochs, batch, lr, seed = (given.pop(name) for name in ("epochs", "batch", "lr", "seed"))
    rate = partial(learning_rate, base=lr, steps=epochs * -(-len(y) // batch), warmup=0, decay="cosine")
    shown, sizes = lambda rows, epoch: x[torch.from_numpy(rows)], {"epochs": epochs, "batch": batch}
    classifier = fit(shown, y, classes, rate, seed=seed, **sizes, **(SGD | given))
    return classifier.weight.detach().double().mT, classifier.bias.detach().double()


def objective(x, y, weights, bias, l2):
    logs = torch.log_softmax(x.double() @ weights + bias, 1)
    return (-logs[torch.arange(len(y)), y].sum() + l2 / 2 * weights.square().sum()).item()


@pytest.mark.parametrize(
    ("data", "classes", "rows", "options"),
    [
        pytest.param(digits, 10, 300, {"weight_decay": 1e-2}, id="digits_separable"),
        pytest.param(digits, 2, 100, {"weight_decay": 1e-3, "batch": 32}, id="two_separable_classes_and_a_short_batch"),
        pytest.param(gaussian, 5, 200, {"lr": 0.03, "epochs": 400}, id="nothing_to_learn"),
        pytest.param(gaussian, 3, 100, {"lr": 0.3, "batch": 100}, id="nothing_to_learn_in_whole_batches"),
    ],
)
def test_long_training_without_views_nears_the_optimum_of_scikit_learn(data, classes, rows, options):
    features, labels = data(classes, rows)
    x, y = torch.from_numpy(features).float(), torch.from_numpy(labels).long()
    weights, bias = fitted(x, y, classes, **options)
    l2 = options.get("weight_decay", 1e-2) * rows  # of the sum of losses
    # its binary model has one column: w in ours is -w/2 and w/2, so its penalty is half
    model = LogisticRegression(C=1 / (l2 if classes > 2 else l2 / 2), tol=1e-10, max_iter=20_000).fit(features, labels)
    theirs, theirs_b = torch.from_numpy(model.coef_.T), torch.from_numpy(model.intercept_)
    if classes == 2:
        theirs, theirs_b = torch.cat([-theirs / 2, theirs / 2], 1), torch.cat([-theirs_b / 2, theirs_b / 2])
    gap = objective(x, y, weights, bias, l2) - objective(x, y, theirs, theirs_b, l2)
    assert -1e-8 <= gap / (rows * math.log(classes)) <= 1e-4
    agreed = (x.double() @ weights + bias).argmax(1) == (x.double() @ theirs + theirs_b).argmax(1)
    assert agreed.double().mean() >= 0.99


def test_every_step_equals_the_naive_loop():
    features, labels = gaussian(3, 20)
    x, y = torch.from_numpy(features).float(), torch.from_numpy(labels).long()
    rates, seen = [0.5, 0.4, 0.3, 0.2, 0.1, 0.05], []

    def shown(rows, epoch):
        seen.append((rows.tolist(), epoch))
        return x[torch.from_numpy(rows)]

    classifier = fit(shown, y, 3, rates.__getitem__, seed=4, epochs=2, batch=8, **SGD)
    start = fit(shown, y, 3, lambda step: 0.0, seed=4, epochs=1, batch=20, **SGD)
    w, b = start.weight.detach().numpy().astype(float), np.zeros(3)
    v, u = np.zeros_like(w), np.zeros(3)
    steps = [rows for rows, _ in seen[1:7]]  # the first call asks for the width
    assert [len(rows) for rows in steps] == [8, 8, 4, 8, 8, 4]
    for rate, rows in zip(rates, steps, strict=True):
        scores = features[rows] @ w.T + b
        p = np.exp(scores - scores.max(1, keepdims=True))
        p = p / p.sum(1, keepdims=True) - np.eye(3)[labels[rows]]
        v = 0.9 * v + p.T @ features[rows] / len(rows) + 1e-2 * w
        u = 0.9 * u + p.mean(0)
        w, b = w - rate * v, b - rate * u
    np.testing.assert_allclose(classifier.weight.detach(), w, atol=1e-5)
    np.testing.assert_allclose(classifier.bias.detach(), b, atol=1e-5)


def test_the_first_weights_are_the_papers_and_the_seeds():
    x, y = torch.zeros(4, 2000), torch.arange(4)
    first, again, other = (
        fit(lambda rows, epoch: x[torch.from_numpy(rows)], y, 4, lambda step: 0.0, seed=seed, epochs=1, batch=4, **SGD)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert first.bias.abs().max() == 0
    # 8000 draws: the mean and the deviation are each within four of their standard errors
    assert abs(first.weight.mean().item()) <= 4 * STD / 8000**0.5
    assert abs(first.weight.std().item() / STD - 1) <= 4 / 16000**0.5


def test_a_rate_too_high_says_so():
    x, y = torch.eye(4), torch.arange(4)
    with pytest.raises(DivergedError, match="not finite after 6 steps; lower lr"):
        fitted(1e30 * x, y, 4, lr=1e30, epochs=6, batch=4)


class Recorder(Encoder):
    """Pixels as they are, kept: which views, in which mode."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.views, self.modes = [], []

    def forward(self, x):
        self.views.append(x.clone())
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.weight * x.flatten(1)

    def layers(self):
        return {}


def images(rows: int, seed: int, side: int = 8, classes: int = 4) -> Labelled:
    labels = torch.arange(rows) % classes
    pixels = torch.randint(0, 60, (rows, side, side, 1), generator=torch.Generator().manual_seed(seed))
    pixels[torch.arange(rows), labels, 2:6, 2:6] += 150
    return Labelled(pixels.byte(), labels)


PARTS = tuple(images(rows, seed) for seed, rows in enumerate((60, 30, 40)))
DATA = EvaluationData(*PARTS, 4)


def run(trained=None, data=DATA, seed=0, **changes):
    return evaluate(trained or Trained(None), data, seed=seed, **{**OPTIONS, **changes})


def recorded(**changes):
    """The views of each epoch, in steps, then those that are scored."""
    encoder = Recorder().train()
    run(Trained(encoder), **changes)
    assert encoder.training
    assert set(encoder.modes) == {(False, False)}
    views = encoder.views[1:]  # the first asks for the width
    return [views[:3], views[3:6], views[6:9]], torch.cat(views[9:])


def test_every_epoch_shows_every_row_once_and_the_last_batch_is_short():
    epochs, scored = recorded(**WHOLE)
    everything = torch.cat([to_float(part.images) for part in PARTS[:2]]).flatten(1)
    for steps in epochs:
        assert [len(step) for step in steps] == [32, 32, 26]
        shown = torch.cat(steps).flatten(1)
        assert torch.equal(_sorted(shown), _sorted(everything))
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert torch.equal(scored, to_float(PARTS[2].images))


def _sorted(rows):
    return torch.from_numpy(np.unique(rows.numpy(), axis=0))


def mirrored(epoch) -> list[int]:
    """Which of the training rows an epoch shows mirrored, by their bytes."""
    everything = torch.cat([to_float(part.images) for part in PARTS[:2]]).flip(3)
    shown = {view.numpy().tobytes() for view in torch.cat(epoch)}
    return [i for i, row in enumerate(everything) if row.numpy().tobytes() in shown]


def test_every_epoch_and_every_seed_mirrors_other_rows():
    flips = WHOLE | {"flip": 0.5}
    first, again, other = ([mirrored(epoch) for epoch in recorded(seed=seed, **flips)[0]] for seed in (0, 0, 1))
    assert first == again
    assert len({tuple(rows) for rows in first + other}) == 6
    # 540 draws at one half: within four of their deviation
    assert abs(sum(map(len, first + other)) - 270) <= 4 * 135**0.5
    assert [len(mirrored(recorded(**WHOLE | {"flip": p})[0][0])) for p in (0.0, 1.0)] == [0, 90]


def test_the_seed_orders_the_rows():
    first, again, other = (torch.cat(recorded(seed=seed, **WHOLE)[0][0]) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_crops_are_other_parts_in_every_epoch():
    first, second = (torch.cat(epoch).flatten(1) for epoch in recorded(flip=0.0)[0][:2])
    clean = torch.cat([to_float(part.images) for part in PARTS[:2]]).flatten(1)
    for a, b in ((first, clean), (first, second)):
        assert (
            torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist").min(1).values > 0.01
        ).double().mean() > 0.9


def test_images_that_are_not_square_are_shown_square_and_scored_so():
    wide = [Labelled(part.images[:, :, :6], part.labels) for part in PARTS]
    encoder = Recorder()
    run(Trained(encoder), EvaluationData(*wide, 4))
    assert {tuple(view.shape[1:]) for view in encoder.views} == {(1, 8, 8)}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"weight_decay": 0.0, "momentum": 0.0}, id="plain"),
        pytest.param({"weight_decay": 0.0, "momentum": 0.9}, id="momentum"),
        pytest.param({"weight_decay": 0.3, "momentum": 0.0}, id="weight_decay"),
    ],
)
def test_whole_views_equal_a_fit_on_clean_features(options):
    generator = torch.Generator().manual_seed(9)  # labels at random, so that predictions are sensitive

    def random(rows):
        pixels = torch.randint(0, 256, (rows, 8, 8, 1), generator=generator).byte()
        return Labelled(pixels, torch.randint(0, 4, (rows,), generator=generator))

    parts = [random(rows) for rows in (60, 30, 400)]
    parts[1] = Labelled(parts[1].images, parts[1].labels, torch.arange(60, 90))
    trained = Trained(None)
    x = torch.cat([trained.features(part.images) for part in parts[:2]])
    y = torch.cat([part.labels for part in parts[:2]])
    weights, bias = fitted(x, y, 4, epochs=3, batch=45, lr=1.0 * 45 / 256, **options)
    expected = (trained.features(parts[2].images).double() @ weights + bias).argmax(1)
    result = run(trained, EvaluationData(*parts, 4), batch=45, lr=1.0, **WHOLE | options)
    assert np.array_equal(result.arrays["predicted"], expected.numpy())
    assert len(set(result.arrays["predicted"])) > 1


def test_the_encoder_stays_as_it_was_and_the_result_repeats():
    torch.manual_seed(0)
    encoder = Conv4(1, width=2, blocks=4, stem_stride=1, sobel=False).train()
    encoder(torch.rand(8, 1, 8, 8))
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (run(Trained(encoder)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert all(p.grad is None for p in encoder.parameters())
    assert first.metrics == second.metrics
    assert np.array_equal(first.arrays["predicted"], second.arrays["predicted"])


def test_query_labels_move_nothing():
    swapped = Labelled(PARTS[2].images, PARTS[2].labels.flip(0))
    first, second = run(), run(data=EvaluationData(*PARTS[:2], swapped, 4))
    assert np.array_equal(first.arrays["predicted"], second.arrays["predicted"])
    assert first.metrics["top1"] != second.metrics["top1"]


def test_training_and_validation_rows_are_one_set():
    whole, cuts = PARTS[0], (slice(0, 40), slice(40, 60))
    halves = [Labelled(whole.images[s], whole.labels[s], whole.ids[s]) for s in cuts]
    nothing = Labelled(PARTS[0].images[:0], PARTS[0].labels[:0])
    split, whole = (run(data=EvaluationData(*parts, PARTS[2], 4)) for parts in (halves, (PARTS[0], nothing)))
    assert np.array_equal(split.arrays["predicted"], whole.arrays["predicted"])


def test_top1_counts_what_is_predicted_and_top5_is_at_least_as_high():
    parts = [images(rows, seed, classes=8) for seed, rows in enumerate((80, 40, 64))]
    result = run(data=EvaluationData(*parts, 8), lr=0.03, epochs=1)
    assert list(result.metrics) == ["top1", "top5"]
    assert result.metrics["top1"] == np.mean(result.arrays["predicted"] == parts[2].labels.numpy())
    assert result.metrics["top1"] < result.metrics["top5"] < 1
    assert run().metrics["top5"] == 1.0  # of four classes


@pytest.mark.parametrize(("label", "top1", "top5"), [(0, 1.0, 1.0), (1, 0.0, 1.0), (4, 0.0, 1.0), (5, 0.0, 0.0)])
def test_of_equal_scores_the_lower_class_leads(label, top1, top5):
    query = Labelled(torch.zeros_like(PARTS[2].images), torch.full((40,), label))
    # black images: every score is the bias, and so small a rate leaves it 0
    result = run(data=EvaluationData(*PARTS[:2], query, 8), lr=1e-60)
    assert set(result.arrays["predicted"]) == {0}
    assert result.metrics == {"top1": top1, "top5": top5}


def test_the_rate_is_of_256_rows():
    # all rows in one step, however large the batch, so only the rate tells these apart
    first, second = (run(batch=batch, lr=lr) for batch, lr in ((128, 8.0), (256, 4.0)))
    assert np.array_equal(first.arrays["predicted"], second.arrays["predicted"])


def test_a_step_decay_falls_at_its_milestones():
    short = run(epochs=2, milestones=[9], factor=0.5, **STEPS)
    ended = run(epochs=4, milestones=[2], factor=1e-30, **STEPS)
    longer = run(epochs=4, milestones=[9], factor=0.5, **STEPS)
    assert np.array_equal(short.arrays["predicted"], ended.arrays["predicted"])
    assert not np.array_equal(short.arrays["predicted"], longer.arrays["predicted"])


WRONG = {
    "milestones_of_a_cosine": ({"milestones": [1]}, "belong to decay: step"),
    "factor_of_a_cosine": ({"factor": 0.1}, "belong to decay: step"),
    "steps_without_milestones": ({"decay": "step"}, "decay: step wants milestones"),
}


RANGES = {
    "one_end_of_the_scale": ({"crop_scale": [0.5]}, "crop_scale: .*at least 2 items"),
    "scale_upside_down": ({"crop_scale": [1.0, 0.2]}, r"crop_scale: \[1.0, 0.2\] wants the lower number first"),
    "scale_of_nothing": ({"crop_scale": [0.0, 1.0]}, "crop_scale.0: .*greater than 0"),
    "three_ratios": ({"crop_ratio": [0.5, 1.0, 2.0]}, "crop_ratio: .*at most 2 items"),
}


@pytest.mark.parametrize(("change", "told"), RANGES.values(), ids=RANGES)
def test_a_wrong_range_is_refused_before_anything_runs(change, told):
    (problem,) = check_options(EVALUATORS, "evaluations.linear_sgd", "linear_sgd", OPTIONS | change)
    assert re.search(told, problem)


@pytest.mark.parametrize(("change", "told"), WRONG.values(), ids=WRONG)
def test_a_wrong_option_is_named(change, told):
    with pytest.raises(ValueError, match=told):
        run(**change)
