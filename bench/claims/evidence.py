"""What seeds say for and against a claim: one comparison, or at least m of n of them.

A comparison says that the mean over seeds of some difference lies above (or below) a bound. It carries a p for the
claim and a p against it, both one-sided t tests at that bound, so that either errs in at most 2.5 % of experiments
where a verdict needs p <= 0.025: a 95 % interval wholly beyond the bound.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.stats import LEVEL, detectable, p_above, t_interval

ERROR = (1 - LEVEL) / 2  # of either side


@dataclass(frozen=True)
class Comparison:
    """The mean of `values` is above `bound`; below it where `above` is False.

    Args:
        name: what is compared, for people.
        values: one per seed.
        bound: in the unit of `values`.
        above: which side of the bound the claim is on.
        logarithmic: values and bound are natural logarithms of ratios, which are shown.
    """

    name: str
    values: tuple[float, ...]
    bound: float
    above: bool = True
    logarithmic: bool = False

    def p(self, *, for_claim: bool) -> float:
        """One-sided p that the mean is on the claim's side of the bound, or on the other."""
        if self.above is for_claim:
            return p_above(self.values, self.bound)
        return p_above([-value for value in self.values], -self.bound)

    def shown(self, level: float) -> tuple[float, float, float]:
        """Estimate, low and high end of its t interval: a difference, or a ratio."""
        found = t_interval(self.values, level)
        scale = math.exp if self.logarithmic else float
        return scale(found.mean), scale(found.low), scale(found.high)

    def detectable(self, level: float) -> float | None:
        """The smallest distance from the bound that so many seeds would find; a ratio of ratios if `logarithmic`."""
        found = detectable(self.values, level)
        return math.exp(found) if self.logarithmic and found is not None else found


@dataclass(frozen=True)
class Side:
    """One side's p, times `tests` for having had as many chances, and the comparison that decides it."""

    p: float
    decides: Comparison
    tests: int = 1

    @property
    def level(self) -> float:
        """The coverage of the interval that lies wholly on this side exactly where p <= 0.025."""
        return 1 - (1 - LEVEL) / self.tests

    def among(self, tests: int) -> "Side":
        """The same with Bonferroni's factor."""
        return Side(min(1.0, tests * self.p), self.decides, tests * self.tests)


@dataclass(frozen=True)
class Evidence:
    """For a claim and against it."""

    favour: Side
    against: Side

    @property
    def p(self) -> float:
        """Two-sided: of the side that is surer."""
        return min(1.0, 2 * self.surer.p)

    @property
    def surer(self) -> Side:
        """The side of the smaller p."""
        return min(self.favour, self.against, key=lambda side: side.p)

    @property
    def verdict(self) -> Literal["reproduced", "contradicted", "inconclusive"]:
        """What the interval says, before any correction for other claims."""
        if self.favour.p <= ERROR:
            return "reproduced"
        return "contradicted" if self.against.p <= ERROR else "inconclusive"


def single(comparison: Comparison) -> Evidence:
    """The evidence of one comparison."""
    sides = (Side(comparison.p(for_claim=which), comparison) for which in (True, False))
    return Evidence(*sides)


def at_least(m: int, parts: Sequence[Evidence]) -> Evidence:
    """That at least m of n parts hold: the partial conjunction of Benjamini and Heller (Biometrics 64, 2008).

    For it stands the m-th smallest p, times n - m + 1. It fails where n - m + 1 parts fail, so against it stands the
    (n - m + 1)-th smallest p against, times m. m = n is the intersection-union test (Berger, Technometrics 24, 1982)
    whose failure is shown by any part, after Bonferroni; m = 1 is the reverse. Parts may depend on each other.
    """
    n = len(parts)
    favour = sorted((part.favour for part in parts), key=lambda side: side.p)[m - 1].among(n - m + 1)
    against = sorted((part.against for part in parts), key=lambda side: side.p)[n - m].among(m)
    return Evidence(favour, against)


def every(parts: Sequence[Evidence]) -> Evidence:
    """That all parts hold."""
    return at_least(len(parts), parts)


def some(parts: Sequence[Evidence]) -> Evidence:
    """That one part or more holds."""
    return at_least(1, parts)
