"""What a claim speaks of: values by level and seed.

A metric is as `bench.claims.studies` says; of `history.NAME` a `curve` has every epoch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, MinLen

from bench.claims.predicates import UntestableError
from bench.claims.studies import Study, cells, label_of, pick, refuse_second, values_of
from bench.registry import nearest_hint
from bench.stats import kendall_tau
from bench.strict import Strict

Scalar = str | int | float | bool | None | list[Any]
Selector = dict[str, Scalar]
AGREEMENT = "tau"  # the one level of an agreement


class Level(Strict):
    """One level of a claim: the cells it takes, less those of `minus`, by `metric` where not the claim's."""

    take: Selector
    minus: Selector | None = None
    metric: str | None = None


class Quantity(Strict):
    """The levels of a claim, in one of three forms.

    Args:
        metric: what is measured.
        levels: by label, each of its own cells.
        along: a level for every value of this path of the study, in its order.
        curve: a level for every epoch of these cells' histories.
        since: with `curve`, the first epoch that counts: what a first epoch cannot know is not a rise.
        where: with `along`, what other paths are held at.
        agreement: with `along`, a second metric: one level then, Kendall's tau of the two over the study's levels.
    """

    metric: str
    levels: Annotated[dict[str, Level], MinLen(1)] | None = None
    along: str | None = None
    curve: Selector | None = None
    since: Annotated[int, Ge(1)] | None = None
    where: Selector | None = None
    agreement: str | None = None

    def problem(self) -> str:
        """What is wrong with its form; nothing where it will do."""
        forms = [name for name in ("levels", "along", "curve") if getattr(self, name) is not None]
        if len(forms) != 1:
            return f"wants one of levels, along and curve, not {' and '.join(forms) or 'none'}"
        if self.curve is None and self.since is not None:
            return f"since goes with curve, not with {forms[0]}"
        if self.along is None and (self.where is not None or self.agreement is not None):
            return f"where and agreement go with along, not with {forms[0]}"
        if self.curve is not None and not self.metric.startswith("history."):
            return f"a curve is of history.NAME, not of {self.metric}"
        return ""

    def metrics(self) -> list[str]:
        """Every metric that it reads."""
        own = [level.metric for level in (self.levels or {}).values()]
        return [*dict.fromkeys([metric for metric in own if metric] + self._shared(own))]

    def _shared(self, own: list[str | None]) -> list[str]:
        used = [] if own and all(own) else [self.metric]
        return [*used, *([self.agreement] if self.agreement else [])]

    def selectors(self, study: Study) -> dict[str, list[Selector]]:
        """By label, what picks its cells.

        Raises:
            UntestableError: `along` names no path of the study.
        """
        if self.curve is not None:
            return {"curve": [self.curve]}
        if self.levels is not None:
            return {
                label: [x for x in (level.take, level.minus) if x is not None] for label, level in self.levels.items()
            }
        found = [{**(self.where or {}), self.along or "": value} for value in values_of(study, self.along or "")]
        return {label_of(selector[self.along or ""]): [selector] for selector in found}


@dataclass(frozen=True)
class Measured:
    """Values by label and seed, and the keys of the cells they come from."""

    levels: dict[str, dict[int, float]]
    keys: tuple[str, ...]

    def common(self) -> "Measured":
        """The seeds that every level has."""
        seeds = sorted(set.intersection(*(set(values) for values in self.levels.values())))
        return Measured({label: {s: values[s] for s in seeds} for label, values in self.levels.items()}, self.keys)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the first level."""
        return tuple(next(iter(self.levels.values())))


def measure(quantity: Quantity, study: Study) -> Measured:
    """The values that a claim speaks of.

    Raises:
        UntestableError: the study lacks a level, a metric or any cell.
    """
    keys: dict[str, None] = {}
    if quantity.curve is not None:
        found = _curve(study, quantity, keys)
    elif quantity.levels is not None:
        found = {}
        for label, level in quantity.levels.items():
            parts = [
                pick(study, s, level.metric or quantity.metric, keys)
                for s in (level.take, level.minus)
                if s is not None
            ]
            found[label] = _less(*parts) if len(parts) > 1 else parts[0]
    else:
        chosen = {label: s for label, (s,) in quantity.selectors(study).items()}
        found = {label: pick(study, s, quantity.metric, keys) for label, s in chosen.items()}
        if quantity.agreement is not None:
            other = {label: pick(study, s, quantity.agreement, keys) for label, s in chosen.items()}
            found = {AGREEMENT: _agreement(found, other)}
    if not found:
        raise UntestableError(f"no epoch of {quantity.metric}")
    return Measured(found, tuple(keys))


def _curve(study: Study, quantity: Quantity, keys: dict[str, None]) -> dict[str, dict[int, float]]:
    selector, name = quantity.curve or {}, quantity.metric.partition(".")[2]
    found: dict[str, dict[int, float]] = {}
    for cell in cells(study, selector, "history"):
        for line in (line for line in cell["history"] if line["epoch"] >= (quantity.since or 1)):
            if name not in line:
                raise UntestableError(f"no metric '{quantity.metric}'; {nearest_hint(name, line)}")
            by_seed = found.setdefault(f"epoch {line['epoch']}", {})
            refuse_second(selector, cell, by_seed)
            by_seed[cell["seed"]] = float(line[name])
        keys[cell["key"]] = None
    return found


def _less(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


def _agreement(first: Mapping[str, Mapping[int, float]], second: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    """By seed, Kendall's tau of two metrics over the levels."""
    seeds = sorted(set.intersection(*(set(values) for side in (first, second) for values in side.values())))
    return {s: _tau([first[x][s] for x in first], [second[x][s] for x in first]) for s in seeds}


def _tau(first: list[float], second: list[float]) -> float:
    """Kendall's tau; 0 where one side ranks nothing, NaN where a value is not finite."""
    if not all(map(math.isfinite, first + second)):
        return math.nan
    tau = kendall_tau(first, second)
    return tau if math.isfinite(tau) else 0.0
