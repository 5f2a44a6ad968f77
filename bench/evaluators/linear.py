"""Linear evaluation: multinomial logistic regression on frozen features, over a path of l2 penalties.

Protocol of Kornblith et al. (1805.08974) and of NNCLR's transfer table: features of clean images, not
standardised; the penalty chosen on the validation part, then refitted on training and validation
rows together. The objective is the sum of losses + l2/2 |W|^2 (scikit-learn's C = 1/l2), the bias free.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bench.evaluators.base import EvaluationData, Result
from bench.features import Trained
from bench.options import Positive, PositiveInt

NEWTON_STEPS = 100  # of one fit, at most; some ten are usual
CG_STEPS = 1000  # of one Newton step, at most
HALVINGS = 40  # of one step, at most
SUFFICIENT = 1e-4  # Armijo's share of the decrease that the slope promises
ROUNDING = 1e-13  # of a sum of losses


class NotConvergedError(RuntimeError):
    """A fit whose gradient stayed above the tolerance."""


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
    parts = (data.train, data.validation, data.query)
    train, validation, query = (trained.features(part.images).double() for part in parts)
    path = _log_spaced(l2_low, l2_high, l2_count)
    fit = _fitter(data.classes, tolerance)
    accuracies = [0.0] * len(path)
    if len(validation) and len(path) > 1:
        weights, bias = fit(train, data.train.labels, path)
        scores = validation @ weights + bias[:, None]  # (L, v, C)
        accuracies = (scores.argmax(2) == data.validation.labels).double().mean(1).tolist()
    chosen = max(range(len(path)), key=lambda i: (accuracies[i], path[i]))
    everything = torch.cat([train, validation])
    labels = torch.cat([data.train.labels, data.validation.labels])
    # the penalty weighs against a sum over rows, so more rows want a larger one
    l2 = path[chosen] * len(everything) / len(train)
    weights, bias = fit(everything, labels, [l2])
    predicted = (query @ weights[0] + bias[0]).argmax(1)
    correct = (predicted == data.query.labels).sum().item()
    metrics = {"top1": correct / len(predicted), "l2": path[chosen], "validation": accuracies[chosen]}
    return Result(metrics, {"predicted": predicted.cpu().numpy()})


def _fitter(classes: int, tolerance: float) -> Callable[[Tensor, Tensor, Sequence[float]], tuple[Tensor, Tensor]]:
    def fit(x: Tensor, y: Tensor, path: Sequence[float]) -> tuple[Tensor, Tensor]:
        return fit_path(x, y, path, classes=classes, tolerance=tolerance)

    return fit


def _log_spaced(low: float, high: float, count: int) -> list[float]:
    """Rounded to 12 digits: the last bits of a power differ between C libraries."""
    if count == 1:
        return [low]
    return [float(f"{low * (high / low) ** (i / (count - 1)):.12g}") for i in range(count)]


def fit_path(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    l2_values: Sequence[float],
    *,
    classes: int,
    tolerance: float,
) -> tuple[Float[Tensor, "l d c"], Float[Tensor, "l c"]]:
    """Multinomial logistic regression at each penalty: sum of losses + l2/2 |W|^2, the bias free.

    A softmax over all `classes` columns, for two classes as well (scikit-learn's binary fit at l2/2). The
    penalties are solved from the largest down, each from the last one's solution, whatever the order given.
    The optimum is unique, so the solver is free to choose: truncated Newton, whose conjugate gradients take fewer
    passes over the data than L-BFGS at tight tolerances, in the features' principal axes, where a diagonal
    preconditioner serves best.

    Args:
        x: (n, d) features.
        y: (n,) labels, 0 to classes - 1.
        l2_values: (L,) positive penalties.
        classes: C.
        tolerance: of the largest entry of the gradient of the mean loss.

    Returns:
        Weights (L, d, C) and biases (L, C), in the order of `l2_values` and the type of `x`.

    Raises:
        ValueError: a penalty or the tolerance is not positive, or a label out of range.
        NotConvergedError: a fit stayed above the tolerance.
    """
    if tolerance <= 0 or any(l2 <= 0 for l2 in l2_values):
        raise ValueError(f"penalties and tolerance want positive numbers, not {list(l2_values)}, {tolerance}")
    if not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(f"labels want 0 to {classes - 1}, not {int(y.min())} to {int(y.max())}")
    n, d = x.shape
    wide = x.double()
    mean = wide.mean(0)
    _, axes = torch.linalg.eigh((wide - mean).mT @ (wide - mean))  # (d, d)
    turned = torch.cat([(wide - mean) @ axes, wide.new_ones(n, 1)], 1)  # (n, d + 1)
    theta = wide.new_zeros(d + 1, classes)
    solved = {}
    for l2 in sorted(set(l2_values), reverse=True):
        penalty = torch.cat([wide.new_full((d, 1), l2), wide.new_zeros(1, 1)])
        theta = _newton(turned, y, penalty, theta, tolerance * n)
        weights = axes @ theta[:-1]  # (d, C)
        solved[l2] = weights, theta[-1] - mean @ weights
    return (
        torch.stack([solved[l2][0] for l2 in l2_values]).to(x.dtype),
        torch.stack([solved[l2][1] for l2 in l2_values]).to(x.dtype),
    )


def _newton(
    x: Float[Tensor, "n d"], y: Int[Tensor, " n"], penalty: Float[Tensor, "d 1"], theta: Tensor, tolerance: float
) -> Float[Tensor, "d c"]:
    """Truncated Newton (Nocedal and Wright, algorithm 7.1) with conjugate gradients and backtracking."""
    rows = torch.arange(len(y), device=y.device)

    def objective(at: Tensor) -> tuple[float, Tensor]:
        logs = F.log_softmax(x @ at, 1)  # (n, C)
        return (-logs[rows, y].sum() + 0.5 * (penalty * at.square()).sum()).item(), logs

    value, logs = objective(theta)
    for _ in range(NEWTON_STEPS):
        p = logs.exp()  # (n, C)
        residual = p.clone()
        residual[rows, y] -= 1
        gradient = x.mT @ residual + penalty * theta
        largest = gradient.abs().max().item()
        if largest <= tolerance:
            return theta
        # the closer, the more exactly Newton's equation is solved: convergence becomes superlinear
        accuracy = min(0.1, (largest / len(y)) ** 0.5)
        direction = _conjugate_gradients(x, p, penalty, gradient, accuracy)
        slope, step = (gradient * direction).sum().item(), 1.0
        for _ in range(HALVINGS):
            moved, moved_logs = objective(theta + step * direction)
            # at the optimum the decrease drowns in rounding
            if moved <= value + SUFFICIENT * step * slope or abs(moved - value) <= ROUNDING * abs(value):
                break
            step /= 2
        theta, value, logs = theta + step * direction, moved, moved_logs
    raise NotConvergedError(
        f"the gradient's largest entry stayed at {largest:g}, above {tolerance:g}; raise the tolerance"
    )


def _conjugate_gradients(x: Tensor, p: Tensor, penalty: Tensor, gradient: Tensor, accuracy: float) -> Tensor:
    """Newton's direction to a relative accuracy, with the Hessian's diagonal as preconditioner.

    In single precision: the direction need not be exact, since gradient and objective are.
    """
    precise = x.dtype
    x, p, penalty, gradient = (tensor.float() for tensor in (x, p, penalty, gradient))
    across = x.mT.contiguous()  # (d, n): products with the few columns of theta on the left are faster
    diagonal = (x.square().mT @ (p * (1 - p)) + penalty).clamp_min(torch.finfo(x.dtype).tiny)
    direction, residual = torch.zeros_like(gradient), -gradient
    scaled = residual / diagonal
    search, size = scaled, (residual * scaled).sum()
    wanted = accuracy**2 * size
    for _ in range(CG_STEPS):
        turned = p * (search.mT @ across).mT
        pulled = turned - p * turned.sum(1, keepdim=True)  # (n, C)
        curved = (pulled.mT @ x).mT + penalty * search  # the Hessian times search
        length = size / (search * curved).sum()
        direction = direction + length * search
        residual = residual - length * curved
        scaled = residual / diagonal
        smaller = (residual * scaled).sum()
        if smaller <= wanted:
            break
        search, size = scaled + (smaller / size) * search, smaller
    return direction.to(precise)
