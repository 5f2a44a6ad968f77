"""A recipe (data), images and their addresses to views, batched.

Every op equals torchvision's functional op of the same parameters within 1e-5; the parameters come
from addresses, per image. A crop is two small matrices per image (bilinear with antialiasing is
separable), so a whole batch is resized by two batched products.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from bench.random import Address

ATTEMPTS = 10  # of torchvision's RandomResizedCrop, before it falls back to the centre
GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma, as torchvision has it
Options = Mapping[str, Any]


def make_views(recipe: Options, images: UInt8[Tensor, "n h w c"], address: Address) -> list[Float[Tensor, "n c s s"]]:
    """The views of a batch.

    Args:
        recipe: `views`: each with `count`, `size` and `ops`, as in params.yaml.
        images: (n, h, w, c) uint8 images.
        address: where the batch's random numbers live.

    Returns:
        One (n, c, size, size) tensor per view, in [0, 1], in channels_last memory.
    """
    views: list[Tensor] = []
    for view in recipe["views"]:
        for _ in range(view["count"]):
            views.append(_make_view(view, images, address.at_view(len(views))))
    return views


def to_float(images: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n c h w"]:
    """Clean images: (n, h, w, c) bytes to (n, c, h, w) in [0, 1], in channels_last memory."""
    return images.permute(0, 3, 1, 2).float() / 255


def _make_view(view: Options, images: UInt8[Tensor, "n h w c"], address: Address) -> Float[Tensor, "n c s s"]:
    x = to_float(images)
    size = view["size"]
    ops = [next(iter(op.items())) for op in view["ops"]]
    if not (ops and ops[0][0] == "crop") and x.shape[-2:] != (size, size):
        x = resized_crop(x, _whole(len(x), *x.shape[-2:]), size)
    seen: dict[str, int] = {}
    for name, options in ops:
        # an op that stands twice in a recipe draws other numbers the second time
        seen[name] = seen.get(name, -1) + 1
        label = name if seen[name] == 0 else f"{name}{seen[name]}"
        x = OPS[name](x, options, address, label, size)
    return x.contiguous(memory_format=torch.channels_last)


def crop_boxes(
    u: NDArray[np.float64], height: int, width: int, scale: Sequence[float], ratio: Sequence[float]
) -> NDArray[np.int64]:
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


def resized_crop(
    x: Float[Tensor, "n c h w"],
    boxes: NDArray[np.int64],
    size: int,
    flip: NDArray[np.bool_] | None = None,
) -> Float[Tensor, "n c s s"]:
    """Crop each image to its box and resize it: bilinear with antialiasing.

    Args:
        x: (n, c, h, w) images.
        boxes: (n, 4) top, left, height, width.
        size: side of the result.
        flip: (n,) which of them to mirror.
    """
    rows = _resize_matrices(boxes[:, 0], boxes[:, 2], x.shape[2], size)
    columns = _resize_matrices(boxes[:, 1], boxes[:, 3], x.shape[3], size)
    if flip is not None:
        columns = np.where(flip[:, None, None], columns[:, ::-1], columns)
    down = torch.from_numpy(rows).to(x)[:, None]  # (n, 1, size, h)
    across = torch.from_numpy(columns).to(x)[:, None]  # (n, 1, size, w)
    # one layout whatever the batch: a single colour image would otherwise take another path through BLAS
    return down @ x.contiguous() @ across.mT.contiguous()  # (n, c, size, size)


def _resize_matrices(start: NDArray[np.int64], length: NDArray[np.int64], whole: int, size: int) -> NDArray[np.float32]:
    """(n, size, whole): weights of each source pixel in each pixel of the resized crop.

    The triangle filter of torch's antialiased bilinear interpolation, whose support grows with the
    scale and ends at the crop's border. Exact float operations only.
    """
    scale = length / size  # (n,)
    reach = np.maximum(scale, 1.0)[:, None]
    centre = (np.arange(size) + 0.5) * scale[:, None]  # (n, size)
    first = np.maximum(np.floor(centre - reach + 0.5), 0)
    last = np.minimum(np.floor(centre + reach + 0.5), length[:, None])
    pixel = np.arange(whole) - start[:, None]  # (n, whole), counted from the crop's corner
    distance = np.abs(pixel[:, None] + 0.5 - centre[..., None]) / reach[..., None]
    inside = (pixel[:, None] >= first[..., None]) & (pixel[:, None] < last[..., None])
    weights = np.where(inside, np.maximum(1.0 - distance, 0.0), 0.0)
    total = np.zeros(weights.shape[:2])
    for column in range(whole):  # one order of summation, on every machine
        total += weights[..., column]
    return (weights / total[..., None]).astype(np.float32)


def _whole(n: int, height: int, width: int) -> NDArray[np.int64]:
    return np.tile(np.array([0, 0, height, width]), (n, 1))


def luma(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """Luminance; a one-channel image is its own."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.unbind(1)
    return (GRAY[0] * r + GRAY[1] * g + GRAY[2] * b)[:, None]


def _blend(x: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def brightness(x: Float[Tensor, "n c h w"], factor: Tensor) -> Float[Tensor, "n c h w"]:
    """Scale by (n, 1, 1, 1) factors."""
    return _blend(x, 0.0, factor)


def contrast(x: Float[Tensor, "n c h w"], factor: Tensor) -> Float[Tensor, "n c h w"]:
    """Blend with the mean luminance of each image."""
    return _blend(x, luma(x).mean((1, 2, 3), keepdim=True), factor)


def saturation(x: Float[Tensor, "n c h w"], factor: Tensor) -> Float[Tensor, "n c h w"]:
    """Blend with the luminance; one channel has none to lose."""
    return x if x.shape[1] == 1 else _blend(x, luma(x), factor)


def hue(x: Float[Tensor, "n c h w"], shift: Tensor) -> Float[Tensor, "n c h w"]:
    """Turn the hue by (n, 1, 1, 1) shifts, in turns; one channel has none."""
    if x.shape[1] == 1:
        return x
    high, low = x.max(1).values, x.min(1).values  # (n, h, w)
    spread = high - low
    safe = torch.where(spread == 0, 1.0, spread)
    s = spread / torch.where(spread == 0, 1.0, high)
    r, g, b = ((high - channel) / safe for channel in x.unbind(1))
    is_r = x[:, 0] == high
    is_g = (x[:, 1] == high) & ~is_r
    h = torch.where(is_r, b - g, torch.where(is_g, 2 + r - b, 4 + g - r))
    h = (h / 6 + 1).fmod(1)
    h = (h + shift[:, 0]).remainder(1)
    sector = (h * 6).floor()
    f = h * 6 - sector
    sector = sector.long() % 6
    p = (high * (1 - s)).clamp(0, 1)
    q = (high * (1 - s * f)).clamp(0, 1)
    t = (high * (1 - s * (1 - f))).clamp(0, 1)
    choices = torch.stack([high, q, p, t])  # v, q, p, t
    table = torch.tensor([[0, 1, 2, 2, 3, 0], [3, 0, 0, 1, 2, 2], [2, 2, 3, 0, 0, 1]])
    picked = table.to(x.device)[:, sector]  # (3, n, h, w): which of them each channel takes
    return choices.gather(0, picked).transpose(0, 1)


def blur(x: Float[Tensor, "n c h w"], kernel: int, sigma: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Gaussian blur with a kernel of `kernel` pixels (odd) and (n,) sigmas; borders are mirrored."""
    reach = kernel // 2
    offsets = torch.arange(-reach, reach + 1, device=x.device)
    weights = (-0.5 * (offsets / sigma[:, None]) ** 2).exp()  # (n, kernel)
    weights = (weights / weights.sum(1, keepdim=True))[:, :, None, None, None]
    height, width = x.shape[-2:]
    padded = torch.nn.functional.pad(x, [reach] * 4, mode="reflect")
    rows = sum(weights[:, i] * padded[:, :, i : i + height] for i in range(kernel))
    assert isinstance(rows, Tensor)
    blurred = sum(weights[:, i] * rows[..., i : i + width] for i in range(kernel))
    assert isinstance(blurred, Tensor)
    return blurred


Op = Callable[[Tensor, Options, Address, str, int], Tensor]


def _crop(x: Tensor, options: Options, address: Address, label: str, size: int) -> Tensor:
    u = address.uniform(label, 2 * ATTEMPTS + 2)
    boxes = crop_boxes(u, x.shape[2], x.shape[3], options["scale"], options["ratio"])
    return resized_crop(x, boxes, size)


def _flip(x: Tensor, options: Options, address: Address, label: str, size: int) -> Tensor:
    return _where(address.uniform(label, 1)[:, 0] < options["p"], x.flip(3), x)


def _grayscale(x: Tensor, options: Options, address: Address, label: str, size: int) -> Tensor:
    return _where(address.uniform(label, 1)[:, 0] < options["p"], luma(x).expand_as(x), x)


def _jitter(x: Tensor, options: Options, address: Address, label: str, size: int) -> Tensor:
    """Brightness, contrast, saturation and hue in an order of each image's own."""
    adjust = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    u = address.uniform(label, 2 * len(adjust) + 1)
    order = u[:, 1 + len(adjust) :].argsort(1, kind="stable")
    applied = u[:, 0] < options["p"]
    x = x.clone()
    for position in range(len(adjust)):
        for number, (name, op) in enumerate(adjust.items()):
            strength = options[name]
            rows = np.flatnonzero(applied & (order[:, position] == number))
            if strength == 0 or len(rows) == 0:
                continue
            low = -strength if name == "hue" else max(0.0, 1 - strength)
            high = strength if name == "hue" else 1 + strength
            factors = (low + (high - low) * u[rows, 1 + number]).astype(np.float32)
            picked = torch.from_numpy(rows).to(x.device)
            x[picked] = op(x[picked], torch.from_numpy(factors).to(x)[:, None, None, None])
    return x


def _blur(x: Tensor, options: Options, address: Address, label: str, size: int) -> Tensor:
    u = address.uniform(label, 2)
    low, high = options["sigma"]
    sigma = torch.from_numpy((low + (high - low) * u[:, 1]).astype(np.float32)).to(x.device)
    return _where(u[:, 0] < options["p"], blur(x, options["kernel"], sigma), x)


def _solarise(x: Tensor, options: Options, address: Address, label: str, size: int) -> Tensor:
    chosen = address.uniform(label, 1)[:, 0] < options["p"]
    return _where(chosen, torch.where(x >= options["threshold"], 1 - x, x), x)


def _where(chosen: NDArray[np.bool_], a: Tensor, b: Tensor) -> Tensor:
    return torch.where(torch.from_numpy(chosen).to(b.device)[:, None, None, None], a, b)


OPS: dict[str, Op] = {
    "crop": _crop,
    "flip": _flip,
    "jitter": _jitter,
    "grayscale": _grayscale,
    "blur": _blur,
    "solarise": _solarise,
}
