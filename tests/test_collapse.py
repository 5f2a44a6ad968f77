"""What keeps methods from collapse does so: each one without its remedy collapses, and its unchanged twin does not.

Twins share seed, images, settings and steps. The features are those that the method's own loss compares, of clean
training images in eval mode: the projections z, or, for DeepCluster, which has none, h, which it clusters.
Collapse, of the features' unit rows in d dimensions:

- the standard deviation over images, mean over dimensions, is below 0.1 / sqrt(d) (isotropic rows have 1 / sqrt(d),
  equal ones 0; Chen and He, 2011.10566, section 4.1), or
- the effective rank of the centred rows is below 2: exp of the entropy of their singular values, scaled to sum 1 (Roy
  and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007).

Learning rates are high and crops small, so that collapse takes about a hundred steps. At seeds 0 to 4 unchanged methods
have at least 0.28 / sqrt(d) and rank 4.2; each without its remedy has at most 0.051 / sqrt(d), but for SimSiam without
stop-gradient at seed 3, whose rows end on a line (rank 1.64).
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench import params
from bench.checkpoint import Checkpoints
from bench.data.readers import embedded_mnist
from bench.data.source import ImageSet
from bench.features import extract
from bench.losses import spread, unit
from bench.methods import byol, simsiam
from bench.methods.base import Method
from bench.plan import make_plan
from bench.pretrain import Trainer

SETTINGS = params.load(Path(__file__).resolve().parents[1] / "profiles" / "smoke" / "params.yaml")
SEED = 2
ROWS, TEST = 5000, 1000  # embedded digits
CLUSTERS = 20
BLANK = 10  # one image in so many is not blank

FRACTION = {"deepcluster": 0.2}  # of the digits; 0.1 for the others
BATCH = {"deepcluster": 32}  # 64 for the others
SCALE = {"deepcluster": [0.3, 1.0]}  # of crops; [0.1, 0.5] for the others
EPOCHS = {"simsiam": 30, "byol": 15, "swav": 15, "deepcluster": 20}
OPTIONS = {
    "simsiam": {"head": "mlp", "dim": 32, "bottleneck": 8},
    "byol": {"momentum": 0.99, "normalize": True, "head": "mlp", "hidden": 32, "dim": 16},
    "swav": {
        "prototypes": 20,
        "temperature": 0.5,
        "normalize": True,
        "epsilon": 0.05,
        "iterations": 3,
        "queue_size": 0,
        "queue_from": 0,
        "freeze_steps": 2,
        "head": "mlp",
        "hidden": 32,
        "dim": 16,
    },
    "deepcluster": {
        "clusters": CLUSTERS,
        "pca_dim": 16,
        "iterations": 10,
        "interval": 1,
        "uniform": True,
        "split_empty": True,
    },
}


def config(method: str, seed: int, options: dict):
    manifest = {
        "name": "m",
        "sha256": "0",
        "rows": ROWS,
        "test_rows": TEST,
        "metric": "top1",
        "channels": 1,
        "height": 28,
        "width": 28,
    }
    raw = SETTINGS.model_dump(exclude_unset=True)
    crops = {"role": "global", "count": 1 if method == "deepcluster" else 2, "size": 28}
    crops["ops"] = [{"crop": {"scale": SCALE.get(method, [0.1, 0.5]), "ratio": [0.75, 1.3333333333333333]}}]
    raw |= {"seeds": [seed], "training": {}, "studies": {}, "recipes": {"crops": {"views": [crops]}}}
    raw["methods"] = {method: OPTIONS[method] | options}
    raw["data"]["fraction"] = FRACTION.get(method, 0.1)
    raw["defaults"] |= {
        "batch": BATCH.get(method, 64),
        "epochs": EPOCHS[method],
        "snapshots": [],
        "recipe": "crops",
        "optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.9, "weight_decay": 1e-4, "decay_norm_bias": False},
    }
    return make_plan(params.check(raw), dict.fromkeys(SETTINGS.datasets, manifest)).pretrain[method][0].config


@cache
def digits() -> ImageSet:
    return embedded_mnist.read(test=TEST)


@cache
def mostly_blank() -> ImageSet:
    """The digits, nine of ten without ink: k-means begins from rows, and equal rows leave clusters empty."""
    pixels = digits().images * (np.arange(ROWS) % BLANK == 0).astype(np.uint8)[:, None, None, None]
    return ImageSet(pixels, digits().labels, digits().test, digits().classes)


def without_stop_gradient(method: Method, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(simsiam, "simsiam_loss", lambda p, z: -F.cosine_similarity(p, z).mean())


class Online(nn.Module):
    """The online branch in place of its moving average, with its gradient."""

    def __init__(self, *online: nn.Module):
        super().__init__()
        self.branch = nn.Sequential(*online)

    def forward(self, x):
        return self.branch(x)

    def follow(self, momentum: float) -> None:
        pass


def without_target(method: Method, patch: pytest.MonkeyPatch) -> None:
    method.target = Online(method.encoder, method.projector)
    patch.setattr(byol, "byol_loss", lambda p, z, normalize: 2 - 2 * F.cosine_similarity(p, z).mean())


def without_predictor(method: Method, patch: pytest.MonkeyPatch) -> None:
    method.predictor = nn.Identity()


def unchanged(method: Method, patch: pytest.MonkeyPatch) -> None:
    pass


@cache
def train(method: str, change: Callable = unchanged, seed: int = SEED, **options) -> Trainer:
    images = mostly_blank() if method == "deepcluster" else digits()
    nowhere = Checkpoints(Path("nowhere"))  # none is written
    run = Trainer(config(method, seed, options), images, nowhere, checkpoint_seconds=math.inf)
    with pytest.MonkeyPatch.context() as patch:
        change(run.method, patch)
        run.run()
    return run


def features(run: Trainer) -> torch.Tensor:
    """Of the training images with ink: that equal images have equal features is no collapse."""
    method = run.method
    seen = nn.Sequential(method.encoder, method.projector) if hasattr(method, "projector") else method.encoder
    images = torch.from_numpy(run.source[run.ids])
    return extract(seen, images[(images > 0).flatten(1).any(1)])


def relative_spread(z: torch.Tensor) -> float:
    """Standard deviation of the entries of unit rows, mean over dimensions, relative to 1 / sqrt(d)."""
    return spread(z.double()) * math.sqrt(z.shape[1])


def effective_rank(z: torch.Tensor) -> float:
    """Of the centred unit rows (Roy and Vetterli, 2007): 1 for rows on a line, 0 for equal ones, at most d."""
    rows = unit(z.double())
    values = torch.linalg.svdvals(rows - rows.mean(0))
    if values.sum() < 1e-12:
        return 0.0
    return torch.special.entr(values / values.sum()).sum().exp().item()


def collapsed(z: torch.Tensor) -> bool:
    return relative_spread(z) < 0.1 or effective_rank(z) < 2


def rows(n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_collapse_is_equal_rows_or_rows_on_a_line_whatever_their_lengths():
    lengths = torch.linspace(0.5, 2.0, 64, dtype=torch.float64)[:, None]
    spread_out, signs = rows(64, 8), rows(64, 1).sign()
    assert not collapsed(spread_out)
    assert not collapsed(spread_out * lengths)
    assert collapsed(torch.ones(64, 8) * lengths)
    assert collapsed(100 + spread_out)
    assert collapsed(signs * torch.ones(64, 8) * lengths)
    assert collapsed(torch.zeros(64, 8))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_effective_rank_of_equal_orthogonal_directions_is_their_number(n):
    axes = torch.eye(8)[:n]
    assert effective_rank(torch.cat([axes, -axes])) == pytest.approx(n)


@pytest.mark.parametrize("method", OPTIONS)
def test_an_unchanged_method_does_not_collapse(method):
    z = features(train(method))
    assert not collapsed(z), (relative_spread(z), effective_rank(z))


@pytest.mark.parametrize("change", [without_stop_gradient, without_predictor])
def test_simsiam_collapses_without_its_stop_gradient_and_without_its_predictor(change):
    z = features(train("simsiam", change))
    assert collapsed(z), (relative_spread(z), effective_rank(z))


@pytest.mark.parametrize("change", [without_target, without_predictor])
def test_byol_collapses_without_its_target_and_without_its_predictor(change):
    z = features(train("byol", change))
    assert collapsed(z), (relative_spread(z), effective_rank(z))


def test_swav_collapses_when_assignments_are_not_balanced():
    z = features(train("swav", iterations=0))
    assert collapsed(z), (relative_spread(z), effective_rank(z))


def test_deepcluster_on_unbalanced_images_collapses_without_its_two_remedies():
    """Nine of ten images are blank here. On the digits as they are it does not collapse, nor is a cluster empty."""
    z = features(train("deepcluster", uniform=False, split_empty=False))
    assert collapsed(z), (relative_spread(z), effective_rank(z))


def test_the_remedies_of_deepcluster_keep_clusters_filled_where_most_would_be_empty():
    sizes = {}
    for on in (True, False):
        run = train("deepcluster") if on else train("deepcluster", uniform=False, split_empty=False)
        sizes[on] = torch.bincount(run.method.assignments, minlength=CLUSTERS)
    assert (sizes[True] > 0).all()
    assert sizes[True].max() < 0.6 * sizes[True].sum()
    assert (sizes[False] > 0).sum() < 0.4 * CLUSTERS
    assert sizes[False].max() > 0.85 * sizes[False].sum()
