"""Every layer of the encoder under linear classification, linear SVM and kNN: the papers' conv1-5 tables.

InstDisc (1805.01978, table 3) and DeepCluster (1807.05520, table 1, after Zhang et al., 1611.09842): each layer's map
is average-pooled to about `dimensions` numbers (9,000 in the papers) and classified, its encoder frozen. Of the
filters on a colour image, the share of their energy that answers to colour (DeepCluster, figure 3, shows them).
"""

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from bench.evaluators.base import EvaluationData, Result, top1
from bench.evaluators.knn import knn_predict
from bench.evaluators.linear import fit_path
from bench.evaluators.penalties import accuracy, choose_and_refit, embed, log_spaced
from bench.evaluators.svm import fit_svm
from bench.features import Trained
from bench.options import Positive, PositiveInt

NEEDS_ENCODER = True  # raw pixels have no layers
COLOURS = 3  # channels
MODELS = {"linear": fit_path, "svm": fit_svm}


def evaluate(
    trained: Trained,
    data: EvaluationData,
    *,
    seed: int,
    dimensions: PositiveInt,
    l2_low: Positive,
    l2_high: Positive,
    l2_count: PositiveInt,
    tolerance: Positive,
    k: PositiveInt,
    temperature: Positive,
) -> Result:
    """Top-1 of each classifier at each layer (fractions), the deepest layer first, the penalties chosen, `chroma`.

    Args:
        trained: the encoder.
        data: what is fitted on, chosen on and scored.
        seed: the cell's; nothing is drawn.
        dimensions: of a pooled map, about.
        l2_low: smallest penalty.
        l2_high: largest penalty.
        l2_count: how many, evenly spaced in the logarithm; chosen on validation rows, as in `linear`.
        tolerance: of the fits.
        k: neighbours that vote; all rows where there are fewer.
        temperature: of the votes.
    """
    path, metrics = log_spaced(l2_low, l2_high, l2_count), {}
    for place in reversed([place for place in trained.places if place.startswith("layer")]):
        rows = embed(data, partial(trained.features, at=place, dimensions=dimensions))
        for name, model in MODELS.items():
            fit = partial(model, classes=data.classes, tolerance=tolerance)
            chosen = choose_and_refit(fit, rows.train, rows.validation, path, accuracy)
            metrics[f"{name}_{place}"] = accuracy(chosen.scores(rows.query.x), rows.query.y)
            metrics[f"{name}_{place}_l2"] = chosen.l2
            metrics[f"{name}_{place}_validation"] = chosen.validation
        bank, labels = rows.fitted
        predicted = knn_predict(bank, labels, rows.query.x, min(k, len(bank)), temperature, data.classes)
        metrics[f"knn_{place}"] = top1(predicted, rows.query.y)
    assert trained.encoder is not None
    first = next(m for m in trained.encoder.modules() if isinstance(m, nn.Conv2d))
    if first.in_channels == COLOURS:
        metrics["chroma"] = chroma(first.weight)
    return Result(metrics)


def chroma(filters: Float[Tensor, "f 3 k k"]) -> float:
    """The share of the filters' energy that is left once each is replaced by its mean over the three colours."""
    squares = filters.detach().double().square().sum()
    grey = COLOURS * filters.detach().double().mean(1).square().sum()
    return 1 - (grey / squares).item()
