"""The 1,797 real 8x8 digits that scikit-learn carries (about 180 of each class; another hand than MNIST's)."""

import gzip
import hashlib
import importlib.util
import io
import zlib
from pathlib import Path

import numpy as np

from bench.data.decode import from_arrays
from bench.data.source import DataError, ImageSet
from bench.data.splits import drawn_test
from bench.options import PositiveInt

SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
SIDE = 8
CLASSES = 10
INK = 16  # the most ink of a pixel: 0 to 16 becomes 0 to 255


def read(*, side: PositiveInt, test: PositiveInt) -> ImageSet:
    """The digits at `side` x `side`; `test` of them, chosen by address, are the test split.

    Raises:
        DataError: the file is absent or its checksum is another.
    """
    path = _file()
    try:
        text = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); reinstall scikit-learn") from None
    if hashlib.sha256(text).hexdigest() != SHA256:
        raise DataError(f"{path} is damaged (its checksum is another); reinstall scikit-learn")
    numbers = np.loadtxt(io.BytesIO(text), delimiter=",").astype(np.int64)
    n = len(numbers)
    marks = drawn_test(n, test)
    images = np.rint(numbers[:, :-1] * 255 / INK).astype(np.uint8).reshape(n, SIDE, SIDE, 1)
    return ImageSet(from_arrays("digits", images, side), numbers[:, -1], marks, CLASSES)


def _file() -> Path:
    spec = importlib.util.find_spec("sklearn")  # found, not imported: importing takes seconds
    if spec is None or not spec.submodule_search_locations:
        raise DataError("scikit-learn, which carries the digits, is not installed; run `make setup`")
    return Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
