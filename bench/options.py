"""Types for the options of methods, encoders and evaluators, with their bounds.

A constructor writes them as annotations (`temperature: Positive`); the plan reads those from the
source, without importing torch, and refuses a value outside them before any work starts.
"""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, Len, MinLen

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]


class AtMost:
    """Marks an option that may not exceed another one, by name."""

    def __init__(self, other: str):
        self.other = other


class AsManyAs:
    """Marks a list that has as many entries as another one, by name."""

    def __init__(self, other: str):
        self.other = other


class Ordered:
    """Marks a pair of numbers of which the first is positive and at most the second."""


class Distinct:
    """Marks a list that holds nothing twice."""


class AtMostTrainingRows:
    """Marks a count that may not exceed the rows that the encoder trains on."""


class AtMostRows:
    """Marks a list of counts none of which may exceed the rows that a protocol can choose from."""


class NamesDataSets:
    """Marks a list of names, each of which stands under `datasets`."""


DataSets = Annotated[list[str], MinLen(1), NamesDataSets()]
TrainingRowCount = Annotated[int, Gt(0), AtMostTrainingRows()]
Head = Literal["none", "linear", "mlp"]  # of a projection
Places = Annotated[list[Literal["h", "z"]], MinLen(1)]  # where features are taken
Shares = Annotated[list[Annotated[float, Interval(gt=0, le=1)]], MinLen(1), Distinct()]
Range = Annotated[list[Positive], Len(2, 2), Ordered()]  # lowest and highest
RowCounts = Annotated[list[PositiveInt], MinLen(1), AtMostRows()]

__all__ = [
    "Annotated",
    "AsManyAs",
    "AtMost",
    "AtMostRows",
    "AtMostTrainingRows",
    "DataSets",
    "Distinct",
    "Fraction",
    "Head",
    "Literal",
    "NamesDataSets",
    "NonNegative",
    "NonNegativeInt",
    "Ordered",
    "Places",
    "Positive",
    "PositiveInt",
    "Range",
    "RowCounts",
    "Shares",
    "TrainingRowCount",
]
