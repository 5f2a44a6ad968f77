"""Weighted k-nearest-neighbour vote: Wu et al. (InstDisc), 1805.01978, section 3.4.

The bank is the clean training set, validation part included, embedded anew by the final encoder. Class
c scores the sum of exp(s_i / temperature) over those of the k most similar rows that carry it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bench import kernels
from bench.evaluators.base import EvaluationData, Result, top1
from bench.features import Trained
from bench.options import Places, Positive, RowCounts
from bench.products import relative_error, rows_by_rows

CHUNK = 512  # queries at a time, so that the similarities of large sets are never all in memory
DIGITS = 12  # similarities that agree to so many decimals are ties, whatever order they were summed in
SPARE = 60  # candidates beyond twice the k rows that are wanted
ENTRIES = 2**24  # of the candidates' features at a time


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
        nearest, similarities = nearest_rows(rows, queries, max(k))  # of fewer rows, the first ones
        for each in k:
            predicted = _vote(similarities[:, :each], bank.labels[nearest[:, :each]], temperature, data.classes)
            name = f"k{each}" if place == "h" else f"{place}_k{each}"
            metrics[f"top1_{name}"] = top1(predicted, data.query.labels)
            arrays[f"predicted_{name}"] = predicted.cpu().numpy()
            arrays[f"correct_{name}"] = (predicted == data.query.labels).cpu().numpy()
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
    if not temperature > 0:
        raise ValueError(f"temperature wants a positive number, not {temperature}")
    if not 0 <= int(bank_labels.min()) <= int(bank_labels.max()) < classes:
        raise ValueError(f"labels want 0 to {classes - 1}")
    rows, similarities = nearest_rows(bank, queries, k)
    return _vote(similarities, bank_labels[rows], temperature, classes)


def nearest_rows(
    bank: Float[Tensor, "n d"], queries: Float[Tensor, "q d"], k: int
) -> tuple[Int[Tensor, "q k"], Float[Tensor, "q k"]]:
    """The k most similar rows of each query, nearest first, and their cosines; of equally similar ones the lower first.

    Cosines are those of double precision, rounded to `DIGITS`; single precision, several times as fast, only says
    which rows they need not be computed for.

    Args:
        bank: (n, d), normalised here.
        queries: (q, d), normalised here.
        k: how many.

    Raises:
        ValueError: k is not in 1..n, or features are not finite.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k wants 1 to the bank's {len(bank)} rows, not {k}")
    if not (bank.isfinite().all() and queries.isfinite().all()):
        raise ValueError("features hold values that are not finite")
    rows, wanted = F.normalize(bank.double(), dim=1), F.normalize(queries.double(), dim=1)
    coarse = rows.float()
    found = [_nearest(rows, coarse, chunk, k) for chunk in wanted.split(CHUNK)]
    return torch.cat([r for r, _ in found]), torch.cat([s for _, s in found])


def _nearest(rows: Tensor, coarse: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    n, d = rows.shape
    values = rows_by_rows(queries.float(), coarse)  # (q, n)
    # what is less than the k-th largest by more than two products of vectors of length 1 may be off is less similar
    off = 2 * relative_error(torch.float32, d)
    found, counts = _candidates(values, k, off, room=min(n, 2 * k + SPARE))
    positions, similarities = found.new_empty(len(queries), k), queries.new_empty(len(queries), k)
    sure = counts >= k
    if bool(sure.any()):
        chosen, among = found[sure, : int(counts.max())], counts[sure]
        positions[sure], similarities[sure] = _among(rows, queries[sure], chosen, among, k)
    if not bool(sure.all()):
        positions[~sure], similarities[~sure] = _of_all(queries[~sure] @ rows.mT, k)
    return positions, similarities


def _candidates(values: Float[Tensor, "q n"], k: int, off: float, room: int) -> tuple[Tensor, Tensor]:
    """Places, rising, of the values less than their row's k-th largest by at most `off`, and how many: -1 for too many.

    The places beyond a row's count mean nothing.
    """
    if values.device.type == "cpu":
        found, counts = np.zeros((len(values), room), np.int64), np.empty(len(values), np.int64)
        kernels.candidates(values.numpy(), k, np.float32(off), found, counts)
        return torch.from_numpy(found), torch.from_numpy(counts)
    last = values.shape[1] - 1
    top = values.topk(room, dim=1)  # falling
    needed = top.values >= top.values[:, k - 1 : k] - off
    full = needed.all(1) if room <= last else needed.new_zeros(len(needed))
    places = top.indices.masked_fill(~needed, last + 1).sort(1).values.clamp_max(last)
    return places, needed.sum(1).masked_fill(full, -1)


def _among(
    rows: Tensor, queries: Tensor, candidates: Int[Tensor, "q m"], counts: Int[Tensor, " q"], k: int
) -> tuple[Tensor, Tensor]:
    """The nearest of ascending candidates, of which `counts` are meant."""
    similarity = _products(rows, queries, candidates, counts).round(decimals=DIGITS)
    beyond = torch.arange(candidates.shape[1], device=counts.device) >= counts[:, None]
    order = similarity.masked_fill(beyond, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :k]
    return candidates.gather(1, order), similarity.gather(1, order)


def _products(rows: Tensor, queries: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    """(q, m) products of each query with its candidates; what is beyond its count means nothing."""
    if rows.device.type == "cpu":
        products = queries.new_zeros(candidates.shape)
        kernels.dots(rows.numpy(), queries.numpy(), candidates.numpy(), counts.numpy(), products.numpy())
        return products
    step = max(1, ENTRIES // (candidates.shape[1] * rows.shape[1]))
    parts = zip(queries.split(step), candidates.split(step), strict=True)
    return torch.cat([(rows[c] @ q[:, :, None])[:, :, 0] for q, c in parts])


def _of_all(similarity: Float[Tensor, "q n"], k: int) -> tuple[Tensor, Tensor]:
    similarity = similarity.round(decimals=DIGITS)
    last = similarity.topk(k, dim=1).values[:, -1:]  # (q, 1)
    above, equal = similarity > last, similarity == last
    wanted = k - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1) <= wanted))
    rows = chosen.nonzero()[:, 1].view(len(similarity), k)  # ascending
    order = similarity.gather(1, rows).argsort(dim=1, descending=True, stable=True)
    rows = rows.gather(1, order)
    return rows, similarity.gather(1, rows)


def _vote(
    similarities: Float[Tensor, "q k"], labels: Int[Tensor, "q k"], temperature: float, classes: int
) -> Int[Tensor, " q"]:
    weights = ((similarities - similarities[:, :1]) / temperature).exp()  # (q, k), the largest is 1
    votes = weights.new_zeros(len(weights), classes)
    votes.scatter_add_(1, labels, weights)
    # sums of k weights in another order differ by so much: such scores are equal
    rounding = 4 * weights.shape[1] * torch.finfo(votes.dtype).eps
    best = votes >= votes.max(1, keepdim=True).values * (1 - rounding)
    numbers = torch.arange(classes, device=votes.device)
    return torch.where(best, numbers, classes).min(1).values
