"""Views: every op against torchvision's, the crop rule against a naive loop, and what a view depends on."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from torchvision.transforms import RandomResizedCrop

from bench import kernels
from bench.augment import OPS, crop_boxes, make_views, to_float
from bench.random import Address

CLOSE = 1e-5  # the promise; both sides are float32 in [0, 1] and differ in their order of operations
STRONG = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2, "p": 0.8}
CROP = {"scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3]}


def photos(n, side, channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, side, side, channels), generator=generator, dtype=torch.uint8)


def address(n, **parts):
    return Address(**{"seed": 1, "purpose": "views", "images": np.arange(n) * 3 + 2, "epoch": 2, **parts})


def recipe(size, *ops, count=1):
    return {"views": [{"role": "global", "count": count, "size": size, "ops": list(ops)}]}


def adjusted(kernel, x, factors):
    """The kernel works in place, on one image."""
    made = x.clone()
    for image, factor in zip(made, factors, strict=True):
        kernel(image.numpy(), np.float32(factor))
    return made


def resized_crop(x, boxes, size):
    made = torch.empty(len(x), x.shape[1], size, size)
    for image, (top, left, height, width), out in zip(x, boxes, made, strict=True):
        crop = image[:, top : top + height, left : left + width].permute(1, 2, 0).contiguous()
        kernels.resize(crop.numpy(), height, width, kernels.new_filters(max(height, width), size), out.numpy())
    return made


def assert_close(given, wanted):
    torch.testing.assert_close(given, wanted, rtol=0, atol=CLOSE)


BOXES = {
    "whole": lambda h, w: (0, 0, h, w),
    "first_pixel": lambda h, w: (0, 0, 1, 1),
    "last_pixel": lambda h, w: (h - 1, w - 1, 1, 1),
    "one_row": lambda h, w: (h // 2, 0, 1, w),
    "one_column": lambda h, w: (0, w // 2, h, 1),
    "middle": lambda h, w: (h // 3, w // 3, max(1, h // 2), max(1, w // 2)),
    "lower_right": lambda h, w: (h // 4, w // 5, h - h // 4, w - w // 5),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 7, 28, 64])
@pytest.mark.parametrize("shape", [(28, 28), (32, 20), (5, 64), (1, 1), (90, 3)], ids=str)
def test_resized_crop_equals_torchvisions(shape, size, channels):
    boxes = [box(*shape) for box in BOXES.values()]  # a batch in which every image has its own
    x = torch.rand(len(boxes), channels, *shape, generator=torch.Generator().manual_seed(0))
    wanted = [F.resized_crop(x[i], *box, [size, size], antialias=True) for i, box in enumerate(boxes)]
    assert_close(resized_crop(x, boxes, size), torch.stack(wanted))


def test_resizing_the_whole_image_to_its_own_size_changes_no_bit():
    x = to_float(photos(4, 28, 3))
    assert torch.equal(resized_crop(x.contiguous(), [(0, 0, 28, 28)] * 4, 28), x)


def palette(channels):
    """Random images, and the colours at which a hue has no direction or a channel is at its limit."""
    x = torch.rand(11, channels, 6, 6, generator=torch.Generator().manual_seed(0))
    if channels == 3:
        colours = [
            (0, 0, 0),
            (1, 1, 1),
            (0.5, 0.5, 0.5),
            (1, 0, 0),
            (0, 1, 0),
            (0, 0, 1),
            (1, 0, 1),
            (1, 1, 0),
        ]
        x[:8] = torch.tensor(colours)[..., None, None]
        x[8] = x[8, :1]  # gray pixels of many levels
        x[9, 2] = x[9, 1]  # two channels agree, as at the border of two sectors
    else:
        x[:3] = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None]
    return x


ADJUSTMENTS = {
    "brightness": (kernels.brightness, F.adjust_brightness, [0, 0.6, 1, 1.4, 3]),
    "contrast": (kernels.contrast, F.adjust_contrast, [0, 0.6, 1, 1.4, 3]),
    "saturation": (kernels.saturation, F.adjust_saturation, [0, 0.6, 1, 1.4, 3]),
    # -1e-9 is where the remainder rounds to a whole turn
    "hue": (kernels.hue, F.adjust_hue, [-0.5, -0.2, -1e-9, 0, 1e-9, 1 / 6, 1 / 3, 0.5]),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("op", "reference", "factors"), ADJUSTMENTS.values(), ids=ADJUSTMENTS)
def test_an_adjustment_equals_torchvisions(op, reference, factors, channels):
    x = palette(channels)
    for shift in range(len(factors)):
        own = [factors[(i + shift) % len(factors)] for i in range(len(x))]  # each image has its own factor
        wanted = torch.stack([reference(image, factor) for image, factor in zip(x, own, strict=True)])
        assert_close(adjusted(op, x, own), wanted)


def test_grayscale_equals_torchvisions():
    x, made = palette(3), palette(3)
    for image in made:
        kernels.grayscale(image.numpy())
    assert_close(made, F.rgb_to_grayscale(x, 3))


def test_clean_images_are_the_bytes_over_255():
    x = photos(2, 5, 3)
    assert_close(to_float(x), torch.stack([F.to_dtype(i.permute(2, 0, 1), torch.float32, True) for i in x]))


def naive_box(u, height, width, scale, ratio):
    """One image's turn of RandomResizedCrop.get_params; None where it falls back."""
    for attempt in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u[2 * attempt])
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * u[2 * attempt + 1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [math.floor(u[20] * (height - h + 1)), math.floor(u[21] * (width - w + 1)), h, w]
    return None


RULES = {
    "usual": (28, 28, [0.3, 1.0], [3 / 4, 4 / 3]),
    "small_crops": (32, 32, [0.001, 0.05], [1 / 3, 3.0]),
    "wide_image": (10, 60, [0.2, 1.0], [3 / 4, 4 / 3]),
    "tall_image": (60, 10, [0.2, 1.0], [3 / 4, 4 / 3]),
    "often_falls_back": (28, 28, [0.95, 1.0], [1 / 3, 3.0]),
    "always_the_whole": (28, 28, [1.0, 1.0], [1.0, 1.0]),
    "one_pixel": (1, 1, [0.3, 1.0], [3 / 4, 4 / 3]),
}


@pytest.mark.parametrize(("height", "width", "scale", "ratio"), RULES.values(), ids=RULES)
def test_crops_follow_torchvisions_rule(height, width, scale, ratio):
    u = np.random.default_rng(0).uniform(size=(400, 22))
    boxes = crop_boxes(u, height, width, scale, ratio)
    wanted = [naive_box(row, height, width, scale, ratio) for row in u]
    central = list(RandomResizedCrop.get_params(torch.zeros(1, height, width), [4.0, 4.0], list(ratio)))
    assert boxes.tolist() == [central if box is None else box for box in wanted]


def test_the_rule_meets_both_outcomes():
    u = np.random.default_rng(0).uniform(size=(400, 22))
    fallen = [naive_box(row, *RULES["often_falls_back"]) is None for row in u]
    assert 0 < sum(fallen) < 400


@pytest.mark.parametrize("ratio", [[3.0, 4.0], [0.2, 0.3], [0.5, 2.0]], ids=str)
@pytest.mark.parametrize(("height", "width"), [(28, 28), (7, 50), (50, 7)])
def test_a_crop_that_never_fits_is_torchvisions_central_one(height, width, ratio):
    never = [4.0, 4.0]  # four times the image's area
    wanted = RandomResizedCrop.get_params(torch.zeros(1, height, width), never, ratio)
    boxes = crop_boxes(np.full((2, 22), 0.5), height, width, never, ratio)
    assert boxes.tolist() == [list(wanted)] * 2


def naive_jitter(image, u, options):
    """torchvision's functional ops on one image, in the order of its last four numbers."""
    if u[0] >= options["p"]:
        return image
    bounds = {name: (max(0, 1 - options[name]), 1 + options[name]) for name in ADJUSTMENTS}
    bounds["hue"] = (-options["hue"], options["hue"])
    for number in sorted(range(4), key=lambda i: u[5 + i]):
        name = list(ADJUSTMENTS)[number]
        low, high = bounds[name]
        image = ADJUSTMENTS[name][1](image, low + (high - low) * u[1 + number])
    return image


JITTERS = {
    "strong": STRONG,
    "always": STRONG | {"p": 1.0},
    "never": STRONG | {"p": 0.0},
    "factors_from_0": {"brightness": 1.5, "contrast": 1.0, "saturation": 2.0, "hue": 0.5, "p": 1.0},
    "hue_alone": {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.5, "p": 1.0},
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", JITTERS.values(), ids=JITTERS)
def test_jitter_applies_its_ops_in_the_addressed_order(options, channels):
    images, u = photos(40, 9, channels), address(40).uniform("jitter", 9)
    (views,) = make_views(recipe(9, {"jitter": options}), images, address(40))
    pairs = zip(to_float(images), u, strict=True)
    assert_close(views, torch.stack([naive_jitter(image, row, options) for image, row in pairs]))


def test_jitters_order_matters_and_every_order_comes():
    orders = {tuple(row[5:].argsort()) for row in address(400).uniform("jitter", 9)}
    assert len(orders) == math.factorial(4)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_recipe_equals_torchvisions_ops_one_by_one(channels):
    images, place = photos(40, 30, channels), address(40)
    ops = [{"crop": CROP}, {"flip": {"p": 0.5}}, {"jitter": STRONG}, {"grayscale": {"p": 0.3}}]
    (views,) = make_views(recipe(24, *ops), images, place)
    drawn = {op: place.uniform(op, 22) for op in ("crop", "flip", "jitter", "grayscale")}
    for i, image in enumerate(to_float(images)):
        box = naive_box(drawn["crop"][i], 30, 30, **CROP)
        x = F.resized_crop(image, *box, [24, 24])
        x = F.horizontal_flip(x) if drawn["flip"][i, 0] < 0.5 else x
        x = naive_jitter(x, drawn["jitter"][i], STRONG)
        x = F.rgb_to_grayscale(x, channels) if drawn["grayscale"][i, 0] < 0.3 else x
        assert_close(views[i], x)


def test_flip_with_certainty_mirrors_and_without_chance_does_nothing():
    images = photos(5, 12, 3)
    (never,) = make_views(recipe(12, {"flip": {"p": 0.0}}), images, address(5))
    (always,) = make_views(recipe(12, {"flip": {"p": 1.0}}), images, address(5))
    assert torch.equal(never, to_float(images))
    assert torch.equal(always, F.horizontal_flip(to_float(images)))


def test_grayscale_with_certainty_has_three_equal_channels():
    (views,) = make_views(recipe(12, {"grayscale": {"p": 1.0}}), photos(5, 12, 3), address(5))
    assert_close(views, F.rgb_to_grayscale(to_float(photos(5, 12, 3)), 3))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kernel", "low", "high"), [(1, 1.0, 1.0), (3, 0.1, 2.0), (9, 0.3, 5.0)], ids=str)
def test_blur_equals_torchvisions(kernel, low, high, channels):
    images, u = photos(20, 12, channels), address(20).uniform("blur", 2)
    options = {"kernel": kernel, "sigma": [low, high], "p": 0.5}
    (views,) = make_views(recipe(12, {"blur": options}), images, address(20))
    for view, image, (chance, where) in zip(views, to_float(images), u, strict=True):
        sigma = low + (high - low) * where
        assert_close(view, F.gaussian_blur(image, [kernel] * 2, [sigma] * 2) if chance < 0.5 else image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("threshold", [0.0, 128 / 255, 0.6, 1.0])
def test_solarise_equals_torchvisions(threshold, channels):
    images, u = photos(20, 12, channels), address(20).uniform("solarise", 1)
    (views,) = make_views(recipe(12, {"solarise": {"threshold": threshold, "p": 0.5}}), images, address(20))
    for view, image, (chance,) in zip(views, to_float(images), u, strict=True):
        assert_close(view, F.solarize(image, threshold) if chance < 0.5 else image)


def test_every_op_is_compared_with_torchvisions():
    assert set(OPS) == {"crop", "flip", "jitter", "grayscale", "blur", "solarise"}


def test_an_op_that_stands_twice_draws_anew():
    images, place = photos(40, 6, 1), address(40)
    (views,) = make_views(recipe(6, {"flip": {"p": 0.5}}, {"flip": {"p": 0.5}}), images, place)
    first, second = (place.uniform(op, 1)[:, 0] < 0.5 for op in ("flip", "flip1"))
    mirrored = torch.from_numpy(first != second)[:, None, None, None]
    assert 0 < mirrored.sum() < 40
    assert torch.equal(views, torch.where(mirrored, to_float(images).flip(3), to_float(images)))


def test_an_op_more_moves_no_number_of_the_others():
    images = photos(8, 28, 3)
    (alone,) = make_views(recipe(20, {"crop": CROP}), images, address(8))
    (beside,) = make_views(recipe(20, {"crop": CROP}, {"flip": {"p": 0.0}}), images, address(8))
    assert torch.equal(alone, beside)


def test_a_recipe_without_a_crop_resizes_the_whole_image():
    images = photos(3, 30, 3)
    for ops in ([], [{"flip": {"p": 0.0}}]):
        (views,) = make_views(recipe(17, *ops), images, address(3))
        assert_close(views, F.resize(to_float(images), [17, 17], antialias=True))


FULL = [
    {"crop": CROP},
    {"flip": {"p": 0.5}},
    {"jitter": STRONG},
    {"grayscale": {"p": 0.2}},
    {"blur": {"kernel": 3, "sigma": [0.1, 2.0], "p": 0.5}},
    {"solarise": {"threshold": 0.5, "p": 0.2}},
]
SIDES = {"same_size": (28, 28), "smaller": (45, 28), "larger": (20, 32), "large_image": (96, 30)}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "size"), SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("rows", [[7, 2], [8, 8, 0], [*range(16, -1, -1)]], ids=["two", "repeated", "reversed"])
def test_a_view_does_not_depend_on_its_batch(rows, side, size, channels):
    images, place = photos(17, side, channels), address(17)
    part = address(len(rows), images=place.images[rows])
    wholes = make_views(recipe(size, *FULL, count=2), images, place)
    parts = make_views(recipe(size, *FULL, count=2), images[rows], part)
    for whole, some in zip(wholes, parts, strict=True):
        assert torch.equal(whole[rows], some)


ONE_BY_ONE = [
    pytest.param(28, 28, 1, id="digits"),
    pytest.param(32, 32, 3, id="multiples_of_16"),
    pytest.param(
        45,
        28,
        3,
        id="other_sizes_in_colour",
    ),
]


@pytest.mark.parametrize(("side", "size", "channels"), ONE_BY_ONE)
def test_a_view_made_alone_is_the_view_made_in_a_batch(side, size, channels):
    images, place = photos(33, side, channels), address(33)
    (whole,) = make_views(recipe(size, *FULL), images, place)
    for i in range(33):
        alone = address(1, images=place.images[i : i + 1])
        assert torch.equal(make_views(recipe(size, *FULL), images[i : i + 1], alone)[0][0], whole[i])


ELSEWHERE = {
    "seed": {"seed": 2},
    "epoch": {"epoch": 3},
    "occurrence": {"occurrence": np.ones(40, dtype=np.int64)},
    "image": {"images": np.arange(40) + 200},
}


@pytest.mark.parametrize("op", FULL, ids=lambda op: next(iter(op)))
@pytest.mark.parametrize("change", ELSEWHERE.values(), ids=ELSEWHERE)
def test_another_address_shows_another_view(change, op):
    images = photos(1, 28, 3).expand(40, -1, -1, -1)  # of forty draws by chance some differ
    given = make_views(recipe(28, op), images, address(40))[0]
    assert not torch.equal(given, make_views(recipe(28, op), images, address(40, **change))[0])


def test_views_of_one_image_differ_and_repeat():
    images = photos(6, 28, 3)
    first = make_views(recipe(28, *FULL, count=3), images, address(6))
    again = make_views(recipe(28, *FULL, count=3), images, address(6))
    for view in range(3):
        assert torch.equal(first[view], again[view])
        assert not torch.equal(first[view], first[view - 1])


@pytest.mark.parametrize("channels", [1, 3])
def test_views_have_the_recipes_sizes_in_order(channels):
    views = [{"role": "global", "count": 2, "size": 28, "ops": FULL}]
    views += [{"role": "local", "count": 3, "size": 12, "ops": FULL[:1]}]
    made = make_views({"views": views}, photos(5, 32, channels), address(5))
    assert [tuple(view.shape) for view in made] == [(5, channels, 28, 28)] * 2 + [(5, channels, 12, 12)] * 3
    for view in made:
        assert view.dtype == torch.float32
        assert view.is_contiguous(memory_format=torch.channels_last)


LEVELS = {"black": [0, 0], "white": [255, 255], "extremes": [0, 255]}


@pytest.mark.parametrize("ops", [FULL, FULL[:1]], ids=["full", "crop_alone"])
@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_views_stay_within_zero_and_one(levels, ops):
    images = torch.tensor(levels, dtype=torch.uint8)[photos(30, 96, 3).long() % 2]
    (views,) = make_views(recipe(28, *ops), images, address(30))
    # a crop's weights sum to 1 within float32's round-off, and torchvision's crops exceed 1 by as much
    assert -1e-6 < views.min()
    assert views.max() < 1 + 1e-6


def test_views_of_an_asymmetric_recipe_have_their_own_ops_and_numbers():
    images, place = photos(6, 28, 1), address(6)
    inverted = {"solarise": {"threshold": 0.0, "p": 1.0}}
    first, second = ({"role": "global", "count": 1, "size": 28, "ops": ops} for ops in ([], [inverted]))
    plain, solarised = make_views({"views": [first, second]}, images, place)
    assert torch.equal(plain, to_float(images))
    assert_close(solarised, 1 - plain)
    crops = {"role": "global", "count": 2, "size": 28, "ops": [{"crop": {"scale": [0.2, 1.0], "ratio": [0.75, 1.33]}}]}
    alone = make_views({"views": [crops]}, images, place)
    after = make_views({"views": [first, crops]}, images, place)
    assert torch.equal(after[1], alone[1])  # the view's position is its address, whatever stands before it
