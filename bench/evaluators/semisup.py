"""Semi-supervised evaluation: the encoder and a linear head fine-tuned on a part of the labels.

Protocol of SimCLR (2002.05709, section 6.2) with SwAV's settings (2006.09882, appendix): for each fraction of the
labels the published list of images, where the image set has one, else a class-balanced subset by address, smaller ones
inside larger ones; the same for every method and seed. SGD without weight decay, one learning rate for the trunk and
one for the head, step decay; crop and flip. Scored on clean images in eval mode after the last epoch; nothing is
chosen. The row of random initialisation is supervised learning from scratch on those labels.
"""

import copy
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.data.splits import SEED
from bench.evaluators.base import EvaluationData, Labelled, Result
from bench.evaluators.sgd import Sgd, crop_and_flip, descend, linear_head, rates, views
from bench.features import Trained, extract
from bench.methods.base import ParameterGroup
from bench.options import AsManyAs, Fraction, NonNegativeInt, Positive, PositiveInt, Range, Shares
from bench.random import permutation

NEEDS_ENCODER = True  # raw pixels have nothing to fine-tune
PURPOSE = "semisup"
HEAD_STD = 0.01  # of the head's first weights
FEWEST = 2  # rows that have batch statistics
TOP = 5


def evaluate(
    trained: Trained,
    data: EvaluationData,
    *,
    seed: int,
    draw: NonNegativeInt,
    fractions: Shares,
    lr: Annotated[list[Positive], AsManyAs("fractions")],
    head_lr: Annotated[list[Positive], AsManyAs("fractions")],
    epochs: PositiveInt,
    batch: PositiveInt,
    momentum: Fraction,
    milestones: list[PositiveInt],
    factor: Positive,
    crop_scale: Range,
    crop_ratio: Range,
    flip: Fraction,
) -> Result:
    """Top-1 and top-5 for each fraction (fractions).

    Arrays hold the ids of the labelled rows: `rows_1pct`, or `rows_1pct_published` where those are a published list.

    Args:
        trained: the encoder.
        data: training and validation rows are the labels' source, query rows are scored.
        seed: of the head, the order and the views.
        draw: which draw of the labelled rows; another one for each number.
        fractions: of the labels: the set's published list of that fraction, else so much of each class.
        lr: of the trunk, for each fraction.
        head_lr: of the head, for each fraction.
        epochs: over a subset.
        batch: rows per step.
        momentum: of SGD.
        milestones: epochs after which the rates are multiplied by `factor`.
        factor: see milestones.
        crop_scale: lowest and highest share of the area of a view.
        crop_ratio: lowest and highest width / height of a view.
        flip: probability of a mirrored view.
    """
    metrics: dict[str, float] = {}
    arrays: dict[str, NDArray[np.generic]] = {}
    ops = crop_and_flip(crop_scale, crop_ratio, flip)
    for i, fraction in enumerate(fractions):
        name, rows = f"{100 * fraction:g}pct", labelled_rows(data, fraction, draw)
        part = Labelled(*(getattr(data.fitted, field)[rows] for field in ("images", "labels", "ids")))
        rate = rates(lr[i], len(rows), epochs, batch, decay="step", milestones=milestones, factor=factor)
        model = _model(trained, data.classes, seed)
        _fine_tune(model, part, ops, Sgd(epochs, batch, rate, momentum, weight_decay=0.0), head_lr[i] / lr[i], seed)
        metrics |= {f"{metric}_{name}": value for metric, value in _score(model, data.query).items()}
        arrays[f"rows_{name}" + ("_published" if fraction in data.label_lists else "")] = part.ids.numpy()
    return Result(metrics, arrays)


def labelled_rows(data: EvaluationData, fraction: float, draw: int = 0) -> Int[Tensor, " m"]:
    """Positions, ascending, in `data.fitted`: the published list of that fraction, else the addressed subset.

    A list is used whole. Where settings are tuned the queries are training rows: of a list, those are left out.
    """
    if fraction not in data.label_lists:
        return label_subset(data.fitted, fraction, draw)
    return torch.isin(data.fitted.ids, torch.from_numpy(data.label_lists[fraction])).nonzero()[:, 0]


def label_subset(labelled: Labelled, fraction: float, draw: int = 0) -> Int[Tensor, " m"]:
    """Positions, ascending, of the same share of each class, at least one row of each; by address.

    Smaller fractions lie inside larger ones. It belongs to the image set: no cell's seed moves it.
    """
    order = permutation(SEED, "labels", labelled.ids.numpy(), draw)
    labels = labelled.labels.cpu().numpy()[order]
    kept = []
    for c in np.unique(labels):
        of_class = order[labels == c]
        kept.append(of_class[: max(1, round(fraction * len(of_class)))])
    return torch.from_numpy(np.sort(np.concatenate(kept)))


def _model(trained: Trained, classes: int, seed: int) -> nn.Sequential:
    """A copy of the encoder that wants gradients, and a head."""
    assert trained.encoder is not None
    encoder = copy.deepcopy(trained.encoder).requires_grad_(True)
    return nn.Sequential(encoder, linear_head(encoder.dim, classes, HEAD_STD, seed, PURPOSE).to(trained.device)).train()


def _fine_tune(
    model: nn.Sequential, part: Labelled, ops: Sequence[dict[str, Any]], sgd: Sgd, head_factor: float, seed: int
) -> None:
    """In place; the head's rate is the trunk's times a factor."""
    names = [name for name, _ in model.named_parameters()]
    trunk, head = ([name for name in names if name.startswith(place)] for place in ("0.", "1."))

    def loss(rows: NDArray[np.int64], epoch: int) -> Tensor:
        x = views(part, ops, seed, PURPOSE, rows, epoch)
        return F.cross_entropy(model(x), part.labels[torch.from_numpy(rows)])

    groups = [ParameterGroup(trunk), ParameterGroup(head, lr=head_factor)]
    descend(model, groups, loss, part.ids, sgd, seed=seed, purpose=PURPOSE, fewest=FEWEST)


def _score(model: nn.Sequential, query: Labelled) -> dict[str, float]:
    scores = extract(model, query.images)  # (q, C)
    best = scores.topk(min(TOP, scores.shape[1]), 1).indices == query.labels[:, None]
    return {"top1": best[:, 0].double().mean().item(), f"top{TOP}": best.any(1).double().mean().item()}
