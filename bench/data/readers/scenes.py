"""The embedded MNIST digits in coloured scenes, composited by address: colour tells images apart and says no class.

A digit lies somewhere on a smoothly textured background of one of a few hues, and is brighter than it. Two crops of one
scene share its colours, so that matching colours solves the pretext of crops alone: a shortcut, which digits on black
cannot have. Every scene is a function of the options and of its row; each number that decides a byte comes from whole
numbers or from single float operations, so that the bytes are the same on every machine.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bench.data.readers import embedded_mnist
from bench.data.source import DataError, ImageSet
from bench.data.splits import SEED
from bench.options import Fraction, PositiveInt
from bench.random import Address

SIDE = 28  # of a scene, as of a digit with its margin
SMALLEST = 20  # side of a resized digit with its margin, in pixels; the largest is SIDE
KNOTS = 5  # of the texture, along a side
BLOCK = 250  # scenes made at a time: their arrays stay in the CPU's cache
WORD = 2.0**32 - 1  # the largest word of an address
Bounds = tuple[float, float]
BACKGROUND: Mapping[str, Bounds] = {"saturation": (0.6, 0.9), "value": (0.2, 0.55)}
FOREGROUND: Mapping[str, Bounds] = {"saturation": (0.1, 0.2), "value": (0.8, 1.0)}
NOTE = "composited by address from the digits of embedded_mnist: not photographs"


def read(*, test: PositiveInt, hues: PositiveInt, spread: Fraction, texture: Fraction) -> ImageSet:
    """The scenes, 28x28 RGB; rows, labels and test rows are those of `embedded_mnist` with the same `test`.

    Args:
        test: how many are the test split.
        hues: how many hues backgrounds have, evenly around the colour wheel.
        spread: how far colours of one hue differ: 0 not at all, 1 by all that hue, saturation and value allow.
        texture: the most by which it moves a background's value (of 1) up or down.

    Raises:
        DataError: a texture with which a background may be as bright as a digit, or no source.
    """
    darkest = FOREGROUND["value"][0] * (1 - FOREGROUND["saturation"][1])  # the least channel of any digit
    limit = round(darkest - BACKGROUND["value"][1], 2)
    if texture >= limit:
        raise DataError(f"datasets: texture wants less than {limit}, so that digits are the brighter, not {texture}")
    digits = embedded_mnist.read(test=test)
    ids = np.arange(len(digits.images))
    scenes = composite(digits.images, ids, hues=hues, spread=spread, texture=texture)
    return replace(digits, images=scenes, notes=(NOTE,))


def composite(
    digits: NDArray[np.uint8], ids: NDArray[np.int64], *, hues: int, spread: float, texture: float
) -> NDArray[np.uint8]:
    """Scenes of any digits, each a function of its id and of the options.

    Args:
        digits: (n, 28, 28, 1) ink, 0 to 255.
        ids: (n,) rows of the whole set.
        hues: as `read` has it.
        spread: likewise.
        texture: likewise.

    Returns:
        (n, 28, 28, 3) RGB.
    """
    scenes = np.empty((len(ids), SIDE, SIDE, 3), dtype=np.uint8)
    for start in range(0, len(ids), BLOCK):
        rows = slice(start, start + BLOCK)
        address = Address(SEED, "scenes", ids[rows])
        back, front = _colours(address, hues, spread)
        background = _textured(address, back, texture)
        ink = _placed(address, digits[rows, :, :, 0])[..., None]
        scenes[rows] = np.rint(255 * (background + ink * (_rgb(front)[:, None, None] - background)))
    return scenes


def _colours(address: Address, hues: int, spread: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, 3) hue in turns, saturation and value of each background, and of each digit: about opposite."""
    u = address.uniform("colour", 7)  # (n, 7)
    hue = (np.floor(u[:, 0] * hues) + spread * (u[:, 1] - 0.5)) / hues
    opposite = hue + 0.5 + spread * (u[:, 2] - 0.5) / hues
    back = [hue, *(_between(bounds, spread, u[:, 3 + i]) for i, bounds in enumerate(BACKGROUND.values()))]
    front = [opposite, *(_between(bounds, spread, u[:, 5 + i]) for i, bounds in enumerate(FOREGROUND.values()))]
    return np.stack(back, axis=1), np.stack(front, axis=1)


def _between(bounds: Bounds, spread: float, u: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) numbers around the middle of the bounds, as far as `spread` lets them stray."""
    low, high = bounds
    return (low + high) / 2 + spread * (u - 0.5) * (high - low)


def _rgb(hsv: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 3) red, green and blue from 0 to 1: the hexcone of Smith, "Color gamut transform pairs", SIGGRAPH 1978."""
    hue, saturation, value = hsv.T[..., None]  # each (n, 1)
    sector = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6  # (n, 3)
    return value * (1 - saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1))


def _textured(address: Address, hsv: NDArray[np.float64], texture: float) -> NDArray[np.float64]:
    """(n, 28, 28, 3) backgrounds: RGB whose value moves by numbers at KNOTS x KNOTS places, bilinear between them."""
    knots = address.words("texture", KNOTS**2).reshape(-1, KNOTS, KNOTS).astype(np.float64)
    apart = SIDE - 1  # pixels between the first and the last knot
    away = np.abs((KNOTS - 1) * np.arange(SIDE)[:, None] - apart * np.arange(KNOTS))  # in pixels / (KNOTS - 1)
    weights = np.maximum(apart - away, 0).astype(np.float64)  # (28, KNOTS) whole numbers; a row's sum is `apart`
    relief = weights @ knots @ weights.T / (apart**2 * WORD)  # (n, 28, 28), 0 to 1; exact products, as in _placed
    moved = hsv[:, 2, None, None] + texture * (2 * relief - 1)
    pure = _rgb(np.stack([hsv[:, 0], hsv[:, 1], np.ones(len(hsv))], axis=1))  # RGB is in proportion to the value
    return moved[..., None] * pure[:, None, None]


def _placed(address: Address, ink: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n, 28, 28) ink from 0 to 1 of digits that are resized and lie somewhere in the frame.

    Weights and ink are whole numbers and their sums stay below 2^53, so that the products are exact whatever the order
    of summation, which is the CPU's choice.
    """
    u = address.uniform("place", 3)  # (n, 3)
    sides = SMALLEST + np.floor(u[:, 0] * (SIDE - SMALLEST + 1))
    top, left = np.floor(u[:, 1:] * (SIDE - sides + 1)[:, None]).T
    down, across = _resize_weights(top, sides), _resize_weights(left, sides)
    total = down.sum(2)[:, :, None] * across.sum(2)[:, None]  # (n, 28, 28)
    placed = down @ ink.astype(np.float64) @ across.transpose(0, 2, 1)
    return placed / (255 * np.maximum(total, 1))


def _resize_weights(start: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 28, 28) weight, a whole number, of each source pixel in each of the frame: bilinear with antialiasing.

    The triangle filter reaches one pixel of the smaller image: 28 / side of the source's. All distances are in
    1 / (2 side) of those, so that they are whole.
    """
    pixel = np.arange(SIDE)
    inside = pixel - start[:, None]  # (n, 28), counted from the digit's corner
    centres = (2 * inside + 1) * SIDE  # (n, 28)
    away = np.abs(centres[..., None] - (2 * pixel + 1) * sides[:, None, None])  # (n, 28, 28)
    covered = (inside >= 0) & (inside < sides[:, None])
    return np.where(covered[..., None], np.maximum(2 * SIDE - away, 0), 0)
