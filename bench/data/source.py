"""What a reader gives: a whole image set in memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError


class DataError(BenchError, ValueError):
    """Image data that is absent, damaged or malformed; says which file and how to mend it."""


@dataclass(frozen=True)
class ImageSet:
    """Images with labels; the row of an image is its id.

    Args:
        images: (n, h, w, c) uint8, c = 1 or 3.
        labels: (n,) int64, from 0 to classes - 1.
        test: (n,) bool, the rows of the test split.
        classes: how many classes there are.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    test: NDArray[np.bool_]
    classes: int

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.ndim != 4 or self.images.shape[3] not in (1, 3):
            raise DataError(f"images want shape (n, h, w, 1 or 3), not {self.images.shape}")
        if self.images.dtype != np.uint8:
            raise DataError(f"images want uint8, not {self.images.dtype}")
        if self.labels.shape != (n,) or self.test.shape != (n,):
            raise DataError(
                f"{n} images want as many labels and split marks, not {self.labels.shape} and {self.test.shape}"
            )
        if n and not 0 <= self.labels.min() <= self.labels.max() < self.classes:
            raise DataError(f"labels want 0 to {self.classes - 1}, not {self.labels.min()} to {self.labels.max()}")
