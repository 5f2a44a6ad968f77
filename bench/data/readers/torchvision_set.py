"""Published sets, read by torchvision's own classes from the data root; downloaded where there is a network.

Splits and metrics are those of the transfer table of NNCLR (arXiv 2104.14548, Table 3): training is each set's
train and validation part, test is its test part. `docs/data.md` says for each which file goes where.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.data.decode import from_arrays, from_files
from bench.data.prepared import data_root
from bench.data.source import DataError, ImageSet, Metric
from bench.options import NonNegativeInt
from bench.random import permutation

CALTECH_TRAIN = 30  # of each class
SPLIT_SEED = 0
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

Labels = Sequence[Any] | NDArray[Any]
Part = tuple[NDArray[np.uint8] | list[Path], Labels]
"""Images or their files, and labels."""
Load = Callable[[ModuleType, Path, bool, bool], Part]
"""(torchvision.datasets, data root, test part or not, download or not) to a part."""


def read(
    *,
    set: Literal[
        "cifar10",
        "cifar100",
        "stl10",
        "stl10_unlabeled",
        "svhn",
        "fashion_mnist",
        "mnist",
        "food101",
        "sun397",
        "cars",
        "aircraft",
        "voc2007",
        "dtd",
        "pets",
        "caltech101",
        "flowers102",
    ],
    side: NonNegativeInt,
) -> ImageSet:
    """The set, its training images first, in the order of its own lists.

    Args:
        set: which one.
        side: the shorter side is resized to it (bicubic, antialiased), then the centre is cropped; 0 keeps the size,
            where all images have one.

    Raises:
        DataError: a file is absent or damaged and cannot be downloaded; says which, and what to put where.
    """
    known, root = SETS[set], data_root()
    parts = [_part(set, root, test) for test in (False, True)]
    labels = np.concatenate([np.asarray(found, dtype=np.int64) for _, found in parts if len(found)])
    sizes = tuple(len(found) for _, found in parts)
    notes = known.notes(root)
    if sizes != known.sizes:
        found, published = (f"{train} training and {test} test images" for train, test in (sizes, known.sizes))
        notes = (*notes, f"{found}; published are {published}")
    return ImageSet(
        images=_images(set, parts, side),
        labels=labels.astype(np.uint8) if known.metric == "map11" else labels,
        test=np.arange(len(labels)) >= sizes[0],
        classes=known.classes,
        metric=known.metric,
        notes=notes,
    )


def _part(name: str, root: Path, test: bool) -> Part:
    from torchvision import datasets

    known = SETS[name]
    if test and not known.sizes[1]:
        return [], []
    try:
        return known.load(datasets, root, test, False)
    except DataError:
        raise
    except Exception as error:  # torchvision raises what its files raise
        absent = error
    try:
        return known.load(datasets, root, test, True)
    except Exception as error:
        raise DataError(
            f"{name}: {_trouble(name, datasets, root) or absent}; put there {known.get.format(root=root)} "
            f"(downloading failed: {error})"
        ) from None


def _trouble(name: str, datasets: ModuleType, root: Path) -> str:
    """The first file of a set that is missing or damaged."""
    from torchvision.datasets.utils import check_integrity

    for file in SETS[name].files:
        if not (root / file).exists():
            return f"{root / file} is missing"
    for file, md5 in _md5s(name, datasets).items():
        if not check_integrity(root / file, md5):
            return f"{root / file} is {'damaged (its md5 is another)' if (root / file).exists() else 'missing'}"
    return ""


def _md5s(name: str, datasets: ModuleType) -> dict[str, str]:
    if name in ("cifar10", "cifar100", "stl10", "stl10_unlabeled"):
        kind = getattr(datasets, "STL10" if name.startswith("stl10") else name.upper())
        return {f"{kind.base_folder}/{file}": md5 for file, md5 in [*kind.train_list, *kind.test_list]}
    if name == "svhn":
        return {file: md5 for key, (_, file, md5) in datasets.SVHN.split_list.items() if key != "extra"}
    return {}


def _images(name: str, parts: Sequence[Part], side: int) -> NDArray[np.uint8]:
    if isinstance(parts[0][0], np.ndarray):
        return from_arrays(name, np.concatenate([images for images, _ in parts if len(images)]), side)
    return from_files(name, [path for paths, _ in parts for path in paths], side)


def _cifar(kind: str) -> Load:
    def load(datasets: ModuleType, root: Path, test: bool, download: bool) -> Part:
        found = getattr(datasets, kind)(root, train=not test, download=download)
        return found.data, found.targets

    return load


def _mnist(kind: str) -> Load:
    def load(datasets: ModuleType, root: Path, test: bool, download: bool) -> Part:
        found = getattr(datasets, kind)(root, train=not test, download=download)
        return found.data.numpy()[..., None], found.targets.numpy()

    return load


def _stl10(datasets: ModuleType, root: Path, test: bool, download: bool) -> Part:
    found = datasets.STL10(root, split="test" if test else "train", download=download)
    return found.data.transpose(0, 2, 3, 1), found.labels


def _stl10_unlabeled(datasets: ModuleType, root: Path, test: bool, download: bool) -> Part:
    found = datasets.STL10(root, split="unlabeled", download=download)
    return found.data.transpose(0, 2, 3, 1), np.zeros(len(found.data), dtype=np.int64)


def _svhn(datasets: ModuleType, root: Path, test: bool, download: bool) -> Part:
    found = datasets.SVHN(root, split="test" if test else "train", download=download)
    return found.data.transpose(0, 2, 3, 1), found.labels


def _listed(kind: str, train: Sequence[str], **options: Any) -> Load:
    """Sets whose class keeps a list of files; the training splits are joined."""

    def load(datasets: ModuleType, root: Path, test: bool, download: bool) -> Part:
        splits = ("test",) if test else train
        found = [getattr(datasets, kind)(root, split=split, download=download, **options) for split in splits]
        if any(part.classes != found[0].classes for part in found):
            raise DataError(f"{root}: the splits of {kind} are not of the same classes; fetch it again")
        paths = [Path(path) for part in found for path in (part._images if kind in _PETS else part._image_files)]
        return paths, [label for part in found for label in part._labels]

    return load


_PETS = ("OxfordIIITPet",)


def _cars(datasets: ModuleType, root: Path, test: bool, download: bool) -> Part:
    found = datasets.StanfordCars(root, split="test" if test else "train", download=download)
    return [Path(path) for path, _ in found._samples], [int(label) for _, label in found._samples]


def _sun397(datasets: ModuleType, root: Path, test: bool, download: bool) -> Part:
    classes = datasets.SUN397(root, download=download).class_to_idx
    folder = root / "SUN397"
    lists = folder / ("Testing_01.txt" if test else "Training_01.txt")
    if not lists.is_file():
        raise DataError(
            f"{lists} is missing: SUN397 is split by its lists; unpack in {folder} "
            "http://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip"
        )
    paths, labels = [], []
    for line in lists.read_text().split():
        place = Path(line.lstrip("/"))  # such as a/abbey/sun_aaaulhwrhqgejnyt.jpg
        name = "/".join(place.parts[1:-1])
        if name not in classes:
            raise DataError(f"{lists}: {line} is of no class that {folder / 'ClassName.txt'} has")
        paths.append(folder / place)
        labels.append(classes[name])
    return paths, labels


def _voc2007(datasets: ModuleType, root: Path, test: bool, download: bool) -> Part:
    found = datasets.VOCDetection(root, year="2007", image_set="test" if test else "trainval", download=download)
    return [Path(path) for path in found.images], [_voc_labels(Path(path)) for path in found.annotations]


def _voc_labels(path: Path) -> NDArray[np.uint8]:
    """(20,) 1 for the classes of which the image shows an object that is not marked as difficult."""
    labels = np.zeros(len(VOC_CLASSES), dtype=np.uint8)
    try:
        for thing in ElementTree.parse(path).getroot().iter("object"):
            if thing.findtext("difficult", "0").strip() != "1":
                labels[VOC_CLASSES.index(thing.findtext("name", "").strip())] = 1
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); unpack it again") from None
    return labels


def _caltech101(datasets: ModuleType, root: Path, test: bool, download: bool) -> Part:
    datasets.Caltech101(root, download=download)
    folder = root / "caltech101" / "101_ObjectCategories"  # torchvision's class leaves out BACKGROUND_Google
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    lists = _caltech_lists(root)
    if lists:
        lines = lists[test].read_text().split()
        paths = [folder / line for line in lines]
        unknown = [line for line in lines if Path(line).parts[0] not in classes]
        if unknown:
            raise DataError(f"{lists[test]}: {unknown[0]} is of no class that {folder} has")
    else:
        paths = [path for name in classes for path in _caltech_drawn(folder / name, test)]
    return paths, [classes.index(path.parent.name) for path in paths]


def _caltech_lists(root: Path) -> list[Path]:
    lists = [root / "caltech101" / f"{part}.txt" for part in ("train", "test")]
    there = [path for path in lists if path.is_file()]
    if len(there) == 1:
        raise DataError(f"{there[0]} is alone: put the other list there, or remove it to draw the split by address")
    return there


def _caltech_drawn(folder: Path, test: bool) -> list[Path]:
    found = sorted(folder.glob("*.jpg"))
    if len(found) <= CALTECH_TRAIN:
        raise DataError(f"{folder} holds {len(found)} images, not more than {CALTECH_TRAIN}; fetch it again")
    order = permutation(SPLIT_SEED, f"caltech101 {folder.name}", np.arange(len(found)))
    chosen = np.sort(order[CALTECH_TRAIN:] if test else order[:CALTECH_TRAIN])
    return [found[i] for i in chosen]


def _no_notes(root: Path) -> tuple[str, ...]:
    return ()


def _caltech_notes(root: Path) -> tuple[str, ...]:
    if _caltech_lists(root):
        return ()
    return (f"the {CALTECH_TRAIN} training images of a class are drawn by address: there are no lists in caltech101/",)


def _voc_notes(root: Path) -> tuple[str, ...]:
    return ("a class of which an image shows only difficult objects counts as absent there",)


@dataclass(frozen=True)
class Known:
    """What is known of a published set.

    Args:
        load: gives a part of it.
        classes: how many.
        sizes: training and test images, as published.
        files: what must be below the data root.
        get: where to get it, and where to put it.
        metric: what it is scored by.
        notes: what its users must know.
    """

    load: Load
    classes: int
    sizes: tuple[int, int]
    files: tuple[str, ...]
    get: str
    metric: Metric = "top1"
    notes: Callable[[Path], tuple[str, ...]] = _no_notes


def _idx(folder: str) -> tuple[str, ...]:
    kinds = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(f"{folder}/raw/{kind}-ubyte" for kind in kinds)


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
_STL10 = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz, unpacked in {root}"
_STL10_FILES = ("stl10_binary",)
_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007"

SETS: dict[str, Known] = {
    "cifar10": Known(
        _cifar("CIFAR10"),
        10,
        (50_000, 10_000),
        ("cifar-10-batches-py",),
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz, unpacked in {root}",
    ),
    "cifar100": Known(
        _cifar("CIFAR100"),
        100,
        (50_000, 10_000),
        ("cifar-100-python",),
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz, unpacked in {root}",
    ),
    "stl10": Known(_stl10, 10, (5_000, 8_000), _STL10_FILES, _STL10),
    "stl10_unlabeled": Known(_stl10_unlabeled, 1, (100_000, 0), _STL10_FILES, _STL10),
    "svhn": Known(
        _svhn,
        10,
        (73_257, 26_032),
        ("train_32x32.mat", "test_32x32.mat"),
        "train_32x32.mat and test_32x32.mat of http://ufldl.stanford.edu/housenumbers/, in {root}",
    ),
    "fashion_mnist": Known(
        _mnist("FashionMNIST"),
        10,
        (60_000, 10_000),
        _idx("FashionMNIST"),
        "the four .gz files of http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/, unpacked in "
        "{root}/FashionMNIST/raw",
    ),
    "mnist": Known(
        _mnist("MNIST"),
        10,
        (60_000, 10_000),
        _idx("MNIST"),
        "the four .gz files of https://ossci-datasets.s3.amazonaws.com/mnist/, unpacked in {root}/MNIST/raw",
    ),
    "food101": Known(
        _listed("Food101", ["train"]),
        101,
        (75_750, 25_250),
        ("food-101/meta", "food-101/images"),
        "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz, unpacked in {root}",
    ),
    "sun397": Known(
        _sun397,
        397,
        (19_850, 19_850),
        ("SUN397",),
        "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz, unpacked in {root}",
    ),
    "cars": Known(
        _cars,
        196,
        (8_144, 8_041),
        tuple(
            f"stanford_cars/{file}"
            for file in (
                "devkit/cars_train_annos.mat",
                "devkit/cars_meta.mat",
                "cars_test_annos_withlabels.mat",
                "cars_train",
                "cars_test",
            )
        ),
        "Stanford Cars, which has no official address any more, in {root}/stanford_cars: devkit/, cars_train/, "
        "cars_test/ and cars_test_annos_withlabels.mat",
    ),
    "aircraft": Known(
        _listed("FGVCAircraft", ["trainval"], annotation_level="variant"),
        100,
        (6_667, 3_333),
        ("fgvc-aircraft-2013b/data/images",),
        f"{_OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz, unpacked in {{root}}",
        "mean_per_class",
    ),
    "voc2007": Known(
        _voc2007,
        20,
        (5_011, 4_952),
        tuple(f"VOCdevkit/VOC2007/ImageSets/Main/{part}.txt" for part in ("trainval", "test")),
        f"{_VOC}/VOCtrainval_06-Nov-2007.tar and {_VOC}/VOCtest_06-Nov-2007.tar, both unpacked in {{root}}",
        "map11",
        _voc_notes,
    ),
    "dtd": Known(
        _listed("DTD", ["train", "val"], partition=1),
        47,
        (3_760, 1_880),
        ("dtd/dtd/labels", "dtd/dtd/images"),
        f"{_OXFORD}/dtd/download/dtd-r1.0.1.tar.gz, unpacked in {{root}}/dtd",
    ),
    "pets": Known(
        _listed("OxfordIIITPet", ["trainval"]),
        37,
        (3_680, 3_669),
        ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations"),
        f"{_OXFORD}/pets/data/images.tar.gz and {_OXFORD}/pets/data/annotations.tar.gz, both unpacked in "
        "{root}/oxford-iiit-pet",
        "mean_per_class",
    ),
    "caltech101": Known(
        _caltech101,
        102,
        (3_060, 6_084),
        ("caltech101/101_ObjectCategories",),
        "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip, and of it 101_ObjectCategories.tar.gz "
        "unpacked in {root}/caltech101",
        "mean_per_class",
        _caltech_notes,
    ),
    "flowers102": Known(
        _listed("Flowers102", ["train", "val"]),
        102,
        (2_040, 6_149),
        tuple(f"flowers-102/{file}" for file in ("jpg", "imagelabels.mat", "setid.mat")),
        f"{_OXFORD}/flowers/102/102flowers.tgz (unpacked), imagelabels.mat and setid.mat of the same place, all in "
        "{root}/flowers-102",
        "mean_per_class",
    ),
}
