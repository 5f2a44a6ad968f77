"""Linear SVM on frozen features: InstDisc, 1805.01978, section 4.1 (table 1), over a path of l2 penalties.

One class against the rest, squared hinge: the sum over rows and classes of max(0, 1 - y f)^2 + l2/2 |W|^2 with
y = +-1, that is LIBLINEAR's L2-regularised L2-loss SVC with C = 1/l2, but the bias free (LIBLINEAR penalises it).
The paper names neither loss nor C; here the penalty is chosen as in `linear`, on features that are not standardised.
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.evaluators.base import EvaluationData, Result
from bench.evaluators.penalties import evaluate_top1, log_spaced
from bench.features import Trained
from bench.options import Positive, PositiveInt
from bench.solvers import SquaredHinge, Start, check_labels, solve_path


def evaluate(
    trained: Trained,
    data: EvaluationData,
    *,
    seed: int,
    l2_low: Positive,
    l2_high: Positive,
    l2_count: PositiveInt,
    tolerance: Positive,
) -> Result:
    """Top-1 of the refitted SVM (a fraction), and the penalty that was chosen.

    The penalties are `l2_count` values from `l2_low` to `l2_high`, evenly spaced in the logarithm; of
    equally good ones the largest is chosen. Only validation rows choose.
    """
    fit = partial(fit_svm, classes=data.classes, tolerance=tolerance)
    return evaluate_top1(trained, data, fit, log_spaced(l2_low, l2_high, l2_count))


def fit_svm(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    l2_values: Sequence[float],
    *,
    classes: int,
    tolerance: float,
    start: Start | None = None,
) -> tuple[Float[Tensor, "l d c"], Float[Tensor, "l c"]]:
    """Linear SVMs of each class against the rest, at each penalty.

    Args:
        x: (n, d) features.
        y: (n,) labels, 0 to classes - 1.
        l2_values: (L,) positive penalties.
        classes: C; of two, each column is the other's negative.
        tolerance: of the largest entry of the gradient of the mean loss, as `solve_path` has it.
        start: what the largest penalty is solved from.

    Returns:
        Weights (L, d, C) and biases (L, C), in the order of `l2_values` and the type of `x`.

    Raises:
        ValueError: a penalty or the tolerance is not positive, or a label out of range.
        NotConvergedError: a fit stayed above the tolerance.
    """
    check_labels(y, classes)
    targets = y[:, None] == torch.arange(classes, device=y.device)  # (n, C)
    return solve_path(x, SquaredHinge(targets), l2_values, tolerance=tolerance, start=start)
