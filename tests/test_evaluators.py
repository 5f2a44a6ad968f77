"""What every protocol of bench/evaluators keeps: the encoder, the query's secrecy, its bits and its manners.

One row of `ROWS` for each protocol; the laws are those of all.
"""

import copy
import math
import random
import re
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

from bench.augment import to_float
from bench.encoders.conv4 import Conv4
from bench.evaluators import EVALUATORS
from bench.evaluators.base import EvaluationData, Labelled
from bench.features import Trained
from bench.params import check_options

CLASSES = 4
COUNTS = {"train": 120, "validation": 40, "query": 60}
VIEW = {"crop_scale": [0.9, 1.0], "crop_ratio": [0.95, 1.05], "flip": 0.0}
PATH = {"l2_low": 1e-2, "l2_high": 1e3, "l2_count": 6, "tolerance": 1e-6}


@dataclass(frozen=True)
class Row:
    """A protocol's options here, and which laws apply to it.

    Args:
        options: all that it takes.
        draws: the seed moves its results.
        tells: its metrics tell what was chosen.
        means: metrics that are means over queries, as a pattern.
    """

    options: dict = field(default_factory=dict)
    draws: bool = False
    tells: bool = False
    means: str = ".*"


ROWS = {
    "clusters": Row({"per_class": 3, "iterations": 3, "restarts": 1}, draws=True, means="none"),
    "knn": Row({"at": ["h", "z"], "k": [1, 20], "temperature": 0.1}),
    "layers": Row({"dimensions": 60, **PATH, "k": 5, "temperature": 0.1}, tells=True, means=r"\w+_layer\d"),
    "linear": Row(PATH, tells=True, means="top1"),
    "linear_sgd": Row(
        {"epochs": 14, "batch": 16, "lr": 4.0, "momentum": 0.9, "weight_decay": 0.0}
        | {"decay": "step", "milestones": [11], "factor": 0.1, **VIEW},
        draws=True,
    ),
    "retrieval": Row({"k": 5, "pictured": 3}),
    "semisup": Row(
        {"fractions": [0.25, 1.0], "lr": [0.05, 0.05], "head_lr": [0.2, 0.1], "epochs": 5, "batch": 16}
        | {"draw": 0, "momentum": 0.9, "milestones": [4], "factor": 0.2, **VIEW},
        draws=True,
    ),
    "svm": Row(PATH, tells=True, means="top1"),
    "transfer": Row(
        {"targets": ["small", "several"], **PATH, "k": 5, "temperature": 0.1}, tells=True, means="small_(linear|knn)"
    ),
}
NAMES = list(EVALUATORS)
WITHOUT_ENCODER = [name for name in NAMES if not EVALUATORS.component(name).module_constant("NEEDS_ENCODER", False)]
every = pytest.mark.parametrize("name", NAMES)
DRAWN = ("predicted", "assignments", "rows")  # arrays that no query label has a part in


def row(name: str) -> Row:
    if name not in ROWS:
        pytest.fail(
            f"bench/evaluators/{name}.py has no row in ROWS of {__file__}: give it options for these small sets"
        )
    return ROWS[name]


def digits(n: int, skipped: int, *, channels: int = 1, side: int = 28) -> Labelled:
    """Scanned digits 0 to 3, noisy enough that a penalty matters; with colours where there are channels."""
    x, y = load_digits(n_class=CLASSES, return_X_y=True)
    chosen = slice(skipped, skipped + n)
    pixels = torch.from_numpy(x[chosen]).view(-1, 1, 8, 8) / 16
    pixels = nn.functional.interpolate(pixels, size=(side, side), mode="nearest")
    generator = torch.Generator().manual_seed(skipped)
    tint = 0.4 + 0.6 * torch.rand(n, channels, 1, 1, generator=generator)
    pixels = 0.8 * pixels * tint + 0.2 * torch.rand(n, channels, side, side, generator=generator)
    images = (255 * pixels).byte().permute(0, 2, 3, 1).contiguous()
    return Labelled(images, torch.from_numpy(y[chosen]).long(), torch.arange(skipped, skipped + n) * 3)


def several(part: Labelled) -> Labelled:
    """The same images, each of its class and of the odd or the even ones."""
    one = nn.functional.one_hot(part.labels, CLASSES)
    return replace(part, labels=torch.cat([one, part.labels[:, None] % 2], 1))


@cache
def data(channels: int = 1, side: int = 28) -> EvaluationData:
    starts = np.cumsum([0, *COUNTS.values()])
    parts = {
        key: digits(n, int(s), channels=channels, side=side)
        for (key, n), s in zip(COUNTS.items(), starts, strict=False)
    }
    other = {key: digits(n, int(s) + 300, side=20) for (key, n), s in zip(COUNTS.items(), starts, strict=False)}
    small = EvaluationData(**other, classes=CLASSES)
    many = EvaluationData(**{k: several(part) for k, part in other.items()}, classes=CLASSES + 1, metric="map11")
    return EvaluationData(**parts, classes=CLASSES, targets={"small": small, "several": many})


@cache
def made(channels: int, seed: int) -> Conv4:
    torch.manual_seed(seed)
    encoder = Conv4(channels, width=2, blocks=4, stem_stride=2, sobel=False).train()
    with torch.no_grad():  # running statistics that are not those of a new layer
        for _ in range(20):
            encoder(to_float(data(channels).train.images))
    return encoder.eval()


def trained(channels: int = 1, *, projects: bool = True, training: bool = False) -> Trained:
    encoder = copy.deepcopy(made(channels, 0)).train(training)
    torch.manual_seed(1)
    projector = nn.Sequential(nn.Linear(encoder.dim, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8))
    earlier = Trained(copy.deepcopy(made(channels, 2)).train(training))
    return Trained(encoder, snapshots={1: earlier}, projector=projector.train(training) if projects else None)


def run(name, given=None, among=None, seed=0):
    result = EVALUATORS[name](given or trained(), among or data(), seed=seed, **copy.deepcopy(row(name).options))
    return result.metrics, result.arrays


@cache
def usual(name):
    return run(name)


def on_parts(change, among: EvaluationData, part: str) -> EvaluationData:
    """The data, and the targets', with one part changed."""
    targets = {key: on_parts(change, target, part) for key, target in among.targets.items()}
    return replace(among, **{part: change(getattr(among, part))}, targets=targets)


def relabelled(part: Labelled) -> Labelled:
    moved = part.labels.roll(7, 0)
    assert not torch.equal(moved, part.labels)
    return replace(part, labels=moved)


def redrawn(part: Labelled) -> Labelled:
    noise = torch.randint(0, 256, part.images.shape, generator=torch.Generator().manual_seed(9))
    return replace(part, images=noise.byte())


def chosen(metrics):
    """What the metrics tell of choices: penalties and their validation scores."""
    return {key: value for key, value in metrics.items() if re.search(r"(^|_)(l2|validation)$", key)}


def assert_equal(one, other):
    assert list(one[0].items()) == list(other[0].items())
    assert one[1].keys() == other[1].keys()
    for key in one[1]:
        np.testing.assert_array_equal(one[1][key], other[1][key], strict=True)


def test_every_protocol_has_a_row_and_every_row_a_protocol():
    assert sorted(ROWS) == sorted(NAMES), "a protocol without a row in ROWS, or a row without one in bench/evaluators"


@every
def test_the_options_here_are_allowed(name):
    assert check_options(EVALUATORS, name, name, row(name).options) == []


# ---- the encoder


def inside(given: Trained):
    """All that an evaluation could move: values, modes, wishes for gradients, gradients and hooks."""
    modules = {"encoder": given.encoder, "earlier": given.snapshots[1].encoder}
    if given.projector is not None:
        modules["projector"] = given.projector
    values, manners = {}, {}
    for place, module in modules.items():
        values |= {f"{place}.{key}": tensor.clone() for key, tensor in module.state_dict(keep_vars=False).items()}
        manners |= {f"{place}.{key}": (p.requires_grad, p.grad is None) for key, p in module.named_parameters()}
        for key, part in module.named_modules():
            hooks = part._forward_hooks, part._forward_pre_hooks, part._backward_hooks
            manners[f"{place}.{key}()"] = part.training, sum(map(len, hooks))
    return values, manners


@every
@pytest.mark.parametrize("training", [False, True], ids=["in_eval_mode", "in_train_mode"])
@pytest.mark.parametrize("frozen", [False, True], ids=["wants_gradients", "wants_none"])
def test_the_encoder_is_left_as_it_was(name, training, frozen):
    given = trained(training=training)
    given.encoder.requires_grad_(not frozen)
    values, manners = inside(given)
    result = run(name, given)
    after, manners_after = inside(given)
    assert manners_after == manners
    assert after.keys() == values.keys()
    for key, value in values.items():
        assert torch.equal(after[key], value), key
    # and the mode that it came in does not matter: features are always those of eval mode
    assert_equal(result, usual(name))


def copied(among: EvaluationData) -> list[torch.Tensor]:
    parts = [getattr(among, part) for part in COUNTS] + [among.fitted]
    own = [tensor.clone() for part in parts for tensor in (part.images, part.labels, part.ids)]
    return own + [tensor for target in among.targets.values() for tensor in copied(target)]


@every
def test_images_labels_and_ids_are_left_as_they_were(name):
    before = copied(data())
    run(name)
    assert all(map(torch.equal, copied(data()), before))


# ---- the query


@every
def test_no_label_of_a_query_moves_a_choice_or_a_prediction(name):
    metrics, arrays = run(name, among=on_parts(relabelled, data(), "query"))
    assert chosen(metrics) == chosen(usual(name)[0])
    for key, array in arrays.items():
        if key.startswith(DRAWN):
            np.testing.assert_array_equal(array, usual(name)[1][key], strict=True)
    assert metrics != usual(name)[0]  # they are scored by them, though


@every
def test_no_image_of_a_query_moves_a_choice(name):
    metrics, arrays = run(name, among=on_parts(redrawn, data(), "query"))
    assert chosen(metrics) == chosen(usual(name)[0])
    for key, array in arrays.items():
        if key.startswith("rows"):
            np.testing.assert_array_equal(array, usual(name)[1][key], strict=True)
    assert metrics != usual(name)[0]


def cut(part: Labelled, rows: slice) -> Labelled:
    return Labelled(part.images[rows], part.labels[rows], part.ids[rows])


def half_wrong(part: Labelled) -> Labelled:
    """Labels right in the first third, those of the next class in the others: thirds that would choose differently."""
    labels = part.labels.clone()
    labels[20:] = (labels[20:] + 1) % 2 if labels.ndim > 1 else (labels[20:] + 1) % CLASSES
    return replace(part, labels=labels)


@every
def test_queries_are_scored_one_by_one(name):
    """A mean over all queries is the mean over parts of them.

    What is chosen on the query would be chosen for each part anew, even where no metric tells the choice.
    """
    wrong = on_parts(half_wrong, data(), "query")
    whole, _ = run(name, among=wrong)
    thirds = slice(0, 20), slice(20, 60)
    parts = [run(name, among=on_parts(lambda part, rows=rows: cut(part, rows), wrong, "query"))[0] for rows in thirds]
    for key in (key for key in whole if re.fullmatch(row(name).means, key)):
        mean = (parts[0][key] + 2 * parts[1][key]) / 3
        assert whole[key] == pytest.approx(mean, abs=1e-9), key  # sums of 60 doubles; a query weighs 1 / 60


@every
def test_metrics_tell_what_was_chosen_where_the_row_says_so(name):
    assert bool(chosen(usual(name)[0])) == row(name).tells


@pytest.mark.parametrize("name", [name for name in NAMES if name in ROWS and ROWS[name].tells])
def test_labels_of_validation_rows_choose(name):
    """So the laws of the query would fail, were it what is chosen on."""
    for changed in (relabelled, half_wrong):
        metrics, _ = run(name, among=on_parts(changed, data(), "validation"))
        before, after = ({k: v for k, v in chosen(m).items() if k.endswith("l2")} for m in (usual(name)[0], metrics))
        if before != after:
            return
    pytest.fail("no other labels of validation rows moved a penalty")


# ---- bits


@every
def test_the_same_call_gives_the_same_bits(name):
    assert_equal(run(name), usual(name))


@every
def test_no_global_generator_moves_a_result(name):
    given = trained()
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        assert_equal(run(name, given), usual(name))


@every
def test_the_seed_moves_only_what_is_drawn(name):
    others = [run(name, seed=seed) for seed in (1, 2, 3)]
    for metrics, arrays in others:
        assert metrics.keys() == usual(name)[0].keys()
        for key, array in arrays.items():
            assert (array.shape, array.dtype) == (usual(name)[1][key].shape, usual(name)[1][key].dtype)
            if key.startswith("rows"):  # label subsets belong to the image set
                np.testing.assert_array_equal(array, usual(name)[1][key])
    if row(name).draws:
        assert any(metrics != usual(name)[0] for metrics, _ in others)
    else:
        for other in others:
            assert_equal(other, usual(name))


# ---- what comes back


def assert_fine(metrics, arrays):
    assert metrics
    for key, value in metrics.items():
        assert type(value) is float, key
        assert math.isfinite(value), key
        if not chosen({key: value}) or key.endswith("validation"):
            lowest = -1 if key == "ami" else 0  # less than chance agreement is negative
            assert lowest <= value <= 1, key
        else:
            assert value > 0, key
    for key, array in arrays.items():
        assert isinstance(array, np.ndarray), key


@every
def test_metrics_are_fractions_and_arrays_are_numpy_and_can_be_kept(name, tmp_path):
    metrics, arrays = usual(name)
    assert_fine(metrics, arrays)
    save_file(dict(arrays), tmp_path / "arrays.safetensors")
    kept = load_file(tmp_path / "arrays.safetensors")
    assert_equal((metrics, kept), (metrics, dict(sorted(arrays.items()))))


@every
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("projects", [True, False], ids=["projects", "without_projection"])
def test_gray_and_colour_with_and_without_a_projection(name, channels, projects):
    metrics, arrays = run(name, trained(channels, projects=projects), data(channels))
    assert_fine(metrics, arrays)
    if projects:
        assert [metric for metric in metrics if metric != "chroma"] == list(usual(name)[0])  # of colour images alone
    else:
        assert set(metrics) - {"chroma"} <= set(usual(name)[0])


@every
def test_one_query_is_scored(name):
    one = on_parts(lambda part: cut(part, slice(0, 1)), data(), "query")
    metrics, arrays = run(name, among=one)
    assert_fine(metrics, arrays)
    assert list(metrics) == list(usual(name)[0])


@every
def test_nothing_to_choose_on_is_no_error(name):
    metrics, arrays = run(name, among=on_parts(lambda part: cut(part, slice(0, 0)), data(), "validation"))
    assert_fine(metrics, arrays)
    assert list(metrics) == list(usual(name)[0])


@pytest.mark.parametrize("name", WITHOUT_ENCODER)
@pytest.mark.parametrize("channels", [1, 3])
def test_raw_pixels_are_scored(name, channels):
    metrics, arrays = run(name, Trained(None), data(channels, 8))  # 64 or 192 numbers
    assert_fine(metrics, arrays)
    assert next(iter(metrics)) == next(iter(usual(name)[0]))  # the headline


@every
def test_the_headline_comes_first_and_is_better_than_chance(name):
    """Digits are easy: a protocol at or below chance would be one whose rows and labels have come apart."""
    metrics, _ = usual(name)
    headline = next(iter(metrics))
    assert not chosen({headline: 0.0})
    assert metrics[headline] > (0.1 if row(name).means == "none" else 1 / CLASSES + 0.1)


@pytest.mark.parametrize("given", [trained(), Trained(None)], ids=["encoder", "raw_pixels"])
def test_features_are_single_or_double_precision_and_want_no_gradient(given):
    for place in given.places:
        x = given.features(data().query.images, place)
        assert x.dtype in (torch.float32, torch.float64)
        assert not x.requires_grad
        assert (x.ndim, len(x)) == (2, COUNTS["query"])
