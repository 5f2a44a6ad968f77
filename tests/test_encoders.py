"""Encoders: shapes, where their weights come from, and that extracting leaves them alone."""

import pytest
import torch

from bench.encoders import ENCODERS
from bench.features import Trained, build_encoder, extract


def conv4(width=4, stem_stride=2, seed=0, channels=1):
    config = {"name": "conv4", "options": {"width": width, "stem_stride": stem_stride}}
    return build_encoder(config, channels, seed)


def images(n, side, channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, side, side, channels), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("width", [1, 4, 16])
@pytest.mark.parametrize("stem_stride", [1, 2])
@pytest.mark.parametrize("side", [28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_conv4_gives_dim_numbers_per_image(channels, side, stem_stride, width):
    encoder = conv4(width, stem_stride, channels=channels)
    h = encoder(torch.rand(3, channels, side, side))
    assert h.shape == (3, encoder.dim)
    assert encoder.dim == 32 * width


@pytest.mark.parametrize(("side", "stem_stride", "sides"), [(28, 2, [14, 7, 4, 4]), (32, 1, [32, 16, 8, 8])])
def test_conv4_halves_the_image_block_by_block(side, stem_stride, sides):
    x, found = torch.rand(1, 1, side, side), []
    for block in conv4(stem_stride=stem_stride).blocks:
        x = block(x)
        found.append(x.shape[2])
    assert found == sides


def test_conv4_doubles_its_widths():
    shapes = [tuple(p.shape) for n, p in conv4(width=5, channels=3).named_parameters() if p.ndim == 4]
    assert shapes == [(5, 3, 3, 3), (10, 5, 3, 3), (20, 10, 3, 3), (40, 20, 3, 3)]


def test_a_representation_sees_every_pixel():
    encoder, x = conv4().eval(), torch.rand(64, 1, 28, 28, requires_grad=True)
    (gradient,) = torch.autograd.grad(encoder(x).sum(), x)
    assert (gradient != 0).any(0).all()  # over many images, since one may leave ReLUs at zero


def bits(encoder):
    return [tensor.clone() for tensor in encoder.state_dict().values()]


@pytest.mark.parametrize("name", ENCODERS)
def test_one_seed_gives_the_same_bits_whatever_was_drawn_before(name):
    options = {"conv4": {"width": 4, "stem_stride": 2}}[name]
    torch.manual_seed(1)
    first = bits(build_encoder({"name": name, "options": options}, 3, 7))
    torch.manual_seed(2)
    torch.rand(5)
    again = bits(build_encoder({"name": name, "options": options}, 3, 7))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_another_seed_gives_other_bits():
    assert not torch.equal(conv4(seed=0).blocks[0][0].weight, conv4(seed=1).blocks[0][0].weight)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
def test_extracting_changes_no_bit_and_no_mode_of_the_encoder(training):
    encoder = conv4().train(training)
    encoder(torch.rand(8, 1, 28, 28))  # normalisation statistics that are not the initial ones
    before = bits(encoder)
    extract(encoder, images(5, 28, 1))
    assert encoder.training is training
    assert all(torch.equal(a, b) for a, b in zip(before, bits(encoder), strict=True))


def test_extracted_features_are_those_of_clean_images_in_eval_mode():
    encoder, x = conv4(channels=3), images(6, 32, 3)
    h = extract(encoder, x)
    wanted = encoder.eval()(x.permute(0, 3, 1, 2).float() / 255)
    assert not h.requires_grad
    # the same operations on another memory layout: float32 round-off of sums over 288 products
    torch.testing.assert_close(h, wanted.detach(), rtol=1e-5, atol=1e-5)


def test_features_do_not_depend_on_where_chunks_end():
    encoder, x = conv4(), images(300, 28, 1)
    # 256 images at a time: the first chunk is whole both times
    assert torch.equal(extract(encoder, x)[:256], extract(encoder, x[:256]))


def test_raw_pixels_are_features_too():
    x = images(4, 8, 3)
    features = Trained(None).features(x)
    assert torch.equal(features, x.permute(0, 3, 1, 2).flatten(1).float() / 255)


def test_features_elsewhere_are_refused():
    with pytest.raises(ValueError, match="features at 'z' are not there; allowed: h"):
        Trained(None).features(images(1, 8, 1), at="z")
