"""Loops that numba compiles: the counter-based generator, and a whole recipe in one pass over each image.

One thread, no lock of the interpreter held, no fast-math: only additions, products, quotients and comparisons in the
order written, so that the bits are the same on every CPU. An image is handled to its end while it lies in the cache,
which is what makes this an order of magnitude faster than one array operation after another. The ops of an image work
on (c, h, w) float32 values in [0, 1], in place where no room is given.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]
Halves = NDArray[np.uint16]
Words = NDArray[np.uint32]
Signed = NDArray[np.int32]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Float = np.float32

# what a step of a view does
NOTHING, CROP, FLIP, BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAYSCALE, SOLARISE, BLUR = range(10)
# ITU-R 601-2 luma, as torchvision has it; in single precision, since numba would widen a Python float's operations
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
ZERO, ONE, TWO, THREE = np.float32(0), np.float32(1), np.float32(2), np.float32(3)
LANES = 32  # independent sums, which a loop without fast-math keeps in vector registers
TILE = 2**18  # bytes of rows that all queries are done with before the next ones, so that they stay in the cache
BLOCK = 128  # values that are passed over at once where the largest of them is too small
SIGN, MAGNITUDE = np.int32(31), np.int32(0x7FFFFFFF)
LEAST = np.int32(-0x7F800001)  # -inf, as `_ordered` has it
FOUR, FIVE, SIX, WHITE = np.float32(4), np.float32(5), np.float32(6), np.float32(255)
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
ROUNDS = 10

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile at the first call; kept beside this file, or in the user's cache where that cannot be written."""
    return cast(Function, njit(cache=True, nogil=True, error_model="numpy")(function))


def linked(function: Function) -> Function:
    """Compile into its callers, which are kept with it."""
    return cast(Function, njit(nogil=True, error_model="numpy")(function))


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
    filters = new_filters(max(height, width, size), size)
    whole = np.empty((height, width, channels), np.float32)
    view = np.empty((size, size, channels), np.float32)
    x = np.empty((channels, size, size), np.float32)
    other = np.empty((channels, size, size), np.float32)
    for i in range(len(images)):
        first = 1 if codes.shape[1] and codes[i, 0] == CROP else 0
        top, left, rows, columns = 0, 0, height, width
        if first:
            top, left, rows, columns = boxes[i, 0]
        if first or height != size or width != size:
            _load(images[i], top, left, rows, columns, whole)
            resize(whole, rows, columns, filters, x)
        else:
            _load(images[i], 0, 0, height, width, whole)
            _part(whole, x)
        for step in range(first, codes.shape[1]):
            code = codes[i, step]
            if code == BLUR:
                blur(x, weights[i, step], other)
            elif code == FLIP:
                flip(x, other)
                x, other = other, x
            elif code == CROP:
                top, left, rows, columns = boxes[i, step]
                _join(x, view)
                for row in range(rows):
                    for column in range(columns):
                        view[row, column] = view[top + row, left + column]
                resize(view, rows, columns, filters, x)
            else:
                _change(x, code, values[i, step])
        _join(x, out[i])


@linked
def _change(x: Floats, code: int, value: Float) -> None:
    """One step that keeps every pixel in its place."""
    if code == BRIGHTNESS:
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


@linked
def _load(image: Bytes, top: int, left: int, height: int, width: int, out: Floats) -> None:
    """A box of an image's bytes to floats, at the corner of out; the channels of a pixel stay together."""
    channels = image.shape[2]
    lines, made = image.reshape(len(image), -1), out.reshape(len(out), -1)
    # an index without a sign is no place counted from the end, which numba would look for at every pixel
    start, stop = np.uint64(left * channels), np.uint64(width * channels)
    for row in range(height):
        for k in range(stop):
            made[row, k] = np.float32(lines[top + row, start + k]) / WHITE


@linked
def _part(pixels: Floats, x: Floats) -> None:
    """(h, w, c) to (c, h, w)."""
    source, planes = pixels.reshape(-1), x.reshape(len(x), -1)
    if len(x) == 3:  # a number that the compiler knows, so that it vectorises
        red, green, blue = planes[0], planes[1], planes[2]
        for p in range(len(red)):
            red[p], green[p], blue[p] = source[3 * p], source[3 * p + 1], source[3 * p + 2]
        return
    for c in range(len(x)):
        plane = planes[c]
        for p in range(len(plane)):
            plane[p] = source[len(x) * p + c]


@linked
def _join(x: Floats, pixels: Floats) -> None:
    """(c, h, w) to (h, w, c)."""
    made, planes = pixels.reshape(-1), x.reshape(len(x), -1)
    if len(x) == 3:  # as above
        red, green, blue = planes[0], planes[1], planes[2]
        for p in range(len(red)):
            made[3 * p], made[3 * p + 1], made[3 * p + 2] = red[p], green[p], blue[p]
        return
    for c in range(len(x)):
        plane = planes[c]
        for p in range(len(plane)):
            made[len(x) * p + c] = plane[p]


@linked
def new_filters(longest: int, size: int) -> tuple[Ints, Ints, Floats]:
    """Room for the filters from every length to a size: per length and output pixel the first tap's place, how many
    taps, and their weights. A length that has not been wanted yet has no taps.
    """
    taps = 2 * (longest // size + 2) + 1
    firsts, counts = np.empty((longest + 1, size), np.int64), np.zeros((longest + 1, size), np.int64)
    return firsts, counts, np.empty((longest + 1, size, taps), np.float32)


@linked
def _filter(length: int, firsts: Ints, counts: Ints, taps: Floats) -> None:
    """Weights of torch's antialiased bilinear interpolation, per output pixel.

    A triangle whose support grows with the scale and ends at the crop's border.
    """
    size = len(firsts)
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
        firsts[i], counts[i] = low, high - low


@linked
def resize(x: Floats, height: int, width: int, filters: tuple[Ints, Ints, Floats], out: Floats) -> None:
    """Resize the corner of (h, w, c) pixels to (c, s, s): down first, then across."""
    firsts, counts, taps = filters
    for length in (height, width):
        if counts[length, 0] == 0:
            _filter(length, firsts[length], counts[length], taps[length])
    channels, size = out.shape[:2]
    rows, made = x.reshape(len(x), -1), out.reshape(channels * size, size)
    down, across = taps[height], taps[width]
    # turned, so that both passes run along contiguous rows
    turned = np.empty((width * channels, size), np.float32)
    line = np.empty(width * channels, np.float32)
    for i in range(size):
        _add(down, i, counts[height, i], rows, firsts[height, i], line)
        for k in range(len(line)):
            turned[k, i] = line[k]
    columns = turned.reshape(width, channels * size)
    column = np.empty(channels * size, np.float32)
    for i in range(size):
        _add(across, i, counts[width, i], columns, firsts[width, i], column)
        for k in range(len(column)):
            made[k, i] = column[k]


@linked
def _add(taps: Floats, i: int, count: int, rows: Floats, first: int, out: Floats) -> None:
    """The sum of `count` rows from the first on, by the weights of output i, added to zero in their order."""
    if count == 2:  # always so where an image is enlarged, but at its borders
        a, b = taps[i, 0], taps[i, 1]
        for k in range(len(out)):
            out[k] = ZERO + a * rows[first, k] + b * rows[first + 1, k]
        return
    for k in range(len(out)):
        out[k] = ZERO
    for j in range(count):
        weight = taps[i, j]
        for k in range(len(out)):
            out[k] += weight * rows[first + j, k]


@linked
def _clip(value: Float) -> Float:
    return min(max(value, ZERO), ONE)


@linked
def flip(x: Floats, out: Floats) -> None:
    """Mirror, left to right."""
    width = np.uint64(x.shape[2])
    last = width - np.uint64(1)
    for c in range(x.shape[0]):
        for row in range(x.shape[1]):
            for k in range(width):
                out[c, row, k] = x[c, row, last - k]


@linked
def brightness(x: Floats, factor: Float) -> None:
    """Scale by a factor."""
    flat = x.reshape(-1)
    for p in range(len(flat)):
        flat[p] = _clip(factor * flat[p])


@linked
def _luma(r: Float, g: Float, b: Float) -> Float:
    return RED * r + GREEN * g + BLUE * b


@linked
def contrast(x: Floats, factor: Float) -> None:
    """Blend with the mean luminance."""
    planes = x.reshape(len(x), -1)
    red = planes[0]
    total = 0.0
    if len(x) == 1:
        for p in range(len(red)):
            total += float(red[p])
    else:
        green, blue = planes[1], planes[2]
        for p in range(len(red)):
            total += float(_luma(red[p], green[p], blue[p]))
    rest = (ONE - factor) * np.float32(total / len(red))
    flat = x.reshape(-1)
    for p in range(len(flat)):
        flat[p] = _clip(factor * flat[p] + rest)


@linked
def saturation(x: Floats, factor: Float) -> None:
    """Blend with the luminance."""
    if len(x) == 1:
        return  # one channel has none to lose
    planes = x.reshape(len(x), -1)
    red, green, blue = planes[0], planes[1], planes[2]
    for p in range(len(red)):
        r, g, b = red[p], green[p], blue[p]
        rest = (ONE - factor) * _luma(r, g, b)
        red[p], green[p], blue[p] = _clip(factor * r + rest), _clip(factor * g + rest), _clip(factor * b + rest)


@linked
def hue(x: Floats, shift: Float) -> None:
    """Turn the hue by a shift, in turns.

    From hue, saturation and value a channel is V - V S max(0, min(k, 4 - k, 1)), k = (n + 6 H) mod 6 with n = 5, 3, 1
    for red, green, blue: no branch, so that it vectorises.
    """
    if len(x) == 1:
        return  # one channel has none
    planes = x.reshape(len(x), -1)
    red, green, blue = planes[0], planes[1], planes[2]
    for p in range(len(red)):
        r, g, b = red[p], green[p], blue[p]
        high, low = max(max(r, g), b), min(min(r, g), b)
        spread = high - low
        safe = ONE if spread == ZERO else spread
        of_red, of_green, of_blue = high - r, high - g, high - b
        # the sector's start and the two channels that say how far into it; chosen before they are divided
        start = TWO if g == high else FOUR
        more = of_red if g == high else of_green
        less = of_blue if g == high else of_red
        start = ZERO if r == high else start
        more = of_blue if r == high else more
        less = of_green if r == high else less
        sector = start + more / safe - less / safe
        turned = sector / SIX + shift
        turned = SIX * (turned - np.floor(turned))
        red[p] = _channel(high, spread, turned + FIVE)
        green[p] = _channel(high, spread, turned + THREE)
        blue[p] = _channel(high, spread, turned + ONE)


@linked
def _channel(value: Float, spread: Float, k: Float) -> Float:
    k = k - SIX if k >= SIX else k
    return _clip(value - spread * max(ZERO, min(min(k, FOUR - k), ONE)))


@linked
def grayscale(x: Floats) -> None:
    """Give every channel the luminance."""
    if len(x) == 1:
        return
    planes = x.reshape(len(x), -1)
    red, green, blue = planes[0], planes[1], planes[2]
    for p in range(len(red)):
        gray = _luma(red[p], green[p], blue[p])
        red[p], green[p], blue[p] = gray, gray, gray


@linked
def solarise(x: Floats, threshold: Float) -> None:
    """Invert what reaches the threshold."""
    flat = x.reshape(-1)
    for p in range(len(flat)):
        flat[p] = ONE - flat[p] if flat[p] >= threshold else flat[p]


@linked
def _mirrored(i: int, size: int) -> int:
    return -i if i < 0 else (2 * (size - 1) - i if i >= size else i)


@linked
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
def tops(products: Words | Halves, stride: int, found: Floats) -> None:
    """The largest of every few products, none of them nan.

    Args:
        products: (n, m) bits of the products, in single precision or bfloat16.
        stride: of how many.
        found: (n, m / stride rounded up), made here.
    """
    shift = np.uint32(32 - 8 * products.itemsize)  # bfloat16 is single precision's upper half
    for i in range(len(products)):
        _tops(products[i], np.uint64(stride), shift, found[i])


@compiled
def candidates(
    products: Words | Halves, stride: int, tops: Floats, bounds: Floats, first: int, found: tuple[Ints, Ints]
) -> None:
    """Go on collecting the places of all products that reach a bound.

    Args:
        products: (n, m) bits of the products: the next columns.
        stride: see `tops`.
        tops: what it found of them.
        bounds: (n,).
        first: the first column's place.
        found: the places (n, room + stride), rising, and how many of them (n,), -1 once there was no room for them
            all; what is beyond them means nothing.
    """
    places, counts = found
    width, shift, step = np.uint64(products.shape[1]), np.uint32(32 - 8 * products.itemsize), np.uint64(stride)
    least, room = bounds.view(np.int32), np.uint64(places.shape[1] - stride)
    for i in range(len(products)):
        row, bound, low, count, mine = products[i], bounds[i], _ordered(least[i]), counts[i], places[i]
        for block in range(np.uint64(tops.shape[1])):
            if tops[i, block] >= bound and count >= 0:
                place = np.uint64(count)
                for j in range(block * step, min((block + np.uint64(1)) * step, width)):
                    mine[place] = first + np.int64(j)  # stays if it counts: to write is faster than to guess
                    place += np.uint64(_ordered(np.int32(np.uint32(row[j]) << shift)) >= low)
                count = np.int64(place) if place <= room else -1
        counts[i] = count


@compiled
def search(
    products: Words | Halves,
    asked: tuple[Floats, Floats],
    among: tuple[Floats, Doubles],
    first: int,
    found: tuple[Doubles, Ints],
    most: int,
) -> Flags:
    """The row with the largest product for every query, the first of equals, decided in double precision.

    What is given of the products only says which rows the decision is between. Products that are nan or -inf are
    passed over.

    Args:
        products: (n, m) bits of the products, in single precision or bfloat16.
        asked: (n, d) queries, and by how much each one's products may be off once the bias is added (n,), which may be
            infinite.
        among: (m, d) rows of a larger matrix, and the bias (m,) that is added to the products with each.
        first: the first row's place there.
        found: (n,) the largest product so far, -inf at first, and its row's place (n,); both are changed here.
        most: how many rows a decision may be between.

    Returns:
        (n,) the queries that are not decided, since more rows may have the largest product; theirs is unchanged.
    """
    (queries, off), (rows, bias), (best, places) = asked, among, found
    shift, width = np.uint32(32 - 8 * products.itemsize), np.uint64(len(rows))
    added, sums, chosen = bias.astype(np.float32), np.empty(LANES, np.float64), np.empty(len(rows), np.int64)
    words, highs = np.empty(len(rows), np.uint32), np.empty(len(rows) // BLOCK + 1, np.float32)
    values, undecided = words.view(np.float32), np.zeros(len(queries), np.bool_)
    for i in range(len(products)):
        row = products[i]
        for j in range(width):
            words[j] = np.uint32(row[j]) << shift
        for j in range(width):
            values[j] += added[j]
        count = _possible(words, best[i], off[i], chosen, highs)
        undecided[i] = count > most
        if not undecided[i]:
            for j in chosen[:count]:
                product = _dot(queries[i], rows[j], sums) + bias[j]
                if product > best[i]:
                    best[i], places[i] = product, first + j
    return undecided


@linked
def _possible(words: Words, best: float, off: Float, chosen: Ints, highs: Floats) -> int:
    """Choose the values that, each off by so much, may be the largest and more than the best; gives how many.

    `highs` is room for the largest of every block.
    """
    width, step, values = np.uint64(len(words)), np.uint64(BLOCK), words.view(np.float32)
    _tops(words, step, np.uint32(0), highs)
    high = np.float32(-np.inf)
    for value in highs:
        high = max(high, value)
    bound, count = max(best - off, float(high) - 2 * float(off)), 0
    for block in range(np.uint64(len(highs))):
        if not highs[block] < bound:  # a bound that is nan, from infinities, leaves none out
            for j in range(block * step, min((block + np.uint64(1)) * step, width)):
                if not values[j] < bound:
                    chosen[count] = j
                    count += 1
    return count


@linked
def _tops(bits: Words | Halves, step: np.uint64, shift: np.uint32, found: Floats) -> None:
    """The largest of every few of the numbers that have these bits; nan is passed over or is the largest, by its sign.

    They are compared as integers, at places that cannot count from the end: so it runs in vector registers.
    """
    width, made = np.uint64(len(bits)), found.view(np.int32)
    for block in range(np.uint64(len(found))):
        high = LEAST
        for j in range(block * step, min((block + np.uint64(1)) * step, width)):
            high = max(high, _ordered(np.int32(np.uint32(bits[j]) << shift)))
        made[block] = _ordered(high)


@linked
def _ordered(bits: np.int32) -> np.int32:
    """The bits of a number in single precision as an integer that is ordered as numbers are, and back."""
    return bits ^ ((bits >> SIGN) & MAGNITUDE)


@compiled
def add_rows(rows: Floats, places: Ints, sums: Floats) -> None:
    """Add every row (n, d) to the sum (k, d) at its place (n,), in their order: in a third of `index_add_`'s time."""
    width = np.uint64(rows.shape[1])
    for i in range(len(rows)):
        place = np.uint64(places[i])
        for j in range(width):
            sums[place, j] += rows[i, j]


@compiled
def dots(rows: Doubles, queries: Doubles, places: Ints, counts: Ints, products: Doubles) -> None:
    """The products of every query with its own rows, which are gathered nowhere.

    Args:
        rows: (n, d).
        queries: (q, d).
        places: (q, m) of its rows, rising.
        counts: (q,) how many of them are meant.
        products: (q, m); what is beyond a query's count stays as it is.
    """
    sums, done = np.empty(LANES, np.float64), np.zeros(len(queries), np.int64)
    step = max(1, TILE // (rows.shape[1] * rows.itemsize))
    for end in range(step, len(rows) + step, step):
        for i in range(len(queries)):
            j = done[i]
            while j < counts[i] and places[i, j] < end:
                products[i, j] = _dot(queries[i], rows[places[i, j]], sums)
                j += 1
            done[i] = j


@linked
def _dot(a: Doubles | Floats, b: Doubles | Floats, sums: Doubles) -> float:
    whole = len(a) - len(a) % LANES
    sums[:] = 0.0
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            sums[lane] += np.float64(a[start + lane]) * np.float64(b[start + lane])
    total = 0.0
    for value in sums:
        total += value
    for k in range(whole, len(a)):
        total += np.float64(a[k]) * np.float64(b[k])
    return total
