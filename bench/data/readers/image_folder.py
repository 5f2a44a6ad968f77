"""A folder of images: `train/<class>/*` and `test/<class>/*`, or `val/` in place of `test/` (as ImageNet has it)."""

import os
from pathlib import Path

import numpy as np

from bench.data.decode import from_files
from bench.data.prepared import data_root
from bench.data.source import DataError, ImageSet
from bench.options import PositiveInt

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def read(*, folder: str, side: PositiveInt) -> ImageSet:
    """The images, `side` x `side` RGB: training images first, by class, then by path.

    Args:
        folder: below the data root, or absolute.
        side: the shorter side is resized to it, then the centre is cropped.

    Raises:
        DataError: the layout is another, a class is empty, or a file is no image; names it.
    """
    root = data_root() / folder
    training = training_images(folder)
    test = _test_part(root)
    unknown = sorted(set(_classes(test)) - set(training))
    if unknown:
        raise DataError(
            f"{test / unknown[0]} is of no class that {root / 'train'} has; allowed: {_few(list(training))}"
        )
    parts = [list(training.values()), [_images(test / name) for name in training]]
    paths = [path for part in parts for found in part for path in found]
    labels = [label for part in parts for label, found in enumerate(part) for _ in found]
    trained = sum(map(len, parts[0]))
    return ImageSet(
        images=from_files(folder, paths, side),
        labels=np.array(labels, dtype=np.int64),
        test=np.arange(len(paths)) >= trained,
        classes=len(training),
    )


def training_images(folder: str) -> dict[str, list[Path]]:
    """The training images of each class, in the order of their rows, which are the first of the set.

    Raises:
        DataError: there is no `train/`, a class is empty, or a file is no image.
    """
    train = data_root() / folder / "train"
    if not train.is_dir():
        raise DataError(f"{train} is no folder; put the training images there, as train/<class>/<image>")
    found = {name: _images(train / name) for name in _classes(train)}
    for name, images in found.items():
        if not images:
            raise DataError(f"{train / name} holds no image; give the class some, or remove its folder")
    return found


def _test_part(root: Path) -> Path:
    found = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if len(found) != 1:
        which = "both are there" if found else "neither is there"
        raise DataError(f"{root} wants either test/ or val/ for its test split; {which}")
    return found[0]


def _classes(part: Path) -> list[str]:
    found = sorted(path.name for path in part.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise DataError(f"{part} holds no class; put its images there, as {part.name}/<class>/<image>")
    return found


def _images(folder: Path) -> list[Path]:
    found = []
    for place, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [Path(place, name) for name in files if not name.startswith(".")]
    for path in found:
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path} is no image; remove it (allowed: {', '.join(sorted(SUFFIXES))})")
    return sorted(found, key=Path.as_posix)


def _few(classes: list[str]) -> str:
    return ", ".join(classes[:10]) + (f" and {len(classes) - 10} more" if len(classes) > 10 else "")
