"""What a row of the results is: something of ours, what it is measured against, and what is wanted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Target:
    """What is wanted.

    Args:
        kind: "faster": theirs / ours is at least the number; "overhead": ours / theirs is at most it; "limit": ours
            itself is at most it.
        number: the bound; None asks for nothing.
    """

    kind: Literal["faster", "overhead", "limit"]
    number: float | None


@dataclass(frozen=True)
class Measured:
    """Medians of `n` repeats, in the row's unit, and what a reader must know of how they came about."""

    ours: float
    theirs: float | None
    n: int
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A row.

    Args:
        name: for the command line.
        what: of ours.
        against: the peer, or the limit.
        unit: of both numbers.
        target: what is wanted.
        measure: does it; ImportError where the peer is not there.
        default: whether a run that names no row has it.
        tried: what was done about it; shown where the row falls short.
    """

    name: str
    what: str
    against: str
    unit: str
    target: Target
    measure: Callable[[], Measured]
    default: bool = True
    tried: str = ""

    @property
    def wanted(self) -> str:
        """The target in words."""
        number, kind = self.target.number, self.target.kind
        if number is None:
            return "none"
        return {
            "faster": f"at least {number:g}x",
            "overhead": f"at most {number:g}x",
            "limit": f"at most {number:g} {self.unit}",
        }[kind]

    def ratio(self, measured: Measured) -> float | None:
        """Theirs over ours, or for an overhead ours over theirs; None where there is no peer."""
        if measured.theirs is None:
            return None
        if self.target.kind == "overhead":
            return measured.ours / measured.theirs
        return measured.theirs / measured.ours

    def verdict(self, measured: Measured) -> str:
        """Whether the target is reached."""
        number, ratio = self.target.number, self.ratio(measured)
        if number is None:
            return "no target"
        if self.target.kind == "limit":
            reached = measured.ours <= number
        else:
            assert ratio is not None
            reached = ratio >= number if self.target.kind == "faster" else ratio <= number
        return "reached" if reached else "falls short"


def faster(number: float) -> Target:
    """At least so many times as fast as the peer."""
    return Target("faster", number)


def overhead(number: float) -> Target:
    """At most so many times what the peer takes."""
    return Target("overhead", number)


def limit(number: float | None) -> Target:
    """At most so much, whatever others take."""
    return Target("limit", number)
