"""Linear evaluation: multinomial logistic regression on frozen features, over a path of l2 penalties.

Protocol of Kornblith et al. (1805.08974) and of NNCLR's transfer table: features of clean images, not
standardised; the penalty chosen on the validation part, then refitted on training and validation
rows together. The objective is the sum of losses + l2/2 |W|^2 (scikit-learn's C = 1/l2), the bias free.
"""

from collections.abc import Sequence
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor

from bench.evaluators.base import EvaluationData, Result
from bench.evaluators.penalties import evaluate_top1, log_spaced
from bench.features import Trained
from bench.options import Positive, PositiveInt
from bench.solvers import Softmax, Start, solve_path


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
    """Top-1 of the refitted classifier (a fraction), and the penalty that was chosen.

    The penalties are `l2_count` values from `l2_low` to `l2_high`, evenly spaced in the logarithm; of
    equally good ones the largest is chosen. Only validation rows choose.
    """
    fit = partial(fit_path, classes=data.classes, tolerance=tolerance)
    return evaluate_top1(trained, data, fit, log_spaced(l2_low, l2_high, l2_count))


def fit_path(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    l2_values: Sequence[float],
    *,
    classes: int,
    tolerance: float,
    start: Start | None = None,
) -> tuple[Float[Tensor, "l d c"], Float[Tensor, "l c"]]:
    """Multinomial logistic regression at each penalty: sum of losses + l2/2 |W|^2, the bias free.

    A softmax over all `classes` columns, for two classes as well (scikit-learn's binary fit at l2/2).

    Args:
        x: (n, d) features.
        y: (n,) labels, 0 to classes - 1.
        l2_values: (L,) positive penalties.
        classes: C.
        tolerance: of the largest entry of the gradient of the mean loss, as `solve_path` has it.
        start: what the largest penalty is solved from.

    Returns:
        Weights (L, d, C) and biases (L, C), in the order of `l2_values` and the type of `x`.

    Raises:
        ValueError: a penalty or the tolerance is not positive, or a label out of range.
        NotConvergedError: a fit stayed above the tolerance.
    """
    return solve_path(x, Softmax(y, classes), l2_values, tolerance=tolerance, start=start)
