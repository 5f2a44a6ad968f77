"""Semi-supervised evaluation: the encoder and a linear head fine-tuned on a part of the labels.

Protocol of SimCLR (2002.05709, section 6.2) with SwAV's settings (2006.09882, appendix): for each fraction of the
labels a class-balanced subset, smaller ones inside larger ones and the same for every method and seed; SGD
without weight decay, one learning rate for the trunk and one for the head, step decay; crop and flip. Scored on clean
images in eval mode after the last epoch; nothing is chosen. The row of random initialisation is supervised learning
from scratch on those labels.
"""

import copy
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.augment import make_views
from bench.data.splits import SEED
from bench.evaluators.base import EvaluationData, Labelled, Result
from bench.evaluators.sgd import Loss, Sgd, descend, linear_head, rates
from bench.features import Trained, extract
from bench.methods.base import ParameterGroup
from bench.options import AsManyAs, Fraction, Positive, PositiveInt, Range, Shares
from bench.random import Address, permutation

NEEDS_ENCODER = True  # raw pixels have nothing to fine-tune
PURPOSE = "semisup"
HEAD_STD = 0.01  # of the head's first weights
FEWEST = 2  # rows that have batch statistics


def evaluate(
    trained: Trained,
    data: EvaluationData,
    *,
    seed: int,
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
    """Top-1 and top-5 for each fraction (fractions); arrays hold the rows of each subset, by id.

    Args:
        trained: the encoder.
        data: training and validation rows are the labels' source, query rows are scored.
        seed: of the head, the order and the views.
        fractions: of each class's labels.
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
    ops = [{"crop": {"scale": crop_scale, "ratio": crop_ratio}}, {"flip": {"p": flip}}]
    recipe = {"views": [{"count": 1, "size": data.query.images.shape[1], "ops": ops}]}
    for i, fraction in enumerate(fractions):
        rows = label_subset(data.fitted, fraction)
        part = Labelled(*(getattr(data.fitted, name)[rows] for name in ("images", "labels", "ids")))
        rate = rates(lr[i], len(rows), epochs, batch, decay="step", milestones=milestones, factor=factor)
        sgd = Sgd(epochs, batch, rate, momentum, weight_decay=0.0)
        model = _model(trained, data.classes, seed)
        loss, groups = _loss(model, part, recipe, seed), _groups(model, head_lr[i] / lr[i])
        descend(model, groups, loss, part.ids, sgd, seed=seed, purpose=PURPOSE, fewest=FEWEST)
        scores = extract(model, data.query.images)  # (q, C)
        best = scores.topk(min(5, data.classes), 1).indices == data.query.labels[:, None]
        name = f"{100 * fraction:g}pct"
        metrics[f"top1_{name}"] = best[:, 0].double().mean().item()
        metrics[f"top5_{name}"] = best.any(1).double().mean().item()
        arrays[f"rows_{name}"] = part.ids.numpy()
    return Result(metrics, arrays)


def label_subset(labelled: Labelled, fraction: float) -> Int[Tensor, " m"]:
    """Positions, ascending, of the same share of each class, at least one row of each; by address.

    Smaller fractions lie inside larger ones. It belongs to the image set: no cell's seed moves it.
    """
    order = permutation(SEED, "labels", labelled.ids.numpy())
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


def _groups(model: nn.Sequential, head_factor: float) -> list[ParameterGroup]:
    names = [name for name, _ in model.named_parameters()]
    trunk, head = ([name for name in names if name.startswith(part)] for part in ("0.", "1."))
    return [ParameterGroup(trunk), ParameterGroup(head, lr=head_factor)]


def _loss(model: nn.Module, part: Labelled, recipe: Mapping[str, Any], seed: int) -> Loss:
    def loss(rows: NDArray[np.int64], epoch: int) -> Tensor:
        chosen = torch.from_numpy(rows)
        address = Address(seed, PURPOSE, part.ids[chosen].numpy(), epoch)
        x = make_views(recipe, part.images[chosen].to(part.labels.device), address)[0]
        return F.cross_entropy(model(x), part.labels[chosen])

    return loss
