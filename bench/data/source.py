"""What a reader gives: a whole image set, in memory or mapped into it."""

from dataclasses import dataclass
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
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | NDArray[np.uint8]
    test: NDArray[np.bool_]
    classes: int
    metric: Metric = "top1"
    notes: tuple[str, ...] = ()

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
