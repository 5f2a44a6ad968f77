"""What a reader gives: a whole image set, in memory or mapped into it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError

Metric = Literal["top1", "mean_per_class", "map11"]
METRICS: tuple[Metric, ...] = get_args(Metric)


class DataError(BenchError, ValueError):
    """Image data that is absent, damaged or malformed; says which file and how to mend it."""


@dataclass(frozen=True)
class ImageSet:
    """Images with labels; the row of an image is its id.

    Args:
        images: (n, h, w, c) uint8, c = 1 or 3.
        labels: (n,) int64, from 0 to classes - 1; for `map11` (n, classes) uint8, 1 where an image shows the class.
        test: (n,) bool, the rows of the test split.
        classes: how many classes there are.
        metric: what the set is scored by: accuracy, its mean over classes, or 11-point mean average precision.
        notes: what its users must know, such as a split that is not the published one.
        label_lists: published lists of labelled images, by the fraction of the labels that they hold: (m,) training
            rows, each once, ascending.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | NDArray[np.uint8]
    test: NDArray[np.bool_]
    classes: int
    metric: Metric = "top1"
    notes: tuple[str, ...] = ()
    label_lists: Mapping[float, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.ndim != 4 or self.images.shape[3] not in (1, 3):
            raise DataError(f"images want shape (n, h, w, 1 or 3), not {self.images.shape}")
        if self.images.dtype != np.uint8:
            raise DataError(f"images want uint8, not {self.images.dtype}")
        if self.metric not in METRICS:
            raise DataError(f"a set's metric is one of {', '.join(METRICS)}, not {self.metric}")
        shape = (n, self.classes) if self.metric == "map11" else (n,)
        if self.labels.shape != shape or self.test.shape != (n,):
            raise DataError(
                f"{n} images want as many labels and split marks, not {self.labels.shape} and {self.test.shape}"
            )
        most = 1 if self.metric == "map11" else self.classes - 1
        if n and not 0 <= self.labels.min() <= self.labels.max() <= most:
            raise DataError(f"labels want 0 to {most}, not {self.labels.min()} to {self.labels.max()}")
        for fraction, rows in self.label_lists.items():
            if not 0 < fraction <= 1:
                raise DataError(f"the fraction of a label list wants to be above 0 and at most 1, not {fraction}")
            if not len(rows) or (np.diff(rows) <= 0).any() or not np.isin(rows, np.flatnonzero(~self.test)).all():
                raise DataError(f"the label list of {fraction} wants training rows, each once and ascending")
