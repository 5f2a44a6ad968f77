"""A penalty chosen on validation rows, then a refit on training and validation rows together.

Protocol of Kornblith et al. (1805.08974, appendix A.5) and of NNCLR's transfer table (2104.14548), whatever the linear
model and the score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from bench.evaluators.base import EvaluationData, Result, top1
from bench.features import Trained
from bench.solvers import Start

Score = Callable[[Tensor, Tensor], float]
"""Scores (n, C) and labels to a number: the higher, the better."""


class Fit(Protocol):
    """Features (n, d), labels and penalties (L,) to weights (L, d, C) and biases (L, C)."""

    def __call__(
        self, x: Tensor, y: Tensor, l2_values: Sequence[float], /, *, start: Start | None = None
    ) -> tuple[Tensor, Tensor]: ...


class Rows(NamedTuple):
    """Features (n, d) and labels: (n,), or (n, C) of 0 and 1."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Embedded:
    """What `EvaluationData` holds, as features in double precision."""

    train: Rows
    validation: Rows
    query: Rows

    @cached_property
    def fitted(self) -> Rows:
        """Training and validation rows together."""
        return Rows(torch.cat([self.train.x, self.validation.x]), torch.cat([self.train.y, self.validation.y]))


def embed(data: EvaluationData, features: Callable[[Tensor], Tensor]) -> Embedded:
    """Every part of the data, its images (n, h, w, c) as features (n, d)."""
    parts = (data.train, data.validation, data.query)
    return Embedded(*(Rows(features(part.images).double(), part.labels) for part in parts))


class Chosen(NamedTuple):
    """The refitted weights (d, C) and bias (C,), the path's penalty, and its score on validation rows (or 0)."""

    weights: Tensor
    bias: Tensor
    l2: float
    validation: float

    def scores(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Of each class, for features."""
        return x @ self.weights + self.bias


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
    scores, fitted = [0.0] * len(path), None
    if len(validation.x) and len(path) > 1:
        fitted = fit(train.x, train.y, path)
        predicted = validation.x @ fitted[0] + fitted[1][:, None]  # (L, v, C)
        scores = [score(each, validation.y) for each in predicted]
    chosen = max(range(len(path)), key=lambda i: (scores[i], path[i]))
    x, y = torch.cat([train.x, validation.x]), torch.cat([train.y, validation.y])
    start = (fitted[0][chosen], fitted[1][chosen]) if fitted else None  # most rows are the same
    weights, bias = fit(x, y, [path[chosen] * len(x) / len(train.x)], start=start)
    return Chosen(weights[0], bias[0], path[chosen], scores[chosen])


def evaluate_top1(trained: Trained, data: EvaluationData, fit: Fit, path: Sequence[float]) -> Result:
    """Top-1 on h of the refitted model (a fraction), the penalty that was chosen and its validation accuracy."""
    rows = embed(data, trained.features)
    chosen = choose_and_refit(fit, rows.train, rows.validation, path, accuracy)
    predicted = chosen.scores(rows.query.x).argmax(1)
    metrics = {"top1": top1(predicted, rows.query.y), "l2": chosen.l2, "validation": chosen.validation}
    arrays = {"predicted": predicted, "correct": predicted == rows.query.y}
    return Result(metrics, {name: array.cpu().numpy() for name, array in arrays.items()})


def accuracy(scores: Float[Tensor, "n c"], labels: Tensor) -> float:
    """The share of rows whose highest score is their label's."""
    return top1(scores.argmax(1), labels)


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
