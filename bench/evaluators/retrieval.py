"""Nearest neighbours of queries, over training: NNCLR, 2104.14548, figure 7; InstDisc, 1805.01978, figure 5.

Of every query's k nearest rows of the bank (cosine on h, clean training and validation images), the share
that carries the query's class, and how unlike the query they look (1 - cosine of raw pixels, mean over neighbours);
after the last epoch, and after each snapshot; after the last, also the mean average precision of the whole bank, in
the order of its cosines. The pictures are of the first
query of each class, by row: chosen by that rule, never by hand.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bench.augment import to_float
from bench.evaluators.base import EvaluationData, Result
from bench.evaluators.knn import CHUNK, DIGITS, nearest_rows
from bench.features import Trained
from bench.options import PositiveInt


def evaluate(trained: Trained, data: EvaluationData, *, seed: int, k: PositiveInt, pictured: PositiveInt) -> Result:
    """Precision at k (a fraction), last epoch first; arrays hold the pictured queries and neighbours.

    Args:
        trained: the encoder.
        data: bank and queries.
        seed: the cell's; nothing is drawn.
        k: neighbours.
        pictured: how many queries are kept as pictures, of the first classes.

    Raises:
        ValueError: k above the number of rows in the bank.
    """
    images, labels = data.fitted.images, data.fitted.labels
    if k > len(images):
        raise ValueError(f"k wants 1 to the bank's {len(images)} rows, not {k}")
    shown = _first_of_each_class(data.query.labels, min(pictured, data.classes))
    metrics, arrays = {}, {"queries": data.query.images[shown], "labels": data.query.labels[shown].cpu()}
    for name, encoder in {"": trained, **{f"_epoch{e}": t for e, t in trained.snapshots.items()}}.items():
        embedded = encoder.features(images), encoder.features(data.query.images)
        neighbours, _ = nearest_rows(*embedded, k)  # (q, k)
        same = labels[neighbours] == data.query.labels[:, None]
        metrics[f"precision{name}"] = same.double().mean().item()
        metrics[f"diversity{name}"] = _diversity(images, data.query.images, neighbours)
        if not name:
            metrics["map"] = mean_average_precision(*embedded, labels, data.query.labels)
        picked = neighbours[shown].cpu()
        arrays[f"neighbours{name}"] = images[picked]  # (pictured, k, h, w, c)
        arrays[f"same{name}"] = same[shown].cpu()
    return Result(metrics, {name: array.numpy() for name, array in arrays.items()})


def mean_average_precision(
    bank: Float[Tensor, "n d"], queries: Float[Tensor, "q d"], labels: Int[Tensor, " n"], wanted: Int[Tensor, " q"]
) -> float:
    """The mean over queries of average precision: the mean of precision at each row of the query's class.

    Rows are ranked by cosine in double precision, of equal ones the lower first. A class that the bank lacks counts 0.
    """
    rows, asked = (F.normalize(x.double(), dim=1) for x in (bank, queries))
    ranks = torch.arange(1, len(rows) + 1, device=rows.device, dtype=torch.float64)
    total = 0.0
    for x, mine in zip(asked.split(CHUNK), wanted.split(CHUNK), strict=True):
        order = (x @ rows.mT).round(decimals=DIGITS).argsort(dim=1, descending=True, stable=True)
        same = (labels[order] == mine[:, None]).double()
        precision = (same.cumsum(1) / ranks * same).sum(1)
        total += (precision / same.sum(1).clamp(min=1)).sum().item()
    return total / len(asked)


def _first_of_each_class(labels: Tensor, classes: int) -> Tensor:
    first = [(labels == c).nonzero()[:1, 0] for c in range(classes)]
    return torch.cat(first).cpu()


def _diversity(bank: Tensor, queries: Tensor, neighbours: Tensor) -> float:
    """Mean of 1 - cosine between the pixels of a query and of its neighbours."""
    pixels, asked = (F.normalize(to_float(x).flatten(1).double(), dim=1) for x in (bank, queries))
    parts = zip(asked.split(CHUNK), neighbours.to(pixels.device).split(CHUNK), strict=True)
    cosines = [torch.einsum("qd,qkd->qk", x, pixels[rows]) for x, rows in parts]
    return 1 - torch.cat(cosines).mean().item()
