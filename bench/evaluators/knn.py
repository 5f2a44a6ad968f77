"""Weighted k-nearest-neighbour vote: Wu et al. (InstDisc), 1805.01978, section 3.4.

The bank is the clean training set, validation part included, embedded anew by the final encoder. Class
c scores the sum of exp(s_i / temperature) over those of the k most similar rows that carry it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench import kernels
from bench.evaluators.base import EvaluationData, Result, top1
from bench.features import Trained
from bench.options import Places, Positive, RowCounts
from bench.products import ROWS, bits_of_products, relative_error, rows_by_rows, screens

CHUNK = 512  # queries at a time, so that the similarities of large sets are never all in memory
DIGITS = 12  # similarities that agree to so many decimals are ties, whatever order they were summed in
SPARE = 60  # candidates beyond twice the k rows that are wanted
STRIDE, BLOCKS = 64, 4  # products whose largest is looked at first: at most so many, and blocks for each neighbour
SHORTEST = 1e-12  # a length that vectors are divided by, as torch's normalize has it
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

    Cosines are those of double precision, rounded to `DIGITS`; coarser products, several times as fast, only say
    which rows they need not be computed for.

    Args:
        bank: (n, d), normalised here.
        queries: (q, d), normalised here.
        k: how many.

    Raises:
        ValueError: k is not in 1..n, or features are not finite or too large for a length in double precision.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k wants 1 to the bank's {len(bank)} rows, not {k}")
    rows, asked = _vectors(bank), _vectors(queries)
    # equal ones mostly lie side by side, by class or time, where the search wants them apart
    order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(0)).to(bank.device)
    whole = rows.directions()[order]
    nearest = torch.empty(len(queries), k, dtype=torch.int64, device=bank.device)
    similarities = rows.lengths.new_empty(len(queries), k)
    left = torch.arange(len(queries), device=bank.device)
    for kind in screens(bank.device):
        undecided, directions = [left[:0]], whole.to(kind)
        for part in _chunks(left):
            places, counts = _candidates(asked[part].directions().to(kind), directions, k)
            sure = counts >= k
            some = part[sure]
            nearest[some], similarities[some] = _among(rows, asked[some], order[places[sure]], counts[sure], k)
            undecided.append(part[~sure])
        left = torch.cat(undecided)
    for part in _chunks(left):
        nearest[part], similarities[part] = _of_all(rows, asked[part], k)
    return nearest, similarities


def _chunks(queries: Int[Tensor, " q"]) -> list[Tensor]:
    return [queries[start : start + CHUNK] for start in range(0, len(queries), CHUNK)]


@dataclass(frozen=True)
class _Vectors:
    """Vectors (n, d) as they are, and their lengths (n,) in double precision."""

    whole: Tensor
    lengths: Tensor

    def __getitem__(self, chosen: Tensor) -> "_Vectors":
        return _Vectors(self.whole[chosen], self.lengths[chosen])

    def __len__(self) -> int:
        return len(self.whole)

    def directions(self) -> Float[Tensor, "n d"]:
        """In single precision; never are all of them in double."""
        parts = zip(self.whole.split(ROWS), self.lengths.split(ROWS), strict=True)
        return torch.cat([(whole.double() / lengths[:, None]).float() for whole, lengths in parts])


def _vectors(features: Float[Tensor, "n d"]) -> _Vectors:
    whole = features.contiguous() if features.dtype in {torch.float32, torch.float64} else features.float()
    lengths = torch.linalg.vector_norm(whole, dim=1, dtype=torch.float64).clamp_min(SHORTEST)
    if not lengths.isfinite().all():
        raise ValueError("features hold values that are not finite, or too large to be squared in double precision")
    return _Vectors(whole, lengths)


def _candidates(
    queries: Float[Tensor, "q d"], rows: Float[Tensor, "n d"], k: int
) -> tuple[Int[Tensor, "q m"], Int[Tensor, " q"]]:
    """Places of the rows that may be among the k most similar ones, and how many: -1 for too many.

    The places beyond a query's count mean nothing.
    """
    room = min(len(rows), 2 * k + SPARE)
    # what is less than the k-th largest by more than two products of vectors of length 1 may be off is less similar
    off = 2 * relative_error(rows.dtype, rows.shape[1])
    if queries.device.type == "cpu":
        return _candidates_in_blocks(queries, rows, k, off, room)
    top = rows_by_rows(queries, rows).topk(room, dim=1)  # falling
    needed = top.values >= top.values[:, k - 1 : k] - off
    full = needed.all(1) & (room < len(rows))
    return top.indices, needed.sum(1).masked_fill(full, -1)


def _candidates_in_blocks(queries: Tensor, rows: Tensor, k: int, off: float, room: int) -> tuple[Tensor, Tensor]:
    """The k-th largest of the largest of every few products is at most the k-th largest product."""
    stride = max(1, min(STRIDE, len(rows) // (BLOCKS * k)))
    step = ROWS // stride * stride
    blocks = [bits_of_products(queries, part) for part in rows.split(step)]
    tops = [np.empty((len(queries), -(-block.shape[1] // stride)), np.float32) for block in blocks]
    for block, top in zip(blocks, tops, strict=True):
        kernels.tops(block, stride, top)
    every = torch.from_numpy(np.concatenate(tops, 1))
    bounds = (every.kthvalue(every.shape[1] - k + 1).values - off).numpy()
    places, counts = np.zeros((len(queries), room + stride), np.int64), np.zeros(len(queries), np.int64)
    for i, (block, top) in enumerate(zip(blocks, tops, strict=True)):
        kernels.candidates(block, stride, top, bounds, i * step, (places, counts))
    return torch.from_numpy(places[:, :room]), torch.from_numpy(counts)


def _among(
    bank: _Vectors, queries: _Vectors, candidates: Int[Tensor, "q m"], counts: Int[Tensor, " q"], k: int
) -> tuple[Tensor, Tensor]:
    """The nearest of candidates in any order, of which the first `counts` are meant."""
    candidates = candidates[:, : max([k, *counts.tolist()])]
    beyond = torch.arange(candidates.shape[1], device=counts.device) >= counts[:, None]
    last = len(bank) - 1
    candidates = candidates.masked_fill(beyond, last + 1).sort(1).values.clamp_max(last)
    products = _products(bank.whole, queries.whole, candidates, counts)
    similarity = (products / (queries.lengths[:, None] * bank.lengths[candidates])).round(decimals=DIGITS)
    order = similarity.masked_fill(beyond, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :k]
    return candidates.gather(1, order), similarity.gather(1, order)


def _products(rows: Tensor, queries: Tensor, candidates: Tensor, counts: Tensor) -> Float[Tensor, "q m"]:
    """Products of each query with its candidates, in double precision; what is beyond its count means nothing."""
    if rows.device.type == "cpu":
        products = torch.zeros(candidates.shape, dtype=torch.float64)
        kernels.dots(rows.numpy(), queries.numpy(), candidates.numpy(), counts.numpy(), products.numpy())
        return products
    step = max(1, ENTRIES // (candidates.shape[1] * rows.shape[1]))
    parts = zip(queries.double().split(step), candidates.split(step), strict=True)
    return torch.cat([(rows[c].double() @ q[:, :, None])[:, :, 0] for q, c in parts])


def _all_products(rows: Tensor, queries: Tensor) -> Float[Tensor, "q n"]:
    """Products of each query with every row, in double precision.

    Not as a product of matrices on a CPU, which may sum in another order at its edges: rows that are equal to the bit
    would then be rounded apart now and then, and the others that ask would matter.
    """
    if rows.device.type == "cpu":
        every = torch.arange(len(rows)).expand(len(queries), -1)
        return _products(rows, queries, every, torch.full((len(queries),), len(rows)))
    return torch.cat([queries.double() @ part.double().mT for part in rows.split(ROWS)], 1)


def _of_all(bank: _Vectors, queries: _Vectors, k: int) -> tuple[Tensor, Tensor]:
    products = _all_products(bank.whole, queries.whole)  # (q, n)
    similarity = products / (queries.lengths[:, None] * bank.lengths)
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
