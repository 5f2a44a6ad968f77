"""Encoders: shapes, where their weights come from, and that extracting leaves them alone."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from bench.build import build_encoder
from bench.encoders import ENCODERS
from bench.encoders.layers import pool_to
from bench.encoders.sobel import Sobel
from bench.features import Trained, extract
from bench.registry import ROOT

# Every encoder has a row: options that keep it small. The contract below runs on it with 1 and 3 channels.
OPTIONS = {
    "alexnet_bn": {"sobel": True, "pooled": 2, "fc_width": 8},
    "conv4": {"width": 4, "blocks": 4, "stem_stride": 2, "sobel": False},
    "resnet18": {"stem": "small", "zero_init_residual": False},
    "resnet50": {"stem": "small", "zero_init_residual": False},
    "vgg16_bn": {"sobel": True, "pooled": 2, "fc_width": 8},
}
SIDE = 8  # pixels, where the encoder takes so few


def build(name, channels, seed=0, **others):
    if name not in OPTIONS:
        pytest.fail(f"encoder '{name}' has no row in OPTIONS of tests/test_encoders.py; add small options for it")
    return build_encoder({"name": name, "options": OPTIONS[name] | others}, channels, seed)


def on_meta(name, channels=3, **options):
    """The encoder without memory for its weights, for shapes and counts at full size."""
    with torch.device("meta"):
        return build_encoder({"name": name, "options": options}, channels, 0)


def conv4(width=4, stem_stride=2, blocks=4, seed=0, channels=1, sobel=False):
    return build("conv4", channels, seed, width=width, blocks=blocks, stem_stride=stem_stride, sobel=sobel)


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


def test_conv4_with_sobel_filters_sees_no_colour():
    encoder = conv4(channels=3, sobel=True).eval()
    x = torch.rand(2, 3, 28, 28)
    torch.testing.assert_close(encoder(x), encoder(x[:, [2, 0, 1]]))
    assert encoder.blocks[0][0].in_channels == 2
    assert not torch.allclose(conv4(channels=3).eval()(x), conv4(channels=3).eval()(x[:, [2, 0, 1]]))


def test_conv4_doubles_its_widths():
    shapes = [tuple(p.shape) for n, p in conv4(width=5, channels=3).named_parameters() if p.ndim == 4]
    assert shapes == [(5, 3, 3, 3), (10, 5, 3, 3), (20, 10, 3, 3), (40, 20, 3, 3)]


def test_a_representation_sees_every_pixel():
    encoder, x = conv4().eval(), torch.rand(64, 1, 28, 28, requires_grad=True)
    (gradient,) = torch.autograd.grad(encoder(x).sum(), x)
    assert (gradient != 0).any(0).all()  # over many images, since one may leave ReLUs at zero


def bits(encoder):
    return [tensor.clone() for tensor in encoder.state_dict().values()]


def rand(encoder, channels, side=SIDE):
    side = max(side, encoder.smallest)
    return torch.rand(3, channels, side, side, generator=torch.Generator().manual_seed(1))


def every_encoder(test):
    return pytest.mark.parametrize("name", ENCODERS)(pytest.mark.parametrize("channels", [1, 3])(test))


@every_encoder
def test_an_encoder_gives_dim_numbers_per_image(name, channels):
    encoder = build(name, channels)
    h = encoder(rand(encoder, channels))
    assert h.shape == (3, encoder.dim)
    assert h.isfinite().all()


@every_encoder
def test_one_seed_gives_the_same_bits_whatever_was_drawn_before(name, channels):
    torch.manual_seed(1)
    first = bits(build(name, channels, 7))
    torch.manual_seed(2)
    torch.rand(5)
    again = bits(build(name, channels, 7))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@every_encoder
def test_a_gradient_reaches_every_parameter(name, channels):
    encoder = build(name, channels).eval()  # while training, normalisation cancels the biases before it
    encoder(rand(encoder, channels)).square().sum().backward()
    without = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@every_encoder
def test_extracting_changes_no_weight_and_no_statistic_of_an_encoder(name, channels):
    encoder = build(name, channels)
    encoder(rand(encoder, channels))  # normalisation statistics that are not the initial ones
    before = bits(encoder)
    extract(encoder, images(3, max(SIDE, encoder.smallest), channels))
    assert encoder.training
    assert all(torch.equal(a, b) for a, b in zip(before, bits(encoder), strict=True))


@every_encoder
def test_an_encoder_gives_the_same_in_channels_last(name, channels):
    encoder = build(name, channels).eval()
    with torch.no_grad():
        x = rand(encoder, channels)
        h = encoder(x)
        again = encoder.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    # the same products in another order: float32 round-off over up to 53 layers
    torch.testing.assert_close(again, h, rtol=1e-4, atol=1e-4 * h.abs().max().item())


@every_encoder
def test_an_encoder_takes_images_from_its_smallest_side_on(name, channels):
    encoder, smallest = build(name, channels), ENCODERS.component(name).load().smallest
    with torch.no_grad():
        assert encoder(rand(encoder, channels, side=smallest)).shape == (3, encoder.dim)
        if smallest > 1:
            with pytest.raises(RuntimeError, match="too small"):
                encoder(torch.rand(3, channels, smallest - 1, smallest - 1))


@pytest.mark.parametrize("name", ENCODERS)
def test_the_smallest_side_is_known_without_importing_the_encoder(name):
    component = ENCODERS.component(name)
    assert component.constant("smallest", 1) == component.load().smallest


def test_an_encoder_without_a_row_is_told_where_to_add_one(monkeypatch):
    monkeypatch.delitem(OPTIONS, "conv4")
    with pytest.raises(pytest.fail.Exception, match="encoder 'conv4' has no row in OPTIONS"):
        build("conv4", 1)


def test_listing_encoders_and_their_options_imports_neither_torch_nor_torchvision():
    code = (
        "import sys; from bench.encoders import ENCODERS; [ENCODERS.component(n).option_types() for n in ENCODERS]; "
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


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


RESNETS = {"resnet18": (models.resnet18, 11_176_512), "resnet50": (models.resnet50, 23_508_032)}


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", RESNETS)
def test_a_resnet_has_the_weights_of_torchvisions_without_fc(name):
    constructor, published = RESNETS[name]
    with torch.device("meta"):
        theirs = constructor(weights=None)
    ours = on_meta(name, stem="imagenet", zero_init_residual=False)
    assert count(ours) == count(theirs) - count(theirs.fc) == published
    wanted = {f"trunk.{k}": t.shape for k, t in theirs.state_dict().items() if not k.startswith("fc.")}
    assert {k: t.shape for k, t in ours.state_dict().items()} == wanted


def test_a_resnet_with_torchvisions_state_gives_what_torchvisions_does_before_fc():
    torch.manual_seed(0)
    theirs = models.resnet18(weights=None).eval()
    state = {f"trunk.{k}": t for k, t in theirs.state_dict().items() if not k.startswith("fc.")}
    ours = build("resnet18", 3, stem="imagenet").eval()
    ours.load_state_dict(state)
    theirs.fc = nn.Identity()
    x = torch.rand(2, 3, 64, 64)
    # the last average is taken by another kernel
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("stem", "side", "sides"), [("small", 32, [32, 16, 8, 4]), ("imagenet", 224, [56, 28, 14, 7])])
@pytest.mark.parametrize("name", RESNETS)
def test_a_stem_gives_the_first_stage_its_side(name, stem, side, sides):
    trunk = on_meta(name, stem=stem, zero_init_residual=False).trunk
    x = trunk.maxpool(trunk.conv1(torch.rand(1, 3, side, side, device="meta")))
    found = []
    for stage in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
        x = stage(x)
        found.append(x.shape[2])
    assert found == sides


@pytest.mark.parametrize("name", RESNETS)
def test_zero_init_residual_zeroes_the_last_normalisation_of_each_block_and_no_other(name):
    encoder = build(name, 3, zero_init_residual=True)
    last = "bn3" if name == "resnet50" else "bn2"
    weights = {n: m.weight for n, m in encoder.named_modules() if isinstance(m, nn.BatchNorm2d)}
    zeroed = {n for n, weight in weights.items() if not weight.any()}
    assert zeroed == {n for n in weights if n.endswith(f".{last}")}
    assert len(zeroed) == (16 if name == "resnet50" else 8)


def test_without_zero_init_residual_every_normalisation_starts_with_weight_1():
    weights = [m.weight for m in build("resnet18", 3).modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((weight == 1).all() for weight in weights)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_convolution_of_a_resnet_starts_as_torchvisions_others(channels, stem):
    weight = build("resnet18", channels, stem=stem).trunk.conv1.weight
    assert_std(weight, math.sqrt(2 / (weight[0, 0].numel() * len(weight))))


def naive_sobel(x):
    """Gray, then both filters, pixel by pixel over an image with a border of zeros."""
    n, _, h, w = x.shape
    gray, out = F.pad(x.mean(1), (1, 1, 1, 1)), torch.zeros(n, 2, h, w)
    for r in range(h):
        for c in range(w):
            a = gray[:, r : r + 3, c : c + 3]
            out[:, 0, r, c] = a[:, 0, 0] + 2 * a[:, 1, 0] + a[:, 2, 0] - a[:, 0, 2] - 2 * a[:, 1, 2] - a[:, 2, 2]
            out[:, 1, r, c] = a[:, 0, 0] + 2 * a[:, 0, 1] + a[:, 0, 2] - a[:, 2, 0] - 2 * a[:, 2, 1] - a[:, 2, 2]
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_sobel_is_the_double_loop(channels):
    x = torch.rand(2, channels, 7, 5)
    assert Sobel(channels)(x).shape == (2, 2, 7, 5)
    torch.testing.assert_close(Sobel(channels)(x), naive_sobel(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_sobel_of_a_constant_image_is_0_in_the_interior(channels):
    out = Sobel(channels)(torch.full((1, channels, 6, 6), 0.3))
    assert out[:, :, 1:-1, 1:-1].abs().max() < 1e-6  # round-off of sums below 2
    assert (out[:, 0, :, 0].abs() > 0.1).all()  # the border is zeros


def test_sobel_has_a_state_and_no_parameters():
    assert list(Sobel(3).parameters()) == []
    assert set(Sobel(3).state_dict()) == {"gray", "filters"}


def test_sobel_sees_gray_only():
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(Sobel(3)(x), Sobel(3)(x.flip(1)))
    torch.testing.assert_close(Sobel(3)(x), Sobel(1)(x.mean(1, keepdim=True)))


LARGE = {
    "alexnet_bn": (6, [96, 256, 384, 384, 256]),
    "vgg16_bn": (7, [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]),
}


def convolutions(encoder):
    return [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("sobel", [True, False], ids=["sobel", "colour"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", LARGE)
def test_the_first_convolution_sees_two_filters_or_the_channels(name, channels, sobel):
    encoder = build(name, channels, sobel=sobel)
    assert convolutions(encoder)[0].in_channels == (2 if sobel else channels)
    assert encoder(rand(encoder, channels)).shape == (3, encoder.dim)


@pytest.mark.parametrize("name", LARGE)
def test_the_map_of_224_pixels_needs_no_pooling(name):
    side, widths = LARGE[name]
    encoder = on_meta(name, sobel=False, pooled=side, fc_width=4096)
    x = encoder.features(torch.rand(1, 3, 224, 224, device="meta"))
    assert x.shape == (1, widths[-1], side, side)
    assert pool_to(x, side) is x
    assert [c.out_channels for c in convolutions(encoder)] == widths


def test_vgg16_has_the_weights_of_torchvisions_without_its_classifier():
    with torch.device("meta"):
        theirs = models.vgg16_bn(weights=None)
    ours = on_meta("vgg16_bn", sobel=False, pooled=7, fc_width=4096)
    assert count(ours) == count(theirs) - count(theirs.classifier[-1]) == 138_365_992 - 4_097_000
    shapes = {k: t.shape for k, t in theirs.features.state_dict().items()}
    assert {k: t.shape for k, t in ours.features.state_dict().items()} == shapes


def test_alexnet_has_the_weights_that_its_filters_make():
    kernels = [(2, 96, 11), (96, 256, 5), (256, 384, 3), (384, 384, 3), (384, 256, 3)]
    # weights, one bias and the two of normalisation
    features = sum(i * o * k * k + 3 * o for i, o, k in kernels)
    linear = (256 * 36 + 1) * 4096 + (4096 + 1) * 4096
    assert count(on_meta("alexnet_bn", sobel=True, pooled=6, fc_width=4096)) == features + linear


def assert_std(weight, std):
    # the relative error of the std of n normal numbers is 1 / sqrt(2 n); five times that, and of a mean 1 / sqrt(n)
    n = weight.numel()
    assert abs(weight.std().item() / std - 1) < 5 / math.sqrt(2 * n)
    assert abs(weight.mean().item()) < 5 * std / math.sqrt(n)


@pytest.mark.parametrize("name", LARGE)
def test_the_first_weights_are_drawn_as_deepcluster_draws_them(name):
    encoder = build(name, 3, fc_width=64)
    for convolution in convolutions(encoder):
        side = convolution.kernel_size[0]
        assert_std(convolution.weight, math.sqrt(2 / (side * side * convolution.out_channels)))
        assert not convolution.bias.any()
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear):
            assert_std(layer.weight, 0.01)
            assert not layer.bias.any()
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()


@pytest.mark.parametrize("name", LARGE)
def test_normalisation_and_then_relu_follow_every_convolution(name):
    layers = list(build(name, 3).features)
    after = [layers[i + 1 : i + 3] for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    assert [[type(layer) for layer in pair] for pair in after] == [[nn.BatchNorm2d, nn.ReLU]] * len(LARGE[name][1])


@pytest.mark.parametrize("name", LARGE)
def test_h_is_fc7_before_its_relu(name):
    encoder = build(name, 3, fc_width=64).eval()
    h = encoder(rand(encoder, 3))
    assert h.min() < 0 < h.max()


DROPPED_INPUTS = {"alexnet_bn": 0.5, "vgg16_bn": 0.0}  # before fc6, in DeepCluster's released code


@pytest.mark.parametrize("name", LARGE)
def test_units_are_dropped_while_training_only(name):
    encoder = build(name, 3, fc_width=64)
    assert [m.p for m in encoder.modules() if isinstance(m, nn.Dropout)] == [DROPPED_INPUTS[name], 0.5]
    x = rand(encoder, 3)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


def test_pooling_averages_to_the_side_that_is_asked():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert pool_to(x, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pool_to(x, 1).item() == 7.5
    assert pool_to(x, 4) is x


@pytest.mark.parametrize("side", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 4), (7, 6), (13, 9)])
def test_pooling_equals_torchs_adaptive_pooling(shape, side):
    x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = torch.nn.functional.adaptive_avg_pool2d(x, side)
    torch.testing.assert_close(pool_to(x, side), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("blocks", "dim"), [(2, 8), (3, 16), (4, 32), (5, 32)])
def test_conv4_of_fewer_or_more_blocks_begins_as_the_one_of_four(blocks, dim):
    """dim is four numbers of the last width: 2 w, 4 w, 8 w, 8 w."""
    encoder = conv4(4, blocks=blocks)
    assert (len(encoder.layers()), encoder.dim) == (blocks, 4 * dim)
    first = conv4(4).blocks[0][0].weight
    assert torch.equal(encoder.blocks[0][0].weight, first)
    assert encoder(torch.rand(2, 1, 28, 28)).shape == (2, 4 * dim)
