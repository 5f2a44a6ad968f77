"""Loops that numba compiles: the counter-based generator, and a whole recipe in one pass over each image.

One thread, no lock of the interpreter held, no fast-math: only additions, products, quotients and comparisons in the
order written, so that the bits are the same on every CPU. An image is handled to its end while it lies in the cache,
which is what makes this an order of magnitude faster than one array operation after another. The ops of an image work
in place, on (c, h, w) float32 values in [0, 1].
"""

from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint32]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Float = np.float32

# what a step of a view does
NOTHING, CROP, FLIP, BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAYSCALE, SOLARISE, BLUR = range(10)
# ITU-R 601-2 luma, as torchvision has it; in single precision, since numba would widen a Python float's operations
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
ZERO, ONE, TWO, THREE = np.float32(0), np.float32(1), np.float32(2), np.float32(3)
FOUR, FIVE, SIX, WHITE = np.float32(4), np.float32(5), np.float32(6), np.float32(255)
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
ROUNDS = 10

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile at the first call; kept beside this file, or in the user's cache where that cannot be written."""
    return cast(Function, njit(cache=True, nogil=True, error_model="numpy")(function))


@compiled
def philox(counters: Words, key0: np.uint64, key1: np.uint64, words: Words) -> None:
    """Philox 4x32-10 (Salmon et al., SC 2011) of (n, 4) counters into (n, 4) words, all 32 bits wide."""
    for i in range(len(counters)):
        c0, c1 = np.uint64(counters[i, 0]), np.uint64(counters[i, 1])
        c2, c3 = np.uint64(counters[i, 2]), np.uint64(counters[i, 3])
        k0, k1 = key0, key1
        for _ in range(ROUNDS):
            a, b = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
            c0, c1, c2, c3 = (b >> HALF) ^ c1 ^ k0, b & LOW, (a >> HALF) ^ c3 ^ k1, a & LOW
            k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
        words[i, 0], words[i, 1], words[i, 2], words[i, 3] = c0, c1, c2, c3


@compiled
def views(images: Bytes, codes: Ints, values: Floats, boxes: Ints, weights: Floats, out: Floats) -> None:
    """Every image's own steps, from bytes to a view.

    Args:
        images: (n, h, w, c) bytes.
        codes: (n, steps) what is done to each, in order: the constants above.
        values: (n, steps) float32, the factor, shift or threshold of each step.
        boxes: (n, steps, 4) top, left, height and width of each crop.
        weights: (n, steps, k) float32, the kernel of each blur; k is odd.
        out: (n, s, s, c) float32, the views in [0, 1].
    """
    height, width, channels = images.shape[1:]
    size = out.shape[1]
    whole = np.empty((channels, height, width), np.float32)
    x = np.empty((channels, size, size), np.float32)
    other = np.empty((channels, size, size), np.float32)
    for i in range(len(images)):
        first = 0
        if codes.shape[1] and codes[i, 0] == CROP:
            first = 1
            top, left, rows, columns = boxes[i, 0]
            _load(images[i, top : top + rows, left : left + columns], whole)
            resize(whole, 0, 0, rows, columns, x)
        elif height == size and width == size:
            _load(images[i, :height, :width], x)
        else:
            _load(images[i, :height, :width], whole)
            resize(whole, 0, 0, height, width, x)
        for step in range(first, codes.shape[1]):
            code = codes[i, step]
            if code == BLUR:
                blur(x, weights[i, step], other)
            elif code == CROP:
                top, left, rows, columns = boxes[i, step]
                resize(x.copy(), top, left, rows, columns, x)
            else:
                _change(x, code, values[i, step])
        for c in range(channels):
            for row in range(size):
                for column in range(size):
                    out[i, row, column, c] = x[c, row, column]


@compiled
def _change(x: Floats, code: int, value: Float) -> None:
    """One step that keeps every pixel in its row."""
    if code == FLIP:
        flip(x)
    elif code == BRIGHTNESS:
        brightness(x, value)
    elif code == CONTRAST:
        contrast(x, value)
    elif code == SATURATION:
        saturation(x, value)
    elif code == HUE:
        hue(x, value)
    elif code == GRAYSCALE:
        grayscale(x)
    elif code == SOLARISE:
        solarise(x, value)


@compiled
def _load(image: Bytes, x: Floats) -> None:
    """An image's bytes to floats, at the corner of x."""
    for c in range(image.shape[2]):
        for row in range(image.shape[0]):
            for column in range(image.shape[1]):
                x[c, row, column] = np.float32(image[row, column, c]) / WHITE


@compiled
def _filter(start: int, length: int, size: int, firsts: Ints, counts: Ints, taps: Floats) -> None:
    """Weights of torch's antialiased bilinear interpolation, per output pixel.

    A triangle whose support grows with the scale and ends at the crop's border.
    """
    scale = length / size
    reach = max(scale, 1.0)
    for i in range(size):
        centre = (i + 0.5) * scale
        low = max(int(np.floor(centre - reach + 0.5)), 0)
        high = min(int(np.floor(centre + reach + 0.5)), length)
        total = 0.0
        for j in range(low, high):
            total += max(1.0 - abs(j + 0.5 - centre) / reach, 0.0)
        for j in range(low, high):
            taps[i, j - low] = max(1.0 - abs(j + 0.5 - centre) / reach, 0.0) / total
        firsts[i], counts[i] = start + low, high - low


@compiled
def resize(x: Floats, top: int, left: int, height: int, width: int, out: Floats) -> None:
    """Crop to a box and resize: down first, then across."""
    size = out.shape[1]
    longest = 2 * (max(height, width) // size + 2) + 1
    firsts, counts = np.empty(size, np.int64), np.empty(size, np.int64)
    taps = np.empty((size, longest), np.float32)
    _filter(top, height, size, firsts, counts, taps)
    # turned, so that both passes run along contiguous rows
    turned = np.empty((width, size), np.float32)
    line = np.empty(width, np.float32)
    across_firsts, across_counts = np.empty(size, np.int64), np.empty(size, np.int64)
    across = np.empty((size, longest), np.float32)
    _filter(0, width, size, across_firsts, across_counts, across)
    column = np.empty(size, np.float32)
    for c in range(len(x)):
        for i in range(size):
            line[:] = ZERO
            for j in range(counts[i]):
                weight, source = taps[i, j], x[c, firsts[i] + j]
                for k in range(width):
                    line[k] += weight * source[left + k]
            for k in range(width):
                turned[k, i] = line[k]
        for i in range(size):
            column[:] = ZERO
            for j in range(across_counts[i]):
                weight, source = across[i, j], turned[across_firsts[i] + j]
                for k in range(size):
                    column[k] += weight * source[k]
            for k in range(size):
                out[c, k, i] = column[k]


@compiled
def _clip(value: Float) -> Float:
    return min(max(value, ZERO), ONE)


@compiled
def flip(x: Floats) -> None:
    """Mirror, left to right."""
    size = x.shape[2]
    for c in range(x.shape[0]):
        for row in range(x.shape[1]):
            line = x[c, row]
            for k in range(size // 2):
                line[k], line[size - 1 - k] = line[size - 1 - k], line[k]


@compiled
def brightness(x: Floats, factor: Float) -> None:
    """Scale by a factor."""
    flat = x.reshape(-1)
    for p in range(len(flat)):
        flat[p] = _clip(factor * flat[p])


@compiled
def luma_at(x: Floats, p: int) -> Float:
    """Luminance of a pixel of three channels."""
    return RED * x[0, p] + GREEN * x[1, p] + BLUE * x[2, p]


@compiled
def contrast(x: Floats, factor: Float) -> None:
    """Blend with the mean luminance."""
    pixels = x.reshape(len(x), -1)
    total = 0.0
    for p in range(pixels.shape[1]):
        total += float(luma_at(pixels, p) if len(x) > 1 else pixels[0, p])
    rest = (ONE - factor) * np.float32(total / pixels.shape[1])
    flat = x.reshape(-1)
    for p in range(len(flat)):
        flat[p] = _clip(factor * flat[p] + rest)


@compiled
def saturation(x: Floats, factor: Float) -> None:
    """Blend with the luminance."""
    if len(x) == 1:
        return  # one channel has none to lose
    pixels = x.reshape(len(x), -1)
    for p in range(pixels.shape[1]):
        rest = (ONE - factor) * luma_at(pixels, p)
        for c in range(3):
            pixels[c, p] = _clip(factor * pixels[c, p] + rest)


@compiled
def hue(x: Floats, shift: Float) -> None:
    """Turn the hue by a shift, in turns.

    From hue, saturation and value a channel is V - V S max(0, min(k, 4 - k, 1)), k = (n + 6 H) mod 6 with n = 5, 3, 1
    for red, green, blue: no branch, so that it vectorises.
    """
    if len(x) == 1:
        return  # one channel has none
    pixels = x.reshape(len(x), -1)
    red, green, blue = pixels[0], pixels[1], pixels[2]
    for p in range(pixels.shape[1]):
        r, g, b = red[p], green[p], blue[p]
        high, low = max(max(r, g), b), min(min(r, g), b)
        spread = high - low
        safe = ONE if spread == ZERO else spread
        of_red, of_green, of_blue = (high - r) / safe, (high - g) / safe, (high - b) / safe
        from_green = TWO + of_red - of_blue if g == high else FOUR + of_green - of_red
        sector = of_blue - of_green if r == high else from_green
        turned = sector / SIX + shift
        turned = SIX * (turned - np.floor(turned))
        red[p] = _channel(high, spread, turned + FIVE)
        green[p] = _channel(high, spread, turned + THREE)
        blue[p] = _channel(high, spread, turned + ONE)


@compiled
def _channel(value: Float, spread: Float, k: Float) -> Float:
    k = k - SIX if k >= SIX else k
    return _clip(value - spread * max(ZERO, min(min(k, FOUR - k), ONE)))


@compiled
def grayscale(x: Floats) -> None:
    """Give every channel the luminance."""
    if len(x) == 1:
        return
    pixels = x.reshape(len(x), -1)
    for p in range(pixels.shape[1]):
        gray = luma_at(pixels, p)
        pixels[0, p], pixels[1, p], pixels[2, p] = gray, gray, gray


@compiled
def solarise(x: Floats, threshold: Float) -> None:
    """Invert what reaches the threshold."""
    flat = x.reshape(-1)
    for p in range(len(flat)):
        flat[p] = ONE - flat[p] if flat[p] >= threshold else flat[p]


@compiled
def _mirrored(i: int, size: int) -> int:
    return -i if i < 0 else (2 * (size - 1) - i if i >= size else i)


@compiled
def blur(x: Floats, weights: Floats, other: Floats) -> None:
    """Down, then across; borders are mirrored."""
    reach, size = len(weights) // 2, x.shape[1]
    padded = np.empty(size + 2 * reach, np.float32)
    for c in range(len(x)):
        for row in range(size):
            line = other[c, row]
            line[:] = ZERO
            for j in range(len(weights)):
                weight, source = weights[j], x[c, _mirrored(row + j - reach, size)]
                for k in range(size):
                    line[k] += weight * source[k]
        for row in range(size):
            for k in range(len(padded)):
                padded[k] = other[c, row, _mirrored(k - reach, size)]
            line = x[c, row]
            line[:] = ZERO
            for j in range(len(weights)):
                weight = weights[j]
                for k in range(size):
                    line[k] += weight * padded[j + k]


@compiled
def candidates(values: Floats, k: int, off: Float, found: Ints, counts: Ints) -> None:
    """The places of all values that are less than the k-th largest of their row by at most `off`.

    A row's values are taken in turn; whenever the room for found ones is full, the k-th largest of them is the new
    bound, and those below it by more than `off` are dropped.

    Args:
        values: (n, m), none of them nan.
        k: how many, at most m.
        off: how much less.
        found: (n, room) places, rising; room for 2 k at least.
        counts: (n,) how many of them, or -1 where there was no room for them all.
    """
    room = found.shape[1]
    held, copy = np.empty(room, np.float32), np.empty(room, np.float32)
    for i in range(len(values)):
        row, places = values[i], found[i]
        bound, count = np.float32(-np.inf), 0
        for j in range(len(row)):
            if row[j] >= bound:
                if count == room:
                    bound, count = _prune(held, copy, places, count, k, off)
                    if count == room:
                        break
                    if row[j] < bound:
                        continue
                held[count], places[count] = row[j], j
                count += 1
        bound, left = _prune(held, copy, places, count, k, off)
        counts[i] = -1 if count == room and left == room else left


@compiled
def _prune(held: Floats, copy: Floats, places: Ints, count: int, k: int, off: Float) -> tuple[Float, int]:
    """Drop what cannot be among the k largest; gives the bound and how many are left."""
    copy[:count] = held[:count]
    bound = np.float32(np.partition(copy[:count], count - k)[count - k] - off)
    kept = 0
    for j in range(count):
        if held[j] >= bound:
            held[kept], places[kept] = held[j], places[j]
            kept += 1
    return bound, kept
