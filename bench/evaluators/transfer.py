"""Transfer: representations of a frozen encoder on image sets that it was not trained on.

Protocol of Kornblith et al. (1805.08974, appendix A.5) and of NNCLR's table 3 (2104.14548): logistic regression over a
path of l2 penalties, chosen on the target's validation part, refitted on all its training rows, scored on its
test rows by the target's own metric. Beside it the weighted kNN vote of `knn`.
"""

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from bench.augment import make_views
from bench.evaluators.base import EvaluationData, Result
from bench.evaluators.knn import knn_predict
from bench.evaluators.linear import fit_path
from bench.evaluators.penalties import Fit, Score, accuracy, choose_and_refit, embed, log_spaced, mean_per_class
from bench.features import Trained
from bench.options import DataSets, Positive, PositiveInt
from bench.random import Address
from bench.solvers import BinaryLogistic, solve_path

RECALLS = 11  # levels, 0 to 1, of VOC2007's average precision
CHUNK = 1024  # images that are resized at a time


def evaluate(
    trained: Trained,
    data: EvaluationData,
    *,
    seed: int,
    targets: DataSets,
    l2_low: Positive,
    l2_high: Positive,
    l2_count: PositiveInt,
    tolerance: Positive,
    k: PositiveInt,
    temperature: Positive,
) -> Result:
    """Mean over the targets, then every target's own metric, linear and kNN (fractions).

    Args:
        trained: the encoder.
        data: carries the targets; its training images say what size and channels the encoder takes.
        seed: the cell's; nothing is drawn.
        targets: names of image sets.
        l2_low: smallest penalty.
        l2_high: largest penalty.
        l2_count: how many, evenly spaced in the logarithm.
        tolerance: of the fits.
        k: neighbours that vote, all rows where there are fewer; no vote for sets whose images carry several labels.
        temperature: of the votes.
    """
    path = log_spaced(l2_low, l2_high, l2_count)
    metrics: dict[str, float] = {}
    for name in targets:
        target, score = data.targets[name], SCORES[data.targets[name].metric]
        rows = embed(target, lambda images: trained.features(as_seen(images, data.train.images)))
        chosen = choose_and_refit(_fit(target, tolerance), rows.train, rows.validation, path, score)
        metrics[f"{name}_linear"] = score(chosen.scores(rows.query.x), rows.query.y)
        metrics[f"{name}_l2"] = chosen.l2
        if target.metric != "map11":
            bank, labels = rows.fitted
            predicted = knn_predict(bank, labels, rows.query.x, min(k, len(bank)), temperature, target.classes)
            metrics[f"{name}_knn"] = score(F.one_hot(predicted, target.classes).double(), rows.query.y)
    found = [metrics[f"{name}_linear"] for name in targets]
    return Result({"linear": sum(found) / len(found), **metrics})


def _fit(target: EvaluationData, tolerance: float) -> Fit:
    if target.metric == "map11":
        return lambda x, y, path, start=None: solve_path(x, BinaryLogistic(y), path, tolerance=tolerance, start=start)
    return partial(fit_path, classes=target.classes, tolerance=tolerance)


def as_seen(images: UInt8[Tensor, "n h w c"], like: UInt8[Tensor, "m a b d"]) -> UInt8[Tensor, "n a b d"]:
    """Images with the side and the channels of others.

    Resized (bilinear, antialiased; what is not square is stretched), gray repeated or colour dropped.

    Raises:
        ValueError: the others are not square.
    """
    side, channels = like.shape[1], like.shape[3]
    if like.shape[1] != like.shape[2]:
        raise ValueError(f"the encoder's images want to be square, not {tuple(like.shape[1:3])}")
    if images.shape[1:] == like.shape[1:]:
        return images
    ops = [{"grayscale": {"p": 1.0}}] if channels == 1 else []
    recipe = {"views": [{"count": 1, "size": side, "ops": ops}]}
    parts = []
    for chunk in images.split(CHUNK):
        address = Address(0, "none", torch.arange(len(chunk)).numpy())  # nothing is left to chance
        x = make_views(recipe, chunk, address)[0]
        x = x[:, :1] if channels == 1 else x.expand(-1, channels, -1, -1)
        parts.append((x * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1))
    return torch.cat(parts)


def average_precision(scores: Float[Tensor, " n"], relevant: Int[Tensor, " n"]) -> float:
    """VOC2007's: the mean, over recalls 0, 0.1 to 1, of the highest precision at that recall or above.

    Everingham et al., "The PASCAL visual object classes challenge", 2010, section 4.2. Of equal scores the lower row
    is ranked first. 0 where nothing is relevant.
    """
    order = scores.argsort(descending=True, stable=True)
    hits = relevant[order].double().cumsum(0)
    if len(hits) == 0 or hits[-1] == 0:
        return 0.0
    ranks = torch.arange(1, len(hits) + 1, dtype=torch.float64, device=hits.device)
    precision, tenths = hits / ranks, hits * (RECALLS - 1)  # whole numbers: recalls are compared without rounding
    best = [precision[tenths >= level * hits[-1]].max().item() for level in range(RECALLS)]
    return sum(best) / RECALLS


def map11(scores: Float[Tensor, "n c"], labels: Int[Tensor, "n c"]) -> float:
    """Mean over classes of VOC2007's 11-point average precision."""
    return sum(average_precision(s, y) for s, y in zip(scores.mT, labels.mT, strict=True)) / scores.shape[1]


SCORES: dict[str, Score] = {"top1": accuracy, "mean_per_class": mean_per_class, "map11": map11}
