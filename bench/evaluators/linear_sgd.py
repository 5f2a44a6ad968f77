"""Linear evaluation by stochastic gradient descent: the protocol of the papers' linear tables.

A linear softmax classifier on frozen h, as MoCo (1911.05722), SimSiam (2011.10566), SwAV (2006.09882) and Barlow Twins
(2103.03230) train it: views by random resized crop and flip, the encoder in eval mode, SGD with momentum, the learning
rate times batch / 256, cosine or step decay. Weights start from N(0, 0.01), 0.01 the deviation, and biases from 0.

Differences: trained on training and validation rows together, and nothing is chosen, so that neither a learning rate
nor an epoch can be chosen on what is scored; the bias does not decay, so that the objective is that of `linear` at
l2 = weight decay times rows; scored on whole clean images, not on a central crop. A last short batch is kept, at the
rate of a full one: the batch normalises nothing here.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.evaluators.base import EvaluationData, Labelled, Result
from bench.evaluators.sgd import Sgd, crop_and_flip, descend, linear_head, rates, views
from bench.features import BATCH, Trained
from bench.methods.base import ParameterGroup
from bench.optim import scaled
from bench.options import Fraction, NonNegative, Positive, PositiveInt, Range

PURPOSE = "linear_sgd"  # of every address
STD = 0.01  # of the first weights
TOP = 5
Shown = Callable[[NDArray[np.int64], int], Tensor]
"""Rows (m,) and an epoch to their features (m, d), as that epoch shows them."""


def evaluate(
    trained: Trained,
    data: EvaluationData,
    *,
    seed: int,
    epochs: PositiveInt,
    batch: PositiveInt,
    lr: Positive,
    momentum: Fraction,
    weight_decay: NonNegative,
    decay: Literal["cosine", "step"],
    milestones: list[PositiveInt],
    factor: Positive,
    crop_scale: Range,
    crop_ratio: Range,
    flip: Fraction,
) -> Result:
    """Top-1 and top-5 of the classifier after its last epoch (fractions).

    Args:
        trained: the encoder, or raw pixels: h is then a view's pixels.
        data: training and validation rows are trained on, query rows scored.
        seed: of the first weights, the order and the views.
        epochs: each shows every row once.
        batch: rows per step.
        lr: of 256 rows per step.
        momentum: of SGD.
        weight_decay: of the weights.
        decay: of the learning rate.
        milestones: epochs after which a step decay multiplies the rate by `factor`; none for a cosine.
        factor: see milestones; 1 for a cosine.
        crop_scale: lowest and highest share of the area; [1, 1] with ratios of [1, 1] shows square images whole.
        crop_ratio: lowest and highest width / height.
        flip: probability of a mirrored view.

    Raises:
        ValueError: a step decay without milestones, or milestones or a factor beside a cosine.
        DivergedError: the learning rate is too high.
    """
    _check(decay, milestones, factor)
    rows, base = data.fitted, scaled(lr, "linear", batch)
    rate = rates(base, len(rows.labels), epochs, batch, decay=decay, milestones=milestones, factor=factor)
    shown = _shown(trained, rows, crop_and_flip(crop_scale, crop_ratio, flip), seed)
    classifier = fit(shown, rows, data.classes, Sgd(epochs, batch, rate, momentum, weight_decay), seed=seed)
    return _score(_shown(trained, data.query, [], seed), classifier, data.query.labels)


def _check(decay: str, milestones: Sequence[int], factor: float) -> None:
    if decay == "step" and not milestones:
        raise ValueError("decay: step wants milestones (epochs)")
    if decay != "step" and (milestones or factor != 1):
        raise ValueError(f"milestones and factor belong to decay: step; decay: {decay} wants [] and 1, not {factor}")


def _shown(trained: Trained, part: Labelled, ops: Sequence[dict[str, Any]], seed: int) -> Shown:
    return lambda rows, epoch: trained.embed(views(part, ops, seed, PURPOSE, rows, epoch))


def fit(shown: Shown, part: Labelled, classes: int, sgd: Sgd, *, seed: int) -> nn.Linear:
    """The classifier after its last epoch.

    Args:
        shown: rows' features.
        part: labels and ids of the rows.
        classes: C.
        sgd: how long and how fast.
        seed: of the first weights and the order.

    Raises:
        DivergedError: the learning rate is too high.
    """
    classifier = linear_head(shown(np.arange(1), 0).shape[1], classes, STD, seed, PURPOSE).to(part.labels.device)

    def loss(rows: NDArray[np.int64], epoch: int) -> Tensor:
        return F.cross_entropy(classifier(shown(rows, epoch)), part.labels[torch.from_numpy(rows)])

    groups = [ParameterGroup(["weight", "bias"])]
    descend(classifier, groups, loss, part.ids, sgd, seed=seed, purpose=PURPOSE)
    return classifier


@torch.no_grad()
def _score(shown: Shown, classifier: nn.Linear, y: Int[Tensor, " q"]) -> Result:
    chunks = [np.arange(start, min(start + BATCH, len(y))) for start in range(0, len(y), BATCH)]
    scores = torch.cat([classifier(shown(rows, 0)) for rows in chunks])  # (q, C)
    own = scores.gather(1, y[:, None])
    before = torch.arange(scores.shape[1], device=y.device) < y[:, None]  # of equal scores the lower class leads
    rank = ((scores > own) | ((scores == own) & before)).sum(1)  # (q,)
    metrics = {f"top{k}": (rank < k).double().mean().item() for k in (1, TOP)}
    return Result(metrics, {"predicted": scores.argmax(1).cpu().numpy()})
