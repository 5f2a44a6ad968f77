"""An image folder with published lists of labelled images, such as SimCLR's of 1 % and 10 % of ImageNet."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.data.prepared import data_root
from bench.data.readers import image_folder
from bench.data.source import DataError, ImageSet
from bench.options import PositiveInt


def read(*, folder: str, side: PositiveInt, label_lists: dict[str, str]) -> ImageSet:
    """The images as `image_folder` reads them, and the rows of each list.

    Args:
        folder: below the data root, or absolute.
        side: the shorter side is resized to it, then the centre is cropped.
        label_lists: a fraction of the labels, such as "0.01", to a file below the data root, or absolute. On each line
            the name of a training image, or as much of the end of its path as tells it from others.

    Raises:
        DataError: as `image_folder`; a fraction is none or given twice; a list is absent or empty, or a line names no
            training image, several, or one that an earlier line names.
    """
    images = [path for found in image_folder.training_images(folder).values() for path in found]
    named = defaultdict(list)
    for row, path in enumerate(images):
        named[path.name].append(row)
    lists: dict[float, NDArray[np.int64]] = {}
    for text, file in label_lists.items():  # before hours of decoding
        fraction = _fraction(text)
        if fraction in lists:
            raise DataError(f"label_lists: '{text}' is a fraction that is given twice; take one out")
        lists[fraction] = _rows(data_root() / file, images, named)
    return replace(image_folder.read(folder=folder, side=side), label_lists=lists)


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise DataError(f"label_lists: '{text}' wants to be a fraction of the labels, such as '0.01' for 1 %")
    return fraction


def _rows(path: Path, images: Sequence[Path], named: Mapping[str, Sequence[int]]) -> NDArray[np.int64]:
    """(m,) rows, ascending, of the images that a list names."""
    lines: dict[int, int] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        row = _row(Path(line.strip()), images, named, f"{path}, line {number}")
        if row in lines:
            raise DataError(f"{path}, line {number}: '{line.strip()}' is on line {lines[row]} too; take one out")
        lines[row] = number
    if not lines:
        raise DataError(f"{path} names no image; fetch it again")
    return np.array(sorted(lines), dtype=np.int64)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; put the list there, or take it out of label_lists") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as text ({error}); fetch it again") from None


def _row(name: Path, images: Sequence[Path], named: Mapping[str, Sequence[int]], where: str) -> int:
    found = [row for row in named.get(name.name, ()) if images[row].parts[-len(name.parts) :] == name.parts]
    if not found:
        raise DataError(
            f"{where}: no training image is called '{name}'; put the image back, take the line out, or give the list "
            "that was made for these images"
        )
    if len(found) > 1:
        raise DataError(f"{where}: {len(found)} training images are called '{name}'; write it as <class>/<image>")
    return found[0]
