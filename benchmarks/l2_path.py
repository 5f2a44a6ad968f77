"""Logistic regression over a path of penalties, converged, against scikit-learn one penalty at a time."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.evaluators.linear import fit_path
from bench.evaluators.penalties import log_spaced
from bench.say import say
from benchmarks.rows import Measured, Row, faster

PATH = log_spaced(1e-6, 1e5, 45)
DIM = 512
THEIR_TOLERANCE = 1e-4  # of the largest entry of the mean loss's gradient; ours is what makes the objectives agree


@dataclass(frozen=True)
class Problem:
    """Rows and classes; every which penalty ours and theirs are fitted at."""

    rows: int
    classes: int
    every: int
    theirs_every: int
    tolerance: float = THEIR_TOLERANCE

    @property
    def name(self) -> str:
        """For the command line."""
        return f"path-{self.rows // 1000}k-{self.classes}"


PROBLEMS = [
    Problem(5000, 10, 1, 4),
    Problem(5000, 100, 4, 11, 1e-5),  # classes that can be told apart: a loss near 0
    Problem(50_000, 10, 4, 22),
    Problem(50_000, 100, 22, 44),
]


def features(rows: int, dim: int, classes: int) -> tuple[Tensor, Tensor]:
    """Features (n, d) as after a ReLU, correlated; labels (n,) that they do not tell exactly."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    hidden = normal(rows, 64)
    x = (hidden @ normal(64, dim) / 8 + 0.5 * normal(rows, dim)).relu()
    y = (hidden @ normal(64, classes) / 2 + 3 * normal(rows, classes)).argmax(1)
    y[:classes] = torch.arange(classes)  # each is there
    return x, y


def objective(x: Tensor, y: Tensor, weights: Tensor, bias: Tensor, l2: float) -> float:
    """The sum of losses + l2/2 |W|^2."""
    losses = torch.nn.functional.cross_entropy(x @ weights + bias, y, reduction="sum")
    return (losses + l2 / 2 * weights.square().sum()).item()


def ours(
    x: Tensor, y: Tensor, classes: int, path: Sequence[float], tolerance: float = THEIR_TOLERANCE
) -> tuple[float, list[float]]:
    """Seconds, and the objective at each penalty."""
    start = time.perf_counter()
    weights, biases = fit_path(x, y, path, classes=classes, tolerance=tolerance)
    spent = time.perf_counter() - start
    return spent, [objective(x, y, w, b, l2) for w, b, l2 in zip(weights, biases, path, strict=True)]


def theirs(x: Tensor, y: Tensor, l2: float) -> tuple[float, float]:
    """Seconds and the objective of scikit-learn at one penalty."""
    from sklearn.linear_model import LogisticRegression

    data, labels = x.numpy(), y.numpy()
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so where max_iter is reached: the objective shows what that costs
        fit = LogisticRegression(C=1 / l2, tol=THEIR_TOLERANCE, max_iter=5000).fit(data, labels)
    spent = time.perf_counter() - start
    return spent, objective(x, y, torch.from_numpy(fit.coef_.T), torch.from_numpy(fit.intercept_), l2)


def measure(problem: Problem) -> Measured:
    """Seconds of our penalties; theirs are the mean of the penalties that it was fitted at, times as many as ours."""
    x, y = features(problem.rows, DIM, problem.classes)
    path = PATH[:: problem.every]
    mine, objectives = ours(x, y, problem.classes, path, problem.tolerance)
    say(f"    ours: {len(path)} penalties in {mine:.1f} s")
    fitted = PATH[:: problem.theirs_every]
    found = []
    for l2 in fitted:
        found.append(theirs(x, y, l2))
        say(f"    theirs: {l2:g} in {found[-1][0]:.1f} s")
    known = dict(zip(path, objectives, strict=True))
    apart = [(value - known[l2]) / len(x) for (_, value), l2 in zip(found, fitted, strict=True) if l2 in known]
    scaled = float(np.mean([spent for spent, _ in found])) * len(path)
    note = (
        f"ours at {len(path)} of the 45 penalties, tolerance {problem.tolerance:g}; theirs at "
        f"{len(fitted)} of them, tolerance {THEIR_TOLERANCE:g}, scaled to as many; "
        f"their objective less ours, for a row: {min(apart):+.1e} to "
        f"{max(apart):+.1e}"
    )
    return Measured(mine, scaled, 1, note)


TRIED = (
    "products through oneDNN, which serves portable numerics only; where ours has a finer tolerance than theirs, it is "
    "for objectives that agree"
)


def _row(problem: Problem) -> Row:
    what = f"l2 path of logistic regression, {problem.rows:,} x {DIM}, {problem.classes} classes"
    peer = "scikit-learn LogisticRegression, one by one"
    default = problem != PROBLEMS[-1]
    return Row(problem.name, what, peer, "s", faster(3), lambda: measure(problem), default, TRIED)


ROWS = [_row(problem) for problem in PROBLEMS]
