"""Statistics over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over `n` values and the half-width of its interval; None for a single value."""

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float:
        """Lower end; the mean itself where there is no interval."""
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        """Upper end; the mean itself where there is no interval."""
        return self.mean + (self.half or 0.0)


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's t interval of a mean (Student, Biometrika 6, 1908).

    Args:
        values: one per seed.
        level: the interval's coverage.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    if not len(values) or not np.all(np.isfinite(values)):
        raise ValueError(f"an interval wants finite values, not {list(values)}")
    n = len(values)
    mean = float(np.mean(values))
    if n == 1:
        return Interval(mean, None, 1)
    from scipy.stats import t

    half = t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return Interval(mean, float(half), n)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval:
    """Student's t interval of the mean difference over the seeds that both have.

    Methods share images' order, views and the initial encoder at a seed, so pairing takes that out.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    return t_interval([ours[seed] - theirs[seed] for seed in seeds])
