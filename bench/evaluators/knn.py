"""Weighted k-nearest-neighbour vote: Wu et al. (InstDisc), 1805.01978, section 3.4.

The bank is the clean training set, validation part included, embedded anew by the final encoder. Class
c scores the sum of exp(s_i / temperature) over those of the k most similar rows that carry it.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bench.evaluators.base import EvaluationData, Result, top1
from bench.features import Trained
from bench.options import Places, Positive, RowCounts

CHUNK = 512  # queries at a time, so that the similarities of large sets are never all in memory
DIGITS = 12  # similarities that agree to so many decimals are ties, whatever order they were summed in


def evaluate(
    trained: Trained, data: EvaluationData, *, seed: int, at: Places, k: RowCounts, temperature: Positive
) -> Result:
    """Top-1 of the vote (a fraction, not per cent) for each place and k.

    Args:
        trained: the encoder.
        data: bank and queries.
        seed: the cell's; nothing is drawn.
        at: h, z or both; z is passed over where the method projects nothing.
        k: how many rows vote, one metric each.
        temperature: of the weights.

    Raises:
        ValueError: a k above the number of rows in the bank.
    """
    bank = data.fitted
    metrics, arrays = {}, {}
    for place in (place for place in at if place in trained.places):
        rows, queries = (trained.features(part.images, place) for part in (bank, data.query))
        for each in k:
            predicted = knn_predict(rows, bank.labels, queries, each, temperature, data.classes)
            name = f"k{each}" if place == "h" else f"{place}_k{each}"
            metrics[f"top1_{name}"] = top1(predicted, data.query.labels)
            arrays[f"predicted_{name}"] = predicted.cpu().numpy()
    return Result(metrics, arrays)


def knn_predict(
    bank: Float[Tensor, "n d"],
    bank_labels: Int[Tensor, " n"],
    queries: Float[Tensor, "q d"],
    k: int,
    temperature: float,
    classes: int,
) -> Int[Tensor, " q"]:
    """The weighted vote of the k most similar rows.

    Args:
        bank: (n, d), normalised here.
        bank_labels: (n,) classes of its rows.
        queries: (q, d), normalised here.
        k: how many rows vote; of equally similar rows the lower one does.
        temperature: of the weights exp(similarity / temperature).
        classes: how many there are.

    Returns:
        (q,) labels; of classes with equal scores the lower one.

    Raises:
        ValueError: k is not in 1..n, the temperature not positive, or a label out of range.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k wants 1 to the bank's {len(bank)} rows, not {k}")
    if not temperature > 0:
        raise ValueError(f"temperature wants a positive number, not {temperature}")
    if not 0 <= int(bank_labels.min()) <= int(bank_labels.max()) < classes:
        raise ValueError(f"labels want 0 to {classes - 1}")
    if not (bank.isfinite().all() and queries.isfinite().all()):
        raise ValueError("features hold values that are not finite")
    rows = F.normalize(bank.double(), dim=1)
    chunks = F.normalize(queries.double(), dim=1).split(CHUNK)
    return torch.cat([_vote(c @ rows.mT, bank_labels, k, temperature, classes) for c in chunks])


def nearest_rows(similarity: Float[Tensor, "q n"], k: int) -> Int[Tensor, "q k"]:
    """The k most similar rows of each query, nearest first; of equally similar ones the lower row first."""
    similarity = similarity.round(decimals=DIGITS)
    last = similarity.topk(k, dim=1).values[:, -1:]  # (q, 1)
    above, equal = similarity > last, similarity == last
    wanted = k - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1) <= wanted))
    rows = chosen.nonzero()[:, 1].view(len(similarity), k)  # ascending
    order = similarity.gather(1, rows).argsort(dim=1, descending=True, stable=True)
    return rows.gather(1, order)


def _vote(
    similarity: Float[Tensor, "q n"], labels: Int[Tensor, " n"], k: int, temperature: float, classes: int
) -> Int[Tensor, " q"]:
    rows = nearest_rows(similarity, k)  # (q, k)
    s = similarity.gather(1, rows).round(decimals=DIGITS)
    weights = ((s - s[:, :1]) / temperature).exp()  # (q, k), the largest is 1
    votes = weights.new_zeros(len(s), classes)
    votes.scatter_add_(1, labels[rows], weights)
    # sums of k weights in another order differ by so much: such scores are equal
    rounding = 4 * rows.shape[1] * torch.finfo(votes.dtype).eps
    best = votes >= votes.max(1, keepdim=True).values * (1 - rounding)
    numbers = torch.arange(classes, device=votes.device)
    return torch.where(best, numbers, classes).min(1).values
