"""A penalty chosen on validation rows, then a refit on training and validation rows together.

Protocol of Kornblith et al. (1805.08974, appendix A.5) and of NNCLR's transfer table (2104.14548), whatever the linear
model and the score.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bench.evaluators.base import EvaluationData, Result
from bench.features import Trained

Fit = Callable[[Tensor, Tensor, Sequence[float]], tuple[Tensor, Tensor]]
"""Features (n, d), labels and penalties (L,) to weights (L, d, C) and biases (L, C)."""
Score = Callable[[Tensor, Tensor], float]
"""Scores (n, C) and labels to a number: the higher, the better."""


class Rows(NamedTuple):
    """Features (n, d) and labels: (n,), or (n, C) of 0 and 1."""

    x: Tensor
    y: Tensor


class Chosen(NamedTuple):
    """The refitted weights (d, C) and bias (C,), the path's penalty, and its score on validation rows (or 0)."""

    weights: Tensor
    bias: Tensor
    l2: float
    validation: float


def choose_and_refit(fit: Fit, train: Rows, validation: Rows, path: Sequence[float], score: Score) -> Chosen:
    """Fit the path on training rows, choose on validation rows, refit on both.

    Of equally good penalties the largest is chosen; so it is where no validation row can tell them apart.

    Args:
        fit: the model.
        train: what the path is fitted on.
        validation: what chooses.
        path: the penalties; l2 stands beside a sum over rows, so the refit's is larger by the ratio of rows.
        score: what is best.
    """
    scores = [0.0] * len(path)
    if len(validation.x) and len(path) > 1:
        weights, bias = fit(train.x, train.y, path)
        predicted = validation.x @ weights + bias[:, None]  # (L, v, C)
        scores = [score(each, validation.y) for each in predicted]
    chosen = max(range(len(path)), key=lambda i: (scores[i], path[i]))
    x, y = torch.cat([train.x, validation.x]), torch.cat([train.y, validation.y])
    weights, bias = fit(x, y, [path[chosen] * len(x) / len(train.x)])
    return Chosen(weights[0], bias[0], path[chosen], scores[chosen])


def evaluate_top1(trained: Trained, data: EvaluationData, fit: Fit, path: Sequence[float]) -> Result:
    """Top-1 on h of the refitted model (a fraction), the penalty that was chosen and its validation accuracy."""
    parts = (data.train, data.validation, data.query)
    train, validation, query = (Rows(trained.features(part.images).double(), part.labels) for part in parts)
    chosen = choose_and_refit(fit, train, validation, path, accuracy)
    predicted = (query.x @ chosen.weights + chosen.bias).argmax(1)
    correct = (predicted == query.y).sum().item()
    metrics = {"top1": correct / len(predicted), "l2": chosen.l2, "validation": chosen.validation}
    return Result(metrics, {"predicted": predicted.cpu().numpy()})


def accuracy(scores: Float[Tensor, "n c"], labels: Tensor) -> float:
    """The share of rows whose highest score is their label's."""
    return (scores.argmax(1) == labels).double().mean().item()


def mean_per_class(scores: Float[Tensor, "n c"], labels: Tensor) -> float:
    """The mean of the classes' accuracies, over those that have rows."""
    of_class = (labels[:, None] == torch.arange(scores.shape[1], device=labels.device)).double()  # (n, C)
    rows = of_class.sum(0)
    hits = (scores.argmax(1) == labels).double() @ of_class  # (C,)
    return (hits / rows)[rows > 0].mean().item()


def log_spaced(low: float, high: float, count: int) -> list[float]:
    """Penalties from low to high, evenly spaced in the logarithm.

    Rounded to 12 digits: the last bits of a power differ between C libraries.
    """
    if count == 1:
        return [low]
    return [float(f"{low * (high / low) ** (i / (count - 1)):.12g}") for i in range(count)]
