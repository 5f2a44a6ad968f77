"""Two numpy archives, of the training and of the test images."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.data.prepared import data_root
from bench.data.source import DataError, ImageSet

NAMES = {"images": ("images", "x", "data"), "labels": ("labels", "y", "targets")}


def read(*, train: str, test: str) -> ImageSet:
    """The images of both archives, the training images first.

    An archive holds `images` (or `x`, `data`): (n, h, w), (n, h, w, 1) or (n, h, w, 3) uint8; and `labels` (or `y`,
    `targets`): (n,) whole numbers from 0. The classes are those of the training labels.

    Args:
        train: an .npz file below the data root, or absolute.
        test: another.

    Raises:
        DataError: a file is absent or damaged, or an array is missing or malformed; names both.
    """
    paths = [data_root() / name for name in (train, test)]
    parts = [_part(path) for path in paths]
    (images, labels), (test_images, test_labels) = parts
    if images.shape[1:] != test_images.shape[1:]:
        raise DataError(f"{paths[1]}: images are {test_images.shape[1:]}, those of {paths[0]} are {images.shape[1:]}")
    classes = int(labels.max()) + 1
    if len(test_labels) and test_labels.max() >= classes:
        raise DataError(f"{paths[1]}: label {test_labels.max()} is of no class of {paths[0]}, 0 to {classes - 1}")
    return ImageSet(
        images=np.concatenate([images, test_images]),
        labels=np.concatenate([labels, test_labels]),
        test=np.repeat([False, True], [len(images), len(test_images)]),
        classes=classes,
    )


def _part(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        with path.open("rb") as file, np.load(file) as archive:
            images, labels = (_array(path, archive, kind) for kind in NAMES)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; put it there, or change the data set's options") from None
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as an .npz file ({error}); fetch it again") from None
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(f"{path}: images want (n, h, w), (n, h, w, 1 or 3) uint8, not {images.shape} {images.dtype}")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {len(images)} images want labels of shape ({len(images)},), whole numbers, not "
            f"{labels.shape} {labels.dtype}"
        )
    if len(labels) and labels.min() < 0:
        raise DataError(f"{path}: label {labels.min()} is below 0")
    if not len(labels):
        raise DataError(f"{path}: holds no image")
    return images, labels.astype(np.int64)


def _array(path: Path, archive: Mapping[str, Any], kind: str) -> NDArray[Any]:
    found = [name for name in NAMES[kind] if name in archive]
    if len(found) != 1:
        raise DataError(
            f"{path}: {kind} want one array of the name {' or '.join(NAMES[kind])}; it holds {', '.join(archive)}"
        )
    array: NDArray[Any] = archive[found[0]]
    return array
