"""Semi-supervised evaluation: which labels it takes, and what it fine-tunes."""

import copy
import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn

from bench.augment import to_float
from bench.encoders.base import Encoder
from bench.encoders.conv4 import Conv4
from bench.encoders.layers import numbered
from bench.evaluators import EVALUATORS
from bench.evaluators.base import EvaluationData, Labelled
from bench.evaluators.linear import fit_path
from bench.evaluators.semisup import evaluate, label_subset
from bench.evaluators.sgd import DivergedError, linear_head
from bench.features import Trained
from bench.params import check_options

# ---- which labels


def drawn(counts, seed=0):
    """So many rows of each class, mixed, with ids that leave gaps."""
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    return Labelled(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels, 5 + 3 * torch.arange(len(labels)))


def counted(labelled, fraction, classes):
    return torch.bincount(labelled.labels[label_subset(labelled, fraction)], minlength=classes).tolist()


# class sizes of ImageNet lie between 732 and 1,300; a half goes to the even neighbour, as Python rounds
SIZES = {
    "imagenet_largest_1pct": (1300, 0.01, 13),
    "imagenet_smallest_1pct": (732, 0.01, 7),
    "imagenet_largest_10pct": (1300, 0.1, 130),
    "imagenet_smallest_10pct": (732, 0.1, 73),
    "half_down_to_even": (850, 0.01, 8),
    "half_up_to_even": (750, 0.01, 8),
    "above_a_half": (751, 0.01, 8),
    "at_least_one": (30, 0.01, 1),
    "at_least_one_of_one": (1, 0.5, 1),
    "none_asked_for": (30, 0.0, 1),
    "all": (30, 1.0, 30),
}


@pytest.mark.parametrize(("rows", "fraction", "kept"), SIZES.values(), ids=SIZES)
def test_a_class_gives_the_rounded_share_of_its_rows_and_at_least_one(rows, fraction, kept):
    assert counted(drawn([rows, 200]), fraction, 2) == [kept, max(1, round(200 * fraction))]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.33, 0.5, 1.0])
@pytest.mark.parametrize("counts", [[100] * 5, [7, 100, 1, 33, 250], [1], [3, 0, 4]])
def test_subsets_are_balanced_as_the_classes_are(counts, fraction):
    wanted = [max(1, round(fraction * n)) if n else 0 for n in counts]
    assert counted(drawn(counts), fraction, len(counts)) == wanted


FRACTIONS = [0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.9, 1.0]


@pytest.mark.parametrize("counts", [[100] * 5, [7, 100, 1, 33, 250]])
def test_smaller_subsets_lie_inside_larger_ones(counts):
    labelled = drawn(counts)
    subsets = [set(label_subset(labelled, fraction).tolist()) for fraction in FRACTIONS]
    for smaller, larger in itertools.pairwise(subsets):
        assert smaller <= larger
    assert len(subsets[0]) < len(subsets[3]) < len(subsets[-1]) == len(labelled.labels)


def test_positions_rise_and_none_comes_twice():
    for fraction in FRACTIONS:
        positions = label_subset(drawn([50, 20, 30]), fraction)
        assert positions.dtype == torch.int64
        assert (positions.diff() > 0).all()


def test_an_image_is_chosen_by_its_id_whatever_stands_beside_it_in_the_file():
    labelled = drawn([60, 40, 50])
    wanted = set(labelled.ids[label_subset(labelled, 0.1)].tolist())
    order = torch.randperm(150, generator=torch.Generator().manual_seed(7))
    mixed = Labelled(*(getattr(labelled, name)[order] for name in ("images", "labels", "ids")))
    assert set(mixed.ids[label_subset(mixed, 0.1)].tolist()) == wanted
    # nor do other images matter: another seed's pixels are not looked at
    other = Labelled(torch.full_like(labelled.images, 9), labelled.labels, labelled.ids)
    assert set(labelled.ids[label_subset(other, 0.1)].tolist()) == wanted
    # rows of another class do not either
    rows = labelled.labels != 1
    fewer = Labelled(*(getattr(labelled, name)[rows] for name in ("images", "labels", "ids")))
    kept = labelled.ids[label_subset(labelled, 0.1)][labelled.labels[label_subset(labelled, 0.1)] != 1]
    assert fewer.ids[label_subset(fewer, 0.1)].tolist() == kept.tolist()


def test_which_images_are_chosen_depends_on_their_ids():
    labelled = drawn([60, 40, 50])
    moved = Labelled(labelled.images, labelled.labels, labelled.ids + 1)
    assert not torch.equal(label_subset(moved, 0.2), label_subset(labelled, 0.2))


def test_no_place_in_the_file_is_preferred():
    """A tenth of 4,000 rows: half of them in the first half, within four deviations of chance."""
    labelled = drawn([4000])
    first = (label_subset(labelled, 0.1) < 2000).sum().item()
    assert abs(first - 200) < 4 * (400 * 0.25 * 0.9) ** 0.5


# ---- the protocol


class Small(Encoder):
    """A convolution and its mean over quarters, nothing that normalises a batch: the same h in either mode."""

    def __init__(self):
        super().__init__()
        self.convolution, self.dim = nn.Conv2d(1, 4, 3, padding=1), 16

    def forward(self, x):
        return nn.functional.avg_pool2d(torch.relu(self.convolution(4 * x - 2)), x.shape[2] // 2).flatten(1)

    def layers(self):
        return numbered([self.convolution])


def conv4(seed=0):
    torch.manual_seed(seed)
    return Conv4(1, width=2, blocks=4, stem_stride=1, sobel=False).eval()


def small(seed=0):
    torch.manual_seed(seed)
    return Small().eval()


def corners(n, seed, noise=60, light=120):
    """One of three corners is brighter, which is the class."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randint(0, noise, (n, 12, 12, 1), generator=generator), torch.arange(n) % 3
    for c, (a, b) in enumerate(((0, 0), (0, 6), (6, 6))):
        images[labels == c, a : a + 6, b : b + 6] += light
    return Labelled(images.byte(), labels, torch.arange(n) * 2 + seed)


DATA = EvaluationData(corners(90, 0), corners(30, 1001), corners(60, 2002), 3)
WHOLE = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "flip": 0.0}
OPTIONS = {"draw": 0, "fractions": [0.1, 0.5], "lr": [0.05, 0.05], "head_lr": [0.5, 0.5], "epochs": 8, "batch": 16}
OPTIONS |= {"momentum": 0.9, "milestones": [6], "factor": 0.2, **WHOLE}


def tuned(encoder=None, data=DATA, seed=0, **options):
    return evaluate(Trained(encoder or conv4()), data, seed=seed, **{**OPTIONS, **options})


def test_metrics_and_arrays_are_named_by_percentage():
    result = tuned(fractions=[0.01, 0.07, 0.1, 1.0], lr=[0.01] * 4, head_lr=[0.1] * 4, epochs=1)
    names = ["1pct", "7pct", "10pct", "100pct"]
    assert list(result.metrics) == [f"{metric}_{name}" for name in names for metric in ("top1", "top5")]
    assert list(result.arrays) == [f"rows_{name}" for name in names]


def test_arrays_hold_the_ids_of_the_subset_whatever_the_seed_or_the_encoder():
    wanted = {
        name: DATA.fitted.ids[label_subset(DATA.fitted, f)].numpy() for name, f in (("10pct", 0.1), ("50pct", 0.5))
    }
    for seed, encoder in ((0, conv4()), (1, conv4()), (0, small()), (7, conv4(3))):
        result = tuned(encoder, seed=seed, epochs=1)
        for name, ids in wanted.items():
            np.testing.assert_array_equal(result.arrays[f"rows_{name}"], ids)
    # training and validation rows are the source
    assert set(wanted["50pct"]) & set(DATA.train.ids.tolist())
    assert set(wanted["50pct"]) & set(DATA.validation.ids.tolist())
    assert not set(wanted["50pct"]) & set(DATA.query.ids.tolist())


def spoilt(part, among):
    """The rows that are not of a subset, black and of one class."""
    other = ~torch.isin(part.ids, torch.from_numpy(among))
    images, labels = part.images.clone(), part.labels.clone()
    images[other], labels[other] = 0, 0
    return Labelled(images, labels, part.ids), other


def test_no_pixel_of_another_row_is_looked_at():
    wanted = tuned()
    spoilt_images = [
        Labelled(spoilt(part, wanted.arrays["rows_50pct"])[0].images, part.labels, part.ids)
        for part in (DATA.train, DATA.validation)
    ]
    given = tuned(data=EvaluationData(*spoilt_images, DATA.query, 3))
    assert given.metrics == wanted.metrics
    # and of those that are, it is
    blank = [Labelled(torch.zeros_like(part.images), part.labels, part.ids) for part in (DATA.train, DATA.validation)]
    assert tuned(data=EvaluationData(*blank, DATA.query, 3)).metrics != wanted.metrics


@pytest.mark.parametrize("build", [conv4, small])
def test_fine_tuning_learns_an_easy_problem(build):
    metrics = tuned(build(), epochs=30, milestones=[25]).metrics
    assert metrics["top1_50pct"] > 0.9  # chance is 1 / 3
    assert metrics["top1_10pct"] > 0.6  # of 12 labels


def test_the_trunk_learns_and_not_the_head_alone():
    """An encoder that is blind at first, so that a head on it would stay at chance."""
    encoder = small()
    with torch.no_grad():
        encoder.convolution.weight.mul_(1e-3)
    frozen = tuned(encoder, lr=[1e-12, 1e-12], head_lr=[0.05, 0.05], epochs=15)
    moved = tuned(encoder, lr=[0.5, 0.5], head_lr=[0.05, 0.05], epochs=15)
    assert frozen.metrics["top1_50pct"] < 0.7
    assert moved.metrics["top1_50pct"] > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_a_trunk_that_hardly_moves_is_linear_evaluation(seed):
    """Without batch statistics and at whole images, the head alone is logistic regression on h."""
    encoder = small(seed)
    rates = {"fractions": [0.5], "lr": [1e-12], "head_lr": [3.0]}
    data = EvaluationData(*(corners(n, start, 200, 25) for n, start in ((90, 0), (30, 1001), (60, 2002))), 3)
    given = tuned(encoder, data, seed=seed, epochs=60, milestones=[50], **rates).metrics["top1_50pct"]
    rows = label_subset(data.fitted, 0.5)
    x, query = (Trained(encoder).features(images).double() for images in (data.fitted.images[rows], data.query.images))
    weights, bias = fit_path(x, data.fitted.labels[rows], [1e-2], classes=3, tolerance=1e-8)
    wanted = ((query @ weights[0] + bias[0]).argmax(1) == data.query.labels).double().mean().item()
    # not the optimum itself: three queries of 60 may lie between the two
    assert given == pytest.approx(wanted, abs=3 / 60 + 1e-9)
    assert wanted > 0.4  # chance is 1 / 3; a convolution that sees little is one of the seeds


@pytest.mark.parametrize("seed", range(3))
def test_fine_tuning_equals_a_loop_of_torchs_own(seed):
    """Whole batches, so that the order does not matter, and whole images, so that nothing is drawn but the head."""
    data = EvaluationData(*(corners(n, start, 200, 25) for n, start in ((90, 0), (30, 1001), (60, 2002))), 3)
    given = tuned(
        small(seed), data, seed=seed, batch=1000, lr=[0.3, 0.1], head_lr=[2.0, 1.0], epochs=9, milestones=[3, 7]
    )
    for fraction, name, lr, head_lr in ((0.1, "10pct", 0.3, 2.0), (0.5, "50pct", 0.1, 1.0)):
        rows = label_subset(data.fitted, fraction)
        model = nn.Sequential(small(seed), linear_head(16, 3, 0.01, seed, "semisup"))
        groups = [{"params": model[0].parameters(), "lr": lr}, {"params": model[1].parameters(), "lr": head_lr}]
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7], gamma=0.2)
        x, y = to_float(data.fitted.images[rows]), data.fitted.labels[rows]
        for _ in range(9):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            scheduler.step()
        scores = model(to_float(data.query.images))
        # no two scores of a query are as near as rounding
        assert given.metrics[f"top1_{name}"] == (scores.argmax(1) == data.query.labels).double().mean().item()


def test_the_first_weights_are_the_encoders():
    """Rates too small to move anything: what is scored is the head's first weights on the encoder's h."""
    rates = {"fractions": [1.0], "lr": [1e-12], "head_lr": [1e-12], "epochs": 1}
    found = [tuned(small(seed), **rates).metrics["top1_100pct"] for seed in range(6)]
    assert len(set(found)) > 1


def test_random_initialisation_is_supervised_learning_from_scratch():
    """No method is asked for: an encoder before any training, all of its weights trained on those labels."""
    result = tuned(conv4(5), fractions=[1.0], lr=[0.05], head_lr=[0.5])
    assert result.metrics["top1_100pct"] > 0.9


@pytest.mark.parametrize("build", [conv4, small])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_encoder_that_was_given_stays_as_it_was(build, training, frozen):
    encoder = build().train(training).requires_grad_(not frozen)
    before = copy.deepcopy(encoder.state_dict())
    result = tuned(encoder)
    assert result.metrics == tuned(build()).metrics  # and is copied, not shared: a frozen one is fine-tuned as well
    assert {part.training for part in encoder.modules()} == {training}
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key]), key
    for parameter in encoder.parameters():
        assert parameter.requires_grad == (not frozen)
        assert parameter.grad is None


def test_each_fraction_starts_from_the_encoder_not_from_the_last_fractions():
    both = tuned().metrics
    alone = tuned(fractions=[0.5], lr=[0.05], head_lr=[0.5]).metrics
    assert alone == {key: both[key] for key in alone}


def test_each_fraction_has_its_own_rates():
    base = tuned().metrics
    other = tuned(lr=[0.05, 1e-6], head_lr=[0.5, 1e-6]).metrics
    assert other["top1_10pct"] == base["top1_10pct"]
    assert other["top1_50pct"] != base["top1_50pct"]


def test_top5_counts_the_best_five_classes():
    metrics = tuned().metrics
    assert metrics["top5_10pct"] == metrics["top5_50pct"] == 1.0  # of three classes, all are among them
    data = EvaluationData(
        *(
            Labelled(p.images, p.labels + 3 * (torch.arange(len(p.labels)) // 3 % 6), p.ids)
            for p in (DATA.train, DATA.validation, DATA.query)
        ),
        18,
    )
    metrics = tuned(data=data).metrics
    assert (
        metrics["top1_50pct"] < metrics["top5_50pct"] < 1
    )  # a corner tells six classes of 18; which of the six is a draw


def test_a_short_last_batch_of_one_row_is_left_out():
    """Batch statistics want two: 17 rows at 16 a step, one step per epoch."""
    data = EvaluationData(corners(11, 0), corners(6, 1001), corners(12, 2002), 3)
    result = tuned(data=data, fractions=[1.0], lr=[0.05], head_lr=[0.5])
    assert len(result.arrays["rows_100pct"]) == 17
    steps = tuned(data=data, fractions=[1.0], lr=[0.05], head_lr=[0.5], batch=17)  # kept whole
    assert steps.metrics.keys() == result.metrics.keys()


def test_rates_that_are_too_high_are_an_error_that_says_so():
    with pytest.raises(DivergedError, match=r"semisup: not finite after 8 steps; lower lr: the rate was 1e\+30"):
        tuned(lr=[1e30, 1e30])


def test_views_are_drawn_for_each_row_and_epoch_and_queries_are_shown_whole():
    base = tuned(small()).metrics
    shown = {"crop_scale": [0.3, 0.6], "flip": 0.5}
    assert tuned(small(), **shown).metrics != base
    assert tuned(small(), **shown).metrics == tuned(small(), **shown).metrics


# ---- params


def problems(**options):
    return check_options(EVALUATORS, "evaluations.semisup", "semisup", {**OPTIONS, **options})


def test_these_options_are_allowed():
    assert problems() == []
    assert problems(milestones=[], fractions=[0.01], lr=[1e-12], head_lr=[5.0]) == []


WRONG = {
    "trunk_that_does_not_move": ({"lr": [0.0, 0.1]}, r"semisup\.lr.*0"),
    "negative_rate": ({"head_lr": [0.1, -0.1]}, r"semisup\.head_lr.*-0\.1"),
    "fewer_head_rates": (
        {"head_lr": [0.5]},
        r"semisup\.head_lr: \[0\.5\] wants as many entries as fractions, \[0\.1, 0\.5\]",
    ),
    "more_trunk_rates": (
        {"lr": [0.1] * 3},
        r"semisup\.lr: \[0\.1, 0\.1, 0\.1\] wants as many entries as fractions, \[0\.1, 0\.5\]",
    ),
    "no_fraction": ({"fractions": [], "lr": [], "head_lr": []}, r"semisup\.fractions"),
    "more_than_all_labels": ({"fractions": [0.1, 1.5]}, r"semisup\.fractions.*1\.5"),
    "no_epoch": ({"epochs": 0}, r"semisup\.epochs.*0"),
    "crop_range_upside_down": (
        {"crop_scale": [0.9, 0.1]},
        r"semisup\.crop_scale: \[0\.9, 0\.1\] wants the lower number first",
    ),
    "crop_of_one_number": ({"crop_ratio": [1.0]}, r"semisup\.crop_ratio"),
    "unknown_option": ({"nesterov": True}, r"semisup.*nesterov"),
}


@pytest.mark.parametrize(("change", "told"), WRONG.values(), ids=WRONG)
def test_a_wrong_option_is_told_by_its_name_and_value(change, told):
    found = problems(**change)
    assert len(found) == 1
    assert re.search(told, found[0]), found


def test_two_lists_of_the_wrong_length_are_two_lines():
    assert len(problems(fractions=[0.1])) == 2


def test_another_draw_chooses_other_rows_and_as_many_of_each_class():
    labelled = drawn([60, 40, 50])
    subsets = [label_subset(labelled, 0.2, draw) for draw in range(3)]
    assert torch.equal(subsets[0], label_subset(labelled, 0.2))
    assert len({tuple(subset.tolist()) for subset in subsets}) == 3
    assert all(torch.bincount(labelled.labels[subset]).tolist() == [12, 8, 10] for subset in subsets)
