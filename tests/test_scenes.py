"""Scenes: digits composited by address, whose colours are a shortcut and no hint of the class."""

import colorsys
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy._core._multiarray_umath import __cpu_dispatch__
from scipy.stats import chi2_contingency, chisquare

from bench.data import READERS
from bench.data.content import checksum
from bench.data.readers import scenes
from bench.data.source import DataError
from bench.data.splits import SEED
from bench.params import check_options
from bench.random import Address

OPTIONS = {"test": 1_000, "hues": 3, "spread": 0.1, "texture": 0.05}
LOOKS = {name: OPTIONS[name] for name in ("hues", "spread", "texture")}
# of numpy's type, shape and all bytes; another one moves the key of every cell that sees scenes
GOLDEN = "f782625ed1f3dd98aebc27051b366184749e44405252f9806478eed8491db605"
IDS = np.arange(5_000)
INK = np.full((5_000, 28, 28, 1), 255, dtype=np.uint8)  # digits that fill their square


@pytest.fixture(scope="module")
def made():
    return READERS["scenes"](**OPTIONS)


@pytest.fixture(scope="module")
def digits():
    return READERS["embedded_mnist"](test=1_000)


@pytest.fixture(scope="module")
def backgrounds():
    """(5000, 28, 28, 3) the scenes without their digits."""
    return scenes.composite(0 * INK, IDS, **LOOKS)


@pytest.fixture(scope="module")
def squares(backgrounds):
    """(5000, 3) top, left and side of each digit's square, read off scenes whose digits fill it."""
    covered = (scenes.composite(INK, IDS, **LOOKS) != backgrounds).any(3)
    rows, columns = covered.any(2), covered.any(1)
    np.testing.assert_array_equal(covered, rows[:, :, None] & columns[:, None])
    np.testing.assert_array_equal(rows.sum(1), columns.sum(1))
    return np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1)], axis=1)


@pytest.fixture(scope="module")
def hues(backgrounds):
    """(5000,) in turns."""
    return np.array([colorsys.rgb_to_hsv(*colour)[0] for colour in backgrounds.mean((1, 2)) / 255])


def test_the_bytes_are_those_that_were_recorded(made):
    assert made.images.shape == (5_000, 28, 28, 3)
    assert checksum(made.images) == GOLDEN
    assert checksum(READERS["scenes"](**OPTIONS).images) == GOLDEN


def test_the_bytes_do_not_depend_on_the_instructions_of_the_cpu():
    script = (
        "from bench.data import READERS; from bench.data.content import checksum\n"
        f"print(checksum(READERS['scenes'](**{OPTIONS}).images))"
    )
    old = {"NPY_DISABLE_CPU_FEATURES": " ".join(__cpu_dispatch__), "OPENBLAS_CORETYPE": "Prescott"}
    path = str(Path(__file__).resolve().parents[1])
    found = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **old, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert found.stdout.strip() == GOLDEN, found.stderr


def test_labels_and_split_are_those_of_the_digits(made, digits):
    np.testing.assert_array_equal(made.labels, digits.labels)
    np.testing.assert_array_equal(made.test, digits.test)
    assert (made.classes, made.metric) == (digits.classes, digits.metric)
    np.testing.assert_array_equal(READERS["scenes"](**OPTIONS | {"test": 70}).images, made.images)


def test_a_set_says_that_it_is_composited(made):
    assert made.notes == ("composited by address from the digits of embedded_mnist: not photographs",)


@pytest.mark.parametrize(
    "rows",
    [np.array([4_321]), np.arange(4_999, -1, -7), np.array([5, 5, 0]), np.arange(249, 252)],
    ids=["one", "backwards", "repeated", "across_blocks"],
)
def test_a_scene_depends_on_its_own_row_alone(made, digits, rows):
    np.testing.assert_array_equal(scenes.composite(digits.images[rows], rows, **LOOKS), made.images[rows])


def test_no_two_scenes_are_equal(made):
    assert len({image.tobytes() for image in made.images}) == 5_000


@pytest.mark.parametrize("looks", [LOOKS, {"hues": 7, "spread": 1.0, "texture": 0.08}], ids=["usual", "wild"])
def test_a_digit_is_brighter_than_its_background(digits, looks):
    background = scenes.composite(0 * INK, IDS, **looks)
    full = scenes.composite(INK, IDS, **looks)
    covered = (full != background).any(3)
    darkest = np.where(covered[..., None], full, 255).min((1, 2, 3))
    assert (darkest > background.max((1, 2, 3))).all()  # every channel of full ink above every one behind it
    whole = scenes.composite(digits.images, IDS, **looks)
    assert (whole >= background).all()
    rise = whole.max((1, 2)).astype(int) - background.max((1, 2))
    assert (rise > 0).all()  # of each channel, in each scene


def test_digits_are_20_to_28_pixels_anywhere_in_the_frame(squares):
    top, left, side = squares.T
    assert set(side) == set(range(20, 29))
    assert chisquare(np.bincount(side)[20:]).pvalue > 0.01
    for start in (top, left):
        assert ((start >= 0) & (start + side <= 28)).all()
        assert set(start[side == 20]) == set(range(9))
        assert chisquare(np.bincount(start[side == 24])).pvalue > 0.01


def test_digits_are_resized_as_torch_does_with_antialiasing(digits, squares):
    ids = IDS[::50]
    placed = scenes._placed(Address(SEED, "scenes", ids), digits.images[ids, :, :, 0])
    for row, found in zip(ids, placed, strict=True):
        top, left, side = squares[row]
        source = torch.from_numpy(digits.images[row, :, :, 0]).double()[None, None] / 255
        wanted = np.zeros((28, 28))
        resized = torch.nn.functional.interpolate(source, (side, side), mode="bilinear", antialias=True)
        wanted[top : top + side, left : left + side] = resized
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_colours_are_those_of_colorsys():
    hsv = np.random.default_rng(0).random((500, 3)) * [4, 1, 1] - [2, 0, 0]  # hues of any turn
    wanted = [colorsys.hsv_to_rgb(h % 1, s, v) for h, s, v in hsv]
    np.testing.assert_allclose(scenes._rgb(hsv), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_hues_lie_in_as_many_clusters_as_asked_for(count, spread):
    background = scenes.composite(0 * INK, IDS, hues=count, spread=spread, texture=0.0)
    hues = np.array([colorsys.rgb_to_hsv(*colour)[0] for colour in background[:, 0, 0] / 255.0])
    away = (hues * count + 0.5) % 1 - 0.5  # from the nearest cluster, in distances between clusters
    rounding = 0.005 * count  # of colours to bytes, in turns: .5 / (6 * 255 * .2 * .6)
    assert (np.abs(away) <= spread / 2 + rounding).all()
    assert np.abs(away).max() >= 0.95 * spread / 2
    shares = np.bincount(np.rint(hues * count).astype(int) % count) / 5_000
    np.testing.assert_allclose(shares, 1 / count, rtol=0, atol=0.03)  # four standard deviations


def test_a_digit_has_about_the_opposite_hue(backgrounds, hues):
    full = scenes.composite(INK, IDS, **LOOKS)[:, 13, 13] / 255.0  # a digit of 20 pixels or more covers the middle
    opposite = np.array([colorsys.rgb_to_hsv(*colour)[0] for colour in full])
    away = (opposite - hues) % 1 - 0.5
    assert np.abs(away).max() < 0.06  # spread / hues, and .5 / (6 * 255 * .8 * .1) for each of two channels' rounding
    assert np.abs(away).std() > 0.003


def test_backgrounds_are_smooth_and_as_rough_as_asked_for():
    values = [scenes.composite(0 * INK, IDS, **LOOKS | {"texture": t}).max(3).astype(int) for t in (0.0, 0.05)]
    assert (values[0] == values[0][:, :1, :1]).all()
    moved = values[1] - values[0]
    for most in (moved.max(), -moved.min()):
        assert 0.95 * 0.05 * 255 <= most <= 0.05 * 255 + 1
    for axis in (1, 2):  # from -texture to texture takes a knot's distance, 27 / 4 pixels
        assert np.abs(np.diff(values[1], axis=axis)).max() <= 2 * 0.05 * 255 * 4 / 27 + 1
    assert (moved.std((1, 2)) > 1).all()


def test_without_a_spread_and_a_texture_there_is_one_background_per_hue():
    background = scenes.composite(0 * INK, IDS, hues=3, spread=0.0, texture=0.0)
    assert (background == background[:, :1, :1]).all()
    assert len(np.unique(background[:, 0, 0], axis=0)) == 3


def chance(one, other):
    """The chi-square test's probability of two columns of whole numbers that have nothing to do with each other."""
    table = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(table, (one, other), 1)
    return chi2_contingency(table).pvalue


def test_nothing_but_the_digit_tells_its_class(digits, squares, hues, backgrounds):
    fifths = [np.searchsorted(np.quantile(v, [0.2, 0.4, 0.6, 0.8]), v) for v in backgrounds.mean((1, 2)).T]
    top, left, side = squares.T
    for seen in (np.rint(hues * 3).astype(int) % 3, top, left, side - 20, *fifths):
        assert chance(digits.labels, seen) > 0.005  # of seven looks one in thirty by chance


def test_the_hue_says_nothing_of_the_digits_place(squares, hues):
    top, left, side = squares.T
    for seen in (top, left, side - 20):
        assert chance(np.rint(hues * 3).astype(int) % 3, seen) > 0.01


BAD = {
    "no_test_row": ({"test": 0}, "test: "),
    "no_hue": ({"hues": 0}, "hues: "),
    "half_a_hue": ({"hues": 1.5}, "hues: "),
    "a_spread_above_all": ({"spread": 1.1}, "spread: "),
    "a_spread_below_none": ({"spread": -0.1}, "spread: "),
    "a_texture_below_none": ({"texture": -0.1}, "texture: "),
    "an_unknown_option": ({"polarity": "fixed"}, "polarity: "),
}


@pytest.mark.parametrize(("change", "told"), BAD.values(), ids=BAD)
def test_an_option_out_of_its_bounds_is_refused_before_anything_is_read(change, told):
    assert check_options(READERS, "x", "scenes", OPTIONS) == []
    (line,) = check_options(READERS, "x", "scenes", OPTIONS | change)
    assert told in line


@pytest.mark.parametrize("texture", [0.09, 0.5])
def test_a_texture_that_may_outshine_a_digit_is_refused(texture):
    with pytest.raises(DataError, match=rf"texture wants less than 0.09, .* not {texture}"):
        READERS["scenes"](**OPTIONS | {"texture": texture})


def test_a_test_split_of_everything_is_refused():
    with pytest.raises(DataError, match="fewer than the 5000 digits, not 5000"):
        READERS["scenes"](**OPTIONS | {"test": 5_000})
