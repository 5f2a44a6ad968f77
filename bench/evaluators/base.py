"""What evaluators take and give."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Labelled:
    """Images with labels.

    Args:
        images: (n, h, w, c) uint8.
        labels: (n,) classes, or (n, classes) of zeros and ones where an image may carry several.
        ids: (n,) rows of the unsplit source, which address random numbers; 0 to n - 1 unless given.
    """

    images: UInt8[Tensor, "n h w c"]
    labels: Tensor
    ids: Int[Tensor, " n"] = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.ids is None:
            object.__setattr__(self, "ids", torch.arange(len(self.images)))


@dataclass(frozen=True)
class EvaluationData:
    """What an evaluation may see.

    Args:
        train: what is fitted on.
        validation: what choices are made on.
        query: what is scored; a table's seeds alone read the test split here.
        classes: how many there are.
        metric: the set's own: top1, mean_per_class or map11.
        targets: further image sets that the protocol names.
        label_lists: published lists of labelled images, by fraction: (m,) ids.
    """

    train: Labelled
    validation: Labelled
    query: Labelled
    classes: int
    metric: str = "top1"
    targets: Mapping[str, "EvaluationData"] = field(default_factory=dict)
    label_lists: Mapping[float, NDArray[np.int64]] = field(default_factory=dict)

    @cached_property
    def fitted(self) -> Labelled:
        """Training and validation rows together: what a final classifier is fitted on, and the bank of neighbours."""
        both = (self.train, self.validation)
        return Labelled(*(torch.cat([getattr(part, name) for part in both]) for name in ("images", "labels", "ids")))


def top1(predicted: Int[Tensor, " q"], labels: Int[Tensor, " q"]) -> float:
    """Share of predictions that are right."""
    return (predicted == labels).sum().item() / len(labels)


@dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Args:
        metrics: numbers by name; the first is the protocol's headline.
        arrays: what exhibits draw, such as per-image predictions.
    """

    metrics: dict[str, float]
    arrays: dict[str, NDArray[np.generic]] = field(default_factory=dict)
