"""What a claim may say of its levels; each predicate turns values by level and seed into evidence.

`levels` maps a label to a value for each seed, in the order of the study, with the same seeds at every level. `margin`
is in the metric's unit (a ratio for `ratio_below`). Every verdict errs in at most 5 % of experiments, either way, where
differences between levels vary normally from seed to seed.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, MinLen
from pydantic import Field

from bench.claims.evidence import Comparison, Evidence, at_least, every, single, some
from bench.errors import BenchError
from bench.registry import nearest_hint
from bench.strict import Strict

Levels = Mapping[str, Mapping[int, float]]
DECIMALS = 12  # of differences: the last bits of a subtraction are not a spread over seeds


class UntestableError(BenchError):
    """Levels that a predicate cannot judge; says why."""


class Predicate(Strict, ABC):
    """One kind of statement, with its arguments."""

    least: ClassVar[int] = 1  # levels that it needs

    @property
    @abstractmethod
    def rule(self) -> str:
        """The statement in symbols, for people."""

    @abstractmethod
    def judge(self, levels: Levels, margin: float) -> Evidence:
        """What the seeds say for and against it."""

    def named(self) -> list[str]:
        """The labels that its arguments name."""
        return []

    def bad_margin(self, margin: float) -> str:
        """What is wrong with a margin; nothing where it will do."""
        return "" if margin >= 0 else f"wants 0 or more, not {margin:g}"

    def problems(self, labels: Collection[str]) -> Iterator[str]:
        """What is wrong with its arguments beside levels of these labels, a line each."""
        for label in self.named():
            if label not in labels:
                yield f"unknown level '{label}'; {nearest_hint(label, labels)}"
        if len(labels) < self.least:
            yield f"{len(labels)} levels ({', '.join(labels)}); it needs {self.least} or more"


class _Pair(Predicate):
    """Two levels, or a level and a number."""

    left: str
    right: str | float

    def named(self) -> list[str]:
        return [self.left, *([self.right] if isinstance(self.right, str) else [])]


class Greater(_Pair):
    """Left exceeds right by more than the margin."""

    name: Literal["greater"]

    @property
    def rule(self) -> str:
        return f"{self.left} − {self.right} > margin"

    def judge(self, levels: Levels, margin: float) -> Evidence:
        return single(_difference(levels, self.left, self.right, margin))


class NotLess(_Pair):
    """Left falls short of right by less than the margin."""

    name: Literal["not_less"]

    @property
    def rule(self) -> str:
        return f"{self.left} − {self.right} > −margin"

    def judge(self, levels: Levels, margin: float) -> Evidence:
        return single(_difference(levels, self.left, self.right, -margin))


class Equivalent(_Pair):
    """Left and right differ by less than the margin, either way."""

    name: Literal["equivalent"]

    @property
    def rule(self) -> str:
        return f"|{self.left} − {self.right}| < margin"

    def judge(self, levels: Levels, margin: float) -> Evidence:
        low = single(_difference(levels, self.left, self.right, -margin))
        high = single(_difference(levels, self.left, self.right, margin, above=False))
        # no factor against it: beyond one end is 2.5 % at most, beyond either 5 %
        return Evidence(every([low, high]).favour, min(low.against, high.against, key=lambda side: side.p))

    def bad_margin(self, margin: float) -> str:
        return "" if margin > 0 else f"wants more than 0, not {margin:g}: nothing is equivalent within that"


class RatioBelow(_Pair):
    """Left divided by right is below the margin, a ratio: the geometric mean over seeds."""

    name: Literal["ratio_below"]

    @property
    def rule(self) -> str:
        return f"{self.left} / {self.right} < margin"

    def judge(self, levels: Levels, margin: float) -> Evidence:
        left = _column(levels, self.left)
        right = _column(levels, self.right) if isinstance(self.right, str) else [self.right] * len(left)
        if min(*left, *right) <= 0:
            raise UntestableError(f"a ratio wants values above 0, not {min(*left, *right):g}")
        logs = tuple(round(math.log(a) - math.log(b), DECIMALS) for a, b in zip(left, right, strict=True))
        bound = round(math.log(margin), DECIMALS)
        return single(Comparison(f"{self.left} / {self.right}", logs, bound, above=False, logarithmic=True))

    def bad_margin(self, margin: float) -> str:
        return "" if margin > 0 else f"wants a ratio above 0, not {margin:g}"


class Monotone(Predicate):
    """From first to last level more than the margin is gained, and no step loses more than `dip`."""

    name: Literal["monotone"]
    direction: Literal["rising", "falling"]
    dip: Annotated[float, Ge(0)]
    least: ClassVar[int] = 2

    @property
    def rule(self) -> str:
        return f"{self.direction}: last against first > margin, every step > −{self.dip:g}"

    def judge(self, levels: Levels, margin: float) -> Evidence:
        labels = list(levels) if self.direction == "rising" else list(levels)[::-1]
        steps = [_difference(levels, b, a, -self.dip) for a, b in itertools.pairwise(labels)]
        whole = _difference(levels, labels[-1], labels[0], margin)
        return every([single(whole), *map(single, steps)])


class InteriorMaximum(Predicate):
    """Some level between the first and the last exceeds both by more than the margin."""

    name: Literal["interior_maximum"]
    least: ClassVar[int] = 3

    @property
    def rule(self) -> str:
        return "some inner level exceeds the first and the last by more than margin"

    def judge(self, levels: Levels, margin: float) -> Evidence:
        first, *inner, last = levels
        return some([every([single(_difference(levels, i, end, margin)) for end in (first, last)]) for i in inner])


class BestAt(Predicate):
    """One level is better than every other by more than the margin."""

    name: Literal["best_at"]
    level: str
    best: Literal["highest", "lowest"]
    least: ClassVar[int] = 2

    @property
    def rule(self) -> str:
        return f"{self.level} {self.best}, by more than margin to every other"

    def named(self) -> list[str]:
        return [self.level]

    def judge(self, levels: Levels, margin: float) -> Evidence:
        others = [label for label in levels if label != self.level]
        pairs = [(self.level, o) if self.best == "highest" else (o, self.level) for o in others]
        return every([single(_difference(levels, *pair, margin)) for pair in pairs])


class CurveRises(Predicate):
    """The mean of a curve's last third exceeds that of its first third by more than the margin."""

    name: Literal["curve_rises"]
    direction: Literal["rising", "falling"]
    least: ClassVar[int] = 2

    @property
    def rule(self) -> str:
        return f"{self.direction}: last third against first third > margin"

    def judge(self, levels: Levels, margin: float) -> Evidence:
        third, labels = max(1, len(levels) // 3), list(levels)
        parts = {"first third": labels[:third], "last third": labels[-third:]}
        means = {name: _means(levels, chosen) for name, chosen in parts.items()}
        ends = list(means) if self.direction == "falling" else list(means)[::-1]
        return single(_difference(means, ends[0], ends[1], margin))


class _Each(Predicate):
    """Every level beside one level or number."""

    than: str | float

    def named(self) -> list[str]:
        return [self.than] if isinstance(self.than, str) else []

    def others(self, levels: Levels) -> list[str]:
        """The levels that are compared."""
        return [label for label in levels if label != self.than]


class WinsOnAtLeast(_Each):
    """At least `count` levels exceed `than` by more than the margin."""

    name: Literal["wins_on_at_least"]
    count: Annotated[int, Ge(1)]

    @property
    def rule(self) -> str:
        return f"{self.count} levels or more − {self.than} > margin"

    def judge(self, levels: Levels, margin: float) -> Evidence:
        parts = [single(_difference(levels, label, self.than, margin)) for label in self.others(levels)]
        return at_least(self.count, parts)

    def problems(self, labels: Collection[str]) -> Iterator[str]:
        yield from super().problems(labels)
        compared = len([label for label in labels if label != self.than])
        if self.count > compared:
            yield f"count {self.count} is more than the {compared} levels that are compared"


class AllBut(_Each):
    """Every level exceeds `than` by more than the margin, but for the exceptions, which do not."""

    name: Literal["all_but"]
    exceptions: Annotated[list[str], MinLen(1)]

    @property
    def rule(self) -> str:
        return f"every level − {self.than} > margin, but not {', '.join(self.exceptions)}"

    def named(self) -> list[str]:
        return [*super().named(), *self.exceptions]

    def judge(self, levels: Levels, margin: float) -> Evidence:
        sides = {label: label not in self.exceptions for label in self.others(levels)}
        return every([single(_difference(levels, label, self.than, margin, above=a)) for label, a in sides.items()])


AnyPredicate = Annotated[
    Greater
    | NotLess
    | Equivalent
    | RatioBelow
    | Monotone
    | InteriorMaximum
    | BestAt
    | CurveRises
    | WinsOnAtLeast
    | AllBut,
    Field(discriminator="name"),
]


def _difference(levels: Levels, left: str, right: str | float, bound: float, *, above: bool = True) -> Comparison:
    """Left minus right at each seed, beside a bound."""
    ours = _column(levels, left)
    theirs = _column(levels, right) if isinstance(right, str) else [right] * len(ours)
    values = tuple(round(a - b, DECIMALS) for a, b in zip(ours, theirs, strict=True))
    return Comparison(f"{left} − {right}", values, bound, above)


def _column(levels: Levels, label: str) -> list[float]:
    return [levels[label][seed] for seed in sorted(levels[label])]


def _means(levels: Levels, labels: Collection[str]) -> dict[int, float]:
    """By seed, the mean over some levels."""
    seeds = next(iter(levels.values())).keys()
    return {seed: math.fsum(levels[label][seed] for label in labels) / len(labels) for seed in seeds}
