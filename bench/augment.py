"""A recipe (data), images and their addresses to views.

Every op equals torchvision's functional op of the same parameters within 1e-5; the parameters come from addresses, per
image. What is done to each image is worked out here for a whole batch at once, as a row of steps; the kernels run
them. Views are made on the CPU, whatever device they are for, so a GPU's views have the CPU's bits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from bench import kernels
from bench.random import Address

GEOMETRY = ("crop", "flip")  # ops that move pixels; all others change colours
ATTEMPTS = 10  # of torchvision's RandomResizedCrop, before it falls back to the centre
ADJUSTMENTS = {  # of a jitter, in the order of their numbers
    "brightness": kernels.BRIGHTNESS,
    "contrast": kernels.CONTRAST,
    "saturation": kernels.SATURATION,
    "hue": kernels.HUE,
}
Options = Mapping[str, Any]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def make_views(recipe: Options, images: UInt8[Tensor, "n h w c"], address: Address) -> list[Float[Tensor, "n c s s"]]:
    """The views of a batch.

    Args:
        recipe: `views`: each with `count`, `size` and `ops`, as in params.yaml.
        images: (n, h, w, c) uint8 images.
        address: where the batch's random numbers live.

    Returns:
        One (n, c, size, size) tensor per view, in [0, 1], in channels_last memory, where `images` are.
    """
    pixels = images.cpu().contiguous().numpy()
    views: list[Tensor] = []
    for view in recipe["views"]:
        for _ in range(view["count"]):
            made = _make_view(view, pixels, address.at_view(len(views)))
            views.append(torch.from_numpy(made).permute(0, 3, 1, 2).to(images.device))
    return views


def to_float(images: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n c h w"]:
    """Clean images: (n, h, w, c) bytes to (n, c, h, w) in [0, 1], in channels_last memory."""
    return images.permute(0, 3, 1, 2).float() / 255


@dataclass
class Steps:
    """What is done to each of n images, in order: the columns of the kernels' arguments."""

    images: int
    codes: list[Ints | int] = field(default_factory=list)
    values: list[Floats | float] = field(default_factory=list)
    boxes: dict[int, Ints] = field(default_factory=dict)
    weights: dict[int, Floats] = field(default_factory=dict)

    def add(self, codes: Ints | int, values: Floats | float = 0.0) -> None:
        """One more step: (n,) codes and (n,) values, or one for all."""
        self.codes.append(codes)
        self.values.append(values)

    def run(self, images: NDArray[np.uint8], size: int) -> Floats:
        """(n, size, size, c) views of (n, h, w, c) images."""
        count = len(self.codes)
        boxes = np.zeros((self.images, count, 4), np.int64)
        for step, of_all in self.boxes.items():
            boxes[:, step] = of_all
        widest = max([kernel.shape[1] for kernel in self.weights.values()], default=1)
        weights = np.zeros((self.images, count, widest), np.float32)
        for step, kernel in self.weights.items():  # a smaller kernel stands in the middle of a larger one's place
            spare = (widest - kernel.shape[1]) // 2
            weights[:, step, spare : spare + kernel.shape[1]] = kernel
        codes, values = np.empty((self.images, count), np.int64), np.empty((self.images, count), np.float32)
        for step in range(count):
            codes[:, step], values[:, step] = self.codes[step], self.values[step]
        out = np.empty((self.images, size, size, images.shape[3]), np.float32)
        kernels.views(images, codes, values, boxes, weights, out)
        return out


def _make_view(view: Options, images: NDArray[np.uint8], address: Address) -> Floats:
    steps, shape = Steps(len(images)), images.shape[1:3]
    seen: dict[str, int] = {}
    for op in view["ops"]:
        ((name, options),) = op.items()
        # an op that stands twice in a recipe draws other numbers the second time
        seen[name] = seen.get(name, -1) + 1
        label = name if seen[name] == 0 else f"{name}{seen[name]}"
        # the first step finds the image as it is, later ones find a view
        OPS[name](steps, options, Place(address, label), shape if not steps.codes else (view["size"],) * 2)
    return steps.run(images, view["size"])


@dataclass(frozen=True)
class Place:
    """Where an op of a recipe draws its numbers."""

    address: Address
    label: str

    def uniform(self, count: int) -> NDArray[np.float64]:
        """(n, count) numbers inside (0, 1)."""
        return self.address.uniform(self.label, count)


def crop_boxes(u: NDArray[np.float64], height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> Ints:
    """The rule of torchvision's RandomResizedCrop, for a batch.

    Args:
        u: (n, 2 * ATTEMPTS + 2) uniform numbers: area and ratio of each attempt, then top and left.
        height: of the images.
        width: of the images.
        scale: range of the crop's share of the area.
        ratio: range of width / height, drawn in the logarithm.

    Returns:
        (n, 4) top, left, height, width; the first attempt that fits, else the largest central crop
        whose ratio is allowed.
    """
    areas = height * width * (scale[0] + (scale[1] - scale[0]) * u[:, 0 : 2 * ATTEMPTS : 2])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    logs = low + (high - low) * u[:, 1 : 2 * ATTEMPTS : 2]
    # torch's exp, which the numerics pin, not numpy's, which chooses by CPU
    ratios = torch.from_numpy(logs).exp().numpy()
    w = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
    h = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(1)
    rows = np.arange(len(u))
    h, w, found = h[rows, first], w[rows, first], fits.any(1)
    top = np.floor(u[:, -2] * (height - h + 1)).astype(np.int64)
    left = np.floor(u[:, -1] * (width - w + 1)).astype(np.int64)
    boxes = np.stack([top, left, h, w], axis=1)
    boxes[~found] = _central_box(height, width, ratio)
    return boxes


def _central_box(height: int, width: int, ratio: Sequence[float]) -> tuple[int, int, int, int]:
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def _crop(steps: Steps, options: Options, place: Place, shape: tuple[int, int]) -> None:
    u = place.uniform(2 * ATTEMPTS + 2)
    steps.boxes[len(steps.codes)] = crop_boxes(u, *shape, options["scale"], options["ratio"])
    steps.add(kernels.CROP)


def _sometimes(code: int, value: str | None = None) -> "Op":
    """An op that an image takes with probability `p`, with one of its options as its value."""

    def op(steps: Steps, options: Options, place: Place, shape: tuple[int, int]) -> None:
        chosen = place.uniform(1)[:, 0] < options["p"]
        steps.add(np.where(chosen, code, kernels.NOTHING), options[value] if value else 0.0)

    return op


def _jitter(steps: Steps, options: Options, place: Place, shape: tuple[int, int]) -> None:
    """Brightness, contrast, saturation and hue in an order of each image's own."""
    u = place.uniform(2 * len(ADJUSTMENTS) + 1)
    order = u[:, 1 + len(ADJUSTMENTS) :].argsort(1, kind="stable")
    factors, codes = np.ones(order.shape, np.float32), np.full(order.shape, kernels.NOTHING)
    for number, (name, code) in enumerate(ADJUSTMENTS.items()):
        strength = options[name]
        low = -strength if name == "hue" else max(0.0, 1 - strength)
        high = strength if name == "hue" else 1 + strength
        factors[:, number] = low + (high - low) * u[:, 1 + number]
        if strength:
            codes[u[:, 0] < options["p"], number] = code
    rows = np.arange(len(u))
    for position in range(len(ADJUSTMENTS)):
        steps.add(codes[rows, order[:, position]], factors[rows, order[:, position]])


def _blur(steps: Steps, options: Options, place: Place, shape: tuple[int, int]) -> None:
    u = place.uniform(2)
    low, high = options["sigma"]
    sigma = torch.from_numpy((low + (high - low) * u[:, 1]).astype(np.float32))
    reach = options["kernel"] // 2
    offsets = torch.arange(-reach, reach + 1)
    weights = (-0.5 * (offsets / sigma[:, None]) ** 2).exp()  # (n, kernel)
    steps.weights[len(steps.codes)] = (weights / weights.sum(1, keepdim=True)).numpy()
    steps.add(np.where(u[:, 0] < options["p"], kernels.BLUR, kernels.NOTHING))


Op = Callable[[Steps, Options, Place, tuple[int, int]], None]
OPS: dict[str, Op] = {
    "crop": _crop,
    "flip": _sometimes(kernels.FLIP),
    "jitter": _jitter,
    "grayscale": _sometimes(kernels.GRAYSCALE),
    "blur": _blur,
    "solarise": _sometimes(kernels.SOLARISE, "threshold"),
}
