"""Which rows of an image set are for what, by address; the same for every method and seed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.data.source import DataError, ImageSet
from bench.random import permutation

SEED = 0  # splits belong to the data set: no cell's seed moves them


@dataclass(frozen=True)
class Split:
    """Rows of an image set, each sorted.

    Args:
        train: (n,) what encoders train on, after `fraction`.
        labelled: (m,) all training rows but the validation part.
        validation: (v,) the part of the training rows on which choices are made.
        test: (t,) read once, by the tables' seeds.
    """

    train: NDArray[np.int64]
    labelled: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]

    def inner(self, count: int) -> NDArray[np.int64]:
        """(count,) of the labelled rows, by address, for choices made while settings are tuned."""
        return np.sort(self.labelled[permutation(SEED, "inner", self.labelled)][:count])


def drawn_test(rows: int, test: int) -> NDArray[np.bool_]:
    """(rows,) marks of the test rows of digits that come without a split, by address.

    Fewer test rows lie inside more.

    Raises:
        DataError: no row is left to train on.
    """
    if test >= rows:
        raise DataError(f"datasets: test wants fewer than the {rows} digits, not {test}")
    marks = np.zeros(rows, dtype=bool)
    marks[permutation(SEED, "split", np.arange(rows))[rows - test :]] = True
    return marks


def split(images: ImageSet, *, validation: float, fraction: float) -> Split:
    """Cut an image set.

    Args:
        images: the set, with its test rows marked.
        validation: share of the training rows held out for choices.
        fraction: share of the rest that encoders see; smaller shares lie inside larger ones.

    Raises:
        DataError: no row is left to train on.
    """
    ids = np.flatnonzero(~images.test)
    order = ids[permutation(SEED, "validation", ids)]
    held_out = round(validation * len(ids))
    labelled = np.sort(order[held_out:])
    shuffled = labelled[permutation(SEED, "fraction", labelled)]
    train = np.sort(shuffled[: round(fraction * len(labelled))])
    if len(train) == 0:
        raise DataError(f"data: validation {validation} and fraction {fraction} leave none of {len(ids)} rows")
    return Split(train, labelled, np.sort(order[:held_out]), np.flatnonzero(images.test))
