"""Some classes of the embedded MNIST digits, numbered from 0: for encoders judged on classes they never saw."""

from bench.data.readers import embedded_mnist
from bench.data.source import DataError, ImageSet
from bench.options import Annotated, AtMost, NonNegativeInt, PositiveInt


def read(*, first: Annotated[NonNegativeInt, AtMost("last")], last: NonNegativeInt, test: PositiveInt) -> ImageSet:
    """The digits from `first` to `last`, labelled 0 to last - first.

    The test rows are those of `embedded_mnist` with the same `test` that are of these classes.

    Raises:
        DataError: no such classes.
    """
    if not first < last < embedded_mnist.CLASSES:
        raise DataError(f"datasets: first and last want 0 <= first < last <= 9, not {first} and {last}")
    whole = embedded_mnist.read(test=test)
    chosen = (whole.labels >= first) & (whole.labels <= last)
    return ImageSet(
        images=whole.images[chosen],
        labels=whole.labels[chosen] - first,
        test=whole.test[chosen],
        classes=last - first + 1,
    )
