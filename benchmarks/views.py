"""Two SimCLR views of a batch of small images: ours on one thread, against loaders of images one by one."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.augment import make_views
from bench.random import Address
from benchmarks.rows import Measured, Row, faster
from benchmarks.timing import Candidate, Spent, in_turn, least, now

BATCH, SIDE = 256, 32
BATCHES, REPEATS = 6, 5
WORKERS = (0, 1, 2)
STRENGTHS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
OPS = [
    {"crop": {"scale": [0.2, 1.0], "ratio": [0.75, 4 / 3]}},
    {"flip": {"p": 0.5}},
    {"jitter": {**STRENGTHS, "p": 0.8}},
    {"grayscale": {"p": 0.2}},
]
RECIPE = {"views": [{"role": "global", "count": 2, "size": SIDE, "ops": OPS}]}

Transform = Callable[[Image.Image], list[Tensor]]


def pictures(count: int, side: int = SIDE) -> Tensor:
    """(n, side, side, 3) uint8 images: smooth, as photographs are, and all different."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return smooth.permute(0, 2, 3, 1).round().byte().contiguous()


def torchvision_views() -> Transform:
    """torchvision's transforms v2, of PIL images as its own data sets give them."""
    from torchvision.transforms import v2

    view = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, (0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*STRENGTHS.values())], 0.8),
            v2.RandomGrayscale(0.2),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return _Twice(view)


class _Twice:
    """Two views by one transform."""

    def __init__(self, view: Callable[[Image.Image], Tensor]):
        self.view = view

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [self.view(image), self.view(image)]


def lightly_views() -> Transform:
    """lightly's SimCLRTransform with the same strengths; it neither blurs nor normalises here."""
    from lightly.transforms.simclr_transform import SimCLRTransform

    jitter = dict(zip(("cj_bright", "cj_contrast", "cj_sat", "cj_hue"), STRENGTHS.values(), strict=True))
    return SimCLRTransform(input_size=SIDE, **jitter, min_scale=0.2, gaussian_blur=0.0, normalize=None)


class Pictures(Dataset):
    """Images with a transform, as torchvision's data sets are."""

    def __init__(self, images: Tensor, transform: Transform):
        self.images, self.transform = images.numpy(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> list[Tensor]:
        return self.transform(Image.fromarray(self.images[row]))


def loader(images: Tensor, transform: Transform, workers: int, batch: int = BATCH) -> DataLoader:
    """A loader whose workers stay from epoch to epoch."""
    kept = workers > 0
    return DataLoader(
        Pictures(images, transform), batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=kept
    )


def epoch(batches: DataLoader) -> Spent:
    """A batch's share of an epoch."""
    start = now()
    for _ in batches:
        pass
    return (now() - start) / len(batches)


def loaders(images: Tensor, transform: Transform) -> dict[str, Candidate]:
    """An epoch with each number of workers."""
    made = {f"{workers} workers": loader(images, transform, workers) for workers in WORKERS}
    return {name: lambda batches=batches: epoch(batches) for name, batches in made.items()}


def measure(transform: Callable[[], Transform]) -> Measured:
    """Milliseconds of a batch; the peer with its best number of workers."""
    images = pictures(BATCH * BATCHES)
    theirs: Mapping[str, Candidate] = loaders(images, transform())
    chosen = least(in_turn(theirs, 1))
    address = Address(0, "views", np.arange(BATCH))
    spent = in_turn({"ours": lambda: make_views(RECIPE, images[:BATCH], address), chosen: theirs[chosen]}, REPEATS)
    return Measured(1e3 * spent["ours"].wall, 1e3 * spent[chosen].wall, REPEATS, f"the peer's best: {chosen}")


WHAT = "two SimCLR views of 256 images 32x32x3"
ROWS = [
    Row(
        "views-torchvision",
        WHAT,
        "torchvision v2 in a DataLoader, best of 0, 1, 2 workers",
        "ms",
        faster(15),
        lambda: measure(torchvision_views),
    ),
    Row(
        "views-lightly",
        WHAT,
        "lightly SimCLRTransform in a DataLoader, best of 0, 1, 2 workers",
        "ms",
        faster(12),
        lambda: measure(lightly_views),
    ),
]
