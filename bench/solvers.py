"""Linear models over a path of l2 penalties: a truncated Newton method for any smooth convex loss of rows.

The objective is the sum over rows of a loss of the row's scores x W + b, + l2/2 |W|^2 (scikit-learn's and LIBLINEAR's
C = 1/l2), the bias free. The scores' optimum is unique (but for a constant in a softmax), so the solver is free to
choose: truncated Newton (Nocedal and Wright, Numerical Optimization, algorithm 7.1), whose conjugate gradients take
fewer passes over the data than L-BFGS at tight tolerances, in the features' principal axes, where a diagonal
preconditioner serves best.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bench.products import rows_by_rows

RANK = 1e-12  # share of the largest variance below which a direction holds round-off only
NEWTON_STEPS = 100  # of one fit, at most; some ten are usual
CG_STEPS = 1000  # of one Newton step, at most
HALVINGS = 40  # of one step, at most
SUFFICIENT = 1e-4  # Armijo's share of the decrease that the slope promises
ROUNDING = 1e-13  # of a sum of losses
UNMOVED = 1e-3  # of the tolerance: a start so near the optimum is left as it is

Start = tuple[Float[Tensor, "d c"], Float[Tensor, " c"]]
"""Weights and bias that a fit begins with."""


class NotConvergedError(RuntimeError):
    """A fit whose gradient stayed above the tolerance."""


class RowLoss(ABC):
    """A sum over rows of a convex loss of each row's C scores, with its derivatives by those scores."""

    rows: int
    columns: int

    @abstractmethod
    def total(self, scores: Float[Tensor, "n c"]) -> tuple[Float[Tensor, ""], Tensor]:
        """The sum, and the (n, C) from which `slopes` follow."""

    @abstractmethod
    def slopes(self, state: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        """First derivatives (n, C), and the (n, C) that tells the second ones, in any precision."""

    @abstractmethod
    def diagonal(self, second: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Second derivatives by each score alone."""

    @abstractmethod
    def curve(self, second: Float[Tensor, "n c"], change: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Each row's (C, C) second derivatives, times a change of its scores."""


class Softmax(RowLoss):
    """Multinomial logistic regression: -log softmax(scores)_y.

    Args:
        y: (n,) labels, 0 to classes - 1.
        classes: C.

    Raises:
        ValueError: a label out of range.
    """

    def __init__(self, y: Int[Tensor, " n"], classes: int):
        check_labels(y, classes)
        self.y, self.rows, self.columns = y, len(y), classes
        self.row = torch.arange(len(y), device=y.device)

    def total(self, scores: Float[Tensor, "n c"]) -> tuple[Float[Tensor, ""], Tensor]:
        logs = F.log_softmax(scores, 1)  # (n, C)
        return -logs[self.row, self.y].sum(), logs

    def slopes(self, state: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        p = state.exp()  # (n, C)
        residual = p.clone()
        residual[self.row, self.y] -= 1
        return residual, p

    def diagonal(self, second: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return second * (1 - second)

    def curve(self, second: Float[Tensor, "n c"], change: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        weighted = second * change
        return weighted - second * weighted.sum(1, keepdim=True)


class OneVersusRest(RowLoss):
    """A loss for each score alone: C two-class problems at once, the columns independent.

    Args:
        targets: (n, C), 1 where a row is of the class and 0 where not; of any number of classes, or none.

    Raises:
        ValueError: another target.
    """

    def __init__(self, targets: Tensor):
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise ValueError("targets want 0 or 1")
        self.targets = targets.double()
        self.signs = 2 * self.targets - 1  # (n, C)
        self.rows, self.columns = targets.shape

    def diagonal(self, second: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return second

    def curve(self, second: Float[Tensor, "n c"], change: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return second * change


class SquaredHinge(OneVersusRest):
    """Linear SVM: max(0, 1 - sign score)^2 (LIBLINEAR, Fan et al., JMLR 9, 2008: L2-loss SVC, the primal problem)."""

    def total(self, scores: Float[Tensor, "n c"]) -> tuple[Float[Tensor, ""], Tensor]:
        short = (1 - self.signs * scores).clamp_min(0)  # (n, C): of the margin
        return short.square().sum(), short

    def slopes(self, state: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        # the second derivative jumps at the margin; either side's serves (a generalised Hessian)
        return -2 * self.signs * state, 2 * (state > 0).to(state.dtype)


class BinaryLogistic(OneVersusRest):
    """Logistic regression for each class: -log sigmoid(sign score)."""

    def total(self, scores: Float[Tensor, "n c"]) -> tuple[Float[Tensor, ""], Tensor]:
        return -F.logsigmoid(self.signs * scores).sum(), scores

    def slopes(self, state: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        p = state.sigmoid()  # (n, C)
        return -self.signs * (-self.signs * state).sigmoid(), p * (1 - p)


def check_labels(y: Int[Tensor, " n"], classes: int) -> None:
    """Refuse labels out of range.

    Raises:
        ValueError: a label is not 0 to classes - 1.
    """
    if not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(f"labels want 0 to {classes - 1}, not {int(y.min())} to {int(y.max())}")


@dataclass(frozen=True)
class _Design:
    """Centred features with a column of ones, in their principal axes: what a fit multiplies by.

    Sums and their gradients go through the features themselves, in double precision. Newton's direction need not be
    exact: for it the features are turned, in single precision.
    """

    centred: Float[Tensor, "n d"]
    axes: Float[Tensor, "d r"]
    turned: Float[Tensor, "n r1"]  # single precision, with the ones
    across: Float[Tensor, "r1 n"]  # the same, transposed
    squares: Float[Tensor, "r1 n"]

    @classmethod
    def of(cls, centred: Float[Tensor, "n d"]) -> Self:
        axes = _principal_axes(centred)
        turned = rows_by_rows(centred.float(), axes.mT.float())
        turned = torch.cat([turned, turned.new_ones(len(turned), 1)], 1)
        across = turned.mT.contiguous()
        return cls(centred, axes, turned, across, across.square())

    def scores(self, theta: Float[Tensor, "r1 c"]) -> Float[Tensor, "n c"]:
        return ((self.axes @ theta[:-1]).mT @ self.centred.mT).mT + theta[-1]  # in this order twice as fast

    def gradient(self, slopes: Float[Tensor, "n c"]) -> Float[Tensor, "r1 c"]:
        """Of a sum over rows, from its derivatives by each row's scores."""
        return torch.cat([self.axes.mT @ (self.centred.mT @ slopes), slopes.sum(0, keepdim=True)])


def solve_path(
    x: Float[Tensor, "n d"],
    loss: RowLoss,
    l2_values: Sequence[float],
    *,
    tolerance: float,
    start: Start | None = None,
) -> tuple[Float[Tensor, "l d c"], Float[Tensor, "l c"]]:
    """Minimise the sum of losses + l2/2 |W|^2 at each penalty, the bias free.

    The penalties are solved from the largest down, each from the last one's solution, whatever the order given.

    Args:
        x: (n, d) features.
        loss: of the rows' scores.
        l2_values: (L,) positive penalties.
        tolerance: of the largest entry of the gradient of the mean loss, in the principal axes of the centred features;
            times their root mean square where that is below 1, or the fit of small features would stop at its start.
        start: what the largest penalty is solved from, such as the solution of nearly the same rows; zeros unless told.
            It is moved by one step at least, however loose the tolerance.

    Returns:
        Weights (L, d, C) and biases (L, C), in the order of `l2_values` and the type of `x`.

    Raises:
        ValueError: a penalty or the tolerance is not positive, a feature not finite, or the rows differ in number.
        NotConvergedError: a fit stayed above the tolerance.
    """
    _check(x, loss, l2_values, tolerance)
    wide = x.double()
    mean = wide.mean(0)
    design = _Design.of(wide - mean)
    axes = design.axes
    small = min(1.0, math.sqrt(design.centred.square().mean().item())) or 1.0
    theta = wide.new_zeros(axes.shape[1] + 1, loss.columns)
    if start is not None:
        weights, bias = (each.to(wide) for each in start)
        theta = torch.cat([axes.mT @ weights, (bias + mean @ weights)[None]])
    unmoved = UNMOVED if start is not None else 1.0
    solved = {}
    for l2 in sorted(set(l2_values), reverse=True):
        penalty = torch.cat([wide.new_full((axes.shape[1], 1), l2), wide.new_zeros(1, 1)])
        theta = _newton(design, loss, penalty, theta, tolerance * small * len(x), unmoved)
        unmoved = 1.0
        weights = axes @ theta[:-1]  # (d, C)
        solved[l2] = weights, theta[-1] - mean @ weights
    weights, biases = (torch.stack([solved[l2][i] for l2 in l2_values]).to(x.dtype) for i in (0, 1))
    return weights, biases


def _principal_axes(centred: Float[Tensor, "n d"]) -> Float[Tensor, "d r"]:
    """Orthonormal axes of the rows: all d of them or, of fewer rows than that, those along which rows differ.

    No minimiser has weights across those: they would cost and change no score.
    """
    n, d = centred.shape
    if d <= n:  # any orthonormal axes serve: of covariances in single precision they are not less orthonormal
        scale = centred.abs().max().clamp_min(torch.finfo(centred.dtype).tiny)
        columns = (centred / scale).float().mT.contiguous()
        return torch.linalg.eigh(rows_by_rows(columns, columns).double()).eigenvectors
    values, vectors = torch.linalg.eigh(centred @ centred.mT)  # rising
    there = values > RANK * values[-1].clamp_min(torch.finfo(values.dtype).tiny)
    return centred.mT @ (vectors[:, there] * values[there].rsqrt())


def _check(x: Tensor, loss: RowLoss, l2_values: Sequence[float], tolerance: float) -> None:
    if tolerance <= 0 or any(l2 <= 0 for l2 in l2_values):
        raise ValueError(f"penalties and tolerance want positive numbers, not {list(l2_values)}, {tolerance}")
    if len(x) != loss.rows:
        raise ValueError(f"{len(x)} rows of features want as many labels, not {loss.rows}")
    if not bool(x.isfinite().all()):
        raise ValueError("features hold values that are not finite")


def _newton(
    design: _Design, loss: RowLoss, penalty: Float[Tensor, "r1 1"], theta: Tensor, tolerance: float, unmoved: float
) -> Float[Tensor, "r1 c"]:
    """Truncated Newton with conjugate gradients and backtracking.

    The start itself will do at a share `unmoved` of the tolerance.
    """

    def objective(at: Tensor) -> tuple[float, Tensor]:
        total, state = loss.total(design.scores(at))
        return (total + 0.5 * (penalty * at.square()).sum()).item(), state

    value, state = objective(theta)
    for moves in range(NEWTON_STEPS):
        slopes, second = loss.slopes(state)  # (n, C)
        gradient = design.gradient(slopes) + penalty * theta
        largest = gradient.abs().max().item()
        if largest <= tolerance * (1.0 if moves else unmoved):
            return theta
        # the closer, the more exactly Newton's equation is solved: convergence becomes superlinear
        accuracy = min(0.1, math.sqrt(largest / loss.rows))
        direction = _conjugate_gradients(design, (loss, second), penalty, gradient, accuracy)
        slope, step = (gradient * direction).sum().item(), 1.0
        for _ in range(HALVINGS):
            moved, moved_state = objective(theta + step * direction)
            # at the optimum the decrease drowns in rounding
            if moved <= value + SUFFICIENT * step * slope or abs(moved - value) <= ROUNDING * abs(value):
                break
            step /= 2
        theta, value, state = theta + step * direction, moved, moved_state
    raise NotConvergedError(
        f"the gradient's largest entry stayed at {largest:g}, above {tolerance:g}; raise the tolerance"
    )


def _conjugate_gradients(
    design: _Design, bend: tuple[RowLoss, Tensor], penalty: Tensor, gradient: Tensor, accuracy: float
) -> Tensor:
    """Newton's direction to a relative accuracy, with the Hessian's diagonal as preconditioner.

    In single precision: the direction need not be exact, since gradient and objective are.
    """
    precise, loss = gradient.dtype, bend[0]
    second, penalty, gradient = (tensor.float() for tensor in (bend[1], penalty, gradient))
    diagonal = rows_by_rows(design.squares, loss.diagonal(second).mT) + penalty
    diagonal = diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny)
    direction, residual = torch.zeros_like(gradient), -gradient
    scaled = residual / diagonal
    search, size = scaled, (residual * scaled).sum()
    wanted = accuracy**2 * size
    for _ in range(CG_STEPS):
        bent = loss.curve(second, rows_by_rows(design.turned, search.mT))  # (n, C)
        curved = rows_by_rows(design.across, bent.mT) + penalty * search  # the Hessian times search
        length = size / (search * curved).sum()
        direction = direction + length * search
        residual = residual - length * curved
        scaled = residual / diagonal
        smaller = (residual * scaled).sum()
        if smaller <= wanted:
            break
        search, size = scaled + (smaller / size) * search, smaller
    return direction.to(precise)
