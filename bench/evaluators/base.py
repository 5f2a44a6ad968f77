"""What evaluators take and give."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Labelled:
    """Images (n, h, w, c) uint8 with labels (n,)."""

    images: UInt8[Tensor, "n h w c"]
    labels: Tensor


@dataclass(frozen=True)
class EvaluationData:
    """What an evaluation may see.

    Args:
        train: what is fitted on.
        validation: what choices are made on.
        query: what is scored; a table's seeds alone read the test split here.
        classes: how many there are.
    """

    train: Labelled
    validation: Labelled
    query: Labelled
    classes: int


@dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Args:
        metrics: numbers by name; the first is the protocol's headline.
        arrays: what exhibits draw, such as per-image predictions.
    """

    metrics: dict[str, float]
    arrays: dict[str, NDArray[np.generic]] = field(default_factory=dict)
