"""Layers: which maps are probed, how they are pooled, and that looking at them leaves nothing behind."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from bench.encoders.alexnet_bn import AlexNetBN
from bench.encoders.base import Encoder
from bench.encoders.conv4 import Conv4
from bench.encoders.layers import numbered, pool_to
from bench.encoders.resnet18 import ResNet18
from bench.evaluators.base import EvaluationData, Labelled, top1
from bench.evaluators.knn import knn_predict
from bench.evaluators.layers import chroma, evaluate
from bench.evaluators.linear import fit_path
from bench.evaluators.penalties import Rows, accuracy, choose_and_refit
from bench.evaluators.svm import fit_svm
from bench.features import Trained, extract

EQUAL = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32, another kernel for another memory layout


def pictures(n, side, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, side, side, channels), generator=generator).byte()


def settled(encoder, side, channels):
    """An encoder whose running statistics are not those of a new one."""
    torch.manual_seed(3)
    with torch.no_grad():
        for _ in range(3):
            encoder.train()(torch.rand(8, channels, side, side))
    return encoder.eval()


def conv4(channels=1):
    torch.manual_seed(0)
    return settled(Conv4(channels, width=2, blocks=4, stem_stride=2, sobel=False), 28, channels)


def resnet18():
    torch.manual_seed(0)
    return settled(ResNet18(3, stem="small", zero_init_residual=False), 16, 3)


def alexnet():
    torch.manual_seed(0)
    return settled(AlexNetBN(3, sobel=True, pooled=1, fc_width=8), 67, 3)


class Overwriting(Encoder):
    """Layers whose outputs the next ones change in place, after which they do not look as they did."""

    def __init__(self):
        super().__init__()
        parts = [nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Hardtanh(-0.01, 0.01, inplace=True)]
        self.parts, self.dim = nn.Sequential(*parts), 4

    def forward(self, x):
        return self.parts(x).mean((2, 3))

    def layers(self):
        return numbered([self.parts[0], self.parts[2]])


ENCODERS = {"conv4": (conv4, 28, 1), "resnet18": (resnet18, 16, 3), "alexnet": (alexnet, 67, 3)}
encoders = pytest.mark.parametrize(("build", "side", "channels"), ENCODERS.values(), ids=ENCODERS)


def in_layout(images):
    """Floats in [0, 1], in the memory layout in which bench embeds images."""
    return images.permute(0, 3, 1, 2).float() / 255


def by_hand_conv4(encoder, x):
    maps = []
    for block in encoder.blocks:
        convolution, norm, _ = block
        x = torch.relu(norm(convolution(x)))
        maps.append(x)
    return maps


def by_hand_resnet18(encoder, x):
    trunk, maps = encoder.trunk, []
    x = torch.relu(trunk.bn1(trunk.conv1(x)))
    maps.append(x)
    for stage in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
        for block in stage:
            y = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
            x = torch.relu(y + (x if block.downsample is None else block.downsample(x)))
        maps.append(x)
    return maps


def by_hand_alexnet(encoder, x):
    x, maps = encoder.sobel(x), []
    for part in encoder.features:
        if isinstance(part, nn.ReLU):
            x = torch.relu(x)
            maps.append(x)
        else:
            x = part(x)
    return maps


BY_HAND = {conv4: by_hand_conv4, resnet18: by_hand_resnet18, alexnet: by_hand_alexnet}


# ---- features


@encoders
@torch.no_grad()
def test_features_of_each_layer_equal_a_forward_by_hand(build, side, channels):
    encoder, images = build(), pictures(4, side, channels)
    maps = BY_HAND[build](encoder, in_layout(images))
    given = Trained(encoder)
    assert [place for place in given.places if place.startswith("layer")] == [f"layer{i + 1}" for i in range(len(maps))]
    for i, wanted in enumerate(maps, 1):
        x = given.features(images, f"layer{i}")
        torch.testing.assert_close(x, wanted.flatten(1), **CLOSE)
        assert x.min() >= 0  # after the ReLU
        assert (x == 0).any()
        assert (x > 0).any()


@encoders
@pytest.mark.parametrize("dimensions", [1, 50, 600, 10**6])
@torch.no_grad()
def test_a_layers_map_is_pooled_to_a_square_of_its_channels(build, side, channels, dimensions):
    encoder, images = build(), pictures(3, side, channels)
    given = Trained(encoder)
    for i, whole in enumerate(BY_HAND[build](encoder, in_layout(images)), 1):
        x = given.features(images, f"layer{i}", dimensions)
        pooled = round((x.shape[1] / whole.shape[1]) ** 0.5)
        assert x.shape[1] == whole.shape[1] * pooled**2
        assert 1 <= pooled <= whole.shape[2]
        # the nearest side, unless the map is smaller than that
        assert pooled == min(max(1, round((dimensions / whole.shape[1]) ** 0.5)), whole.shape[2])
        # torch's own adaptive pooling, in another order of summation
        torch.testing.assert_close(x, nn.functional.adaptive_avg_pool2d(whole, pooled).flatten(1), **CLOSE)


# Zhang et al., 1611.09842, and DeepCluster's released code: AlexNet's maps, pooled for linear classifiers.
PAPERS = {
    "conv1": (96, 10, 9600),
    "conv2": (256, 6, 9216),
    "conv3": (384, 5, 9600),
    "conv4": (384, 5, 9600),
    "conv5": (256, 6, 9216),
}


class Map(Encoder):
    """One layer: the image, repeated to so many channels."""

    def __init__(self, channels):
        super().__init__()
        self.layer, self.dim = nn.Conv2d(1, channels, 1, bias=False), channels

    def forward(self, x):
        return self.layer(x).mean((2, 3))

    def layers(self):
        return numbered([self.layer])


@pytest.mark.parametrize(("channels", "pooled", "numbers"), PAPERS.values(), ids=PAPERS)
@pytest.mark.parametrize("side", [10, 11, 27, 55])
def test_nine_thousand_dimensions_are_the_papers_numbers(channels, pooled, numbers, side):
    x = Trained(Map(channels)).features(pictures(2, side), "layer1", 9000)
    assert x.shape[1] == numbers == channels * pooled**2


def test_alexnet_at_the_papers_size_has_the_papers_numbers():
    """224 pixels give maps of 55, 27 and 13 a side, all large enough."""
    encoder = alexnet()
    given = Trained(encoder)
    images = pictures(1, 224, 3)
    sizes = [given.features(images, place, 9000).shape[1] for place in encoder.layers()]
    assert sizes == [numbers for _, _, numbers in PAPERS.values()]


def test_maps_smaller_than_asked_for_are_left_whole():
    given = Trained(Map(96))
    x = given.features(pictures(2, 7), "layer1", 9000)
    torch.testing.assert_close(x, given.features(pictures(2, 7), "layer1"), **EQUAL)
    assert x.shape[1] == 96 * 49


@torch.no_grad()
def test_layers_are_as_they_were_before_later_ones_changed_them_in_place():
    torch.manual_seed(0)
    encoder = Overwriting().eval()
    images = pictures(3, 9)
    x = in_layout(images)
    first = encoder.parts[0](x)
    second = encoder.parts[2](torch.relu(first))
    given = Trained(encoder)
    torch.testing.assert_close(given.features(images, "layer1"), first.flatten(1), **CLOSE)
    torch.testing.assert_close(given.features(images, "layer2"), second.flatten(1), **CLOSE)
    assert (first < 0).any()  # which a ReLU in place has overwritten by the end
    assert (second.abs() > 0.01).any()


@torch.no_grad()
def test_z_is_the_projection_of_the_encoders_h_in_eval_mode():
    encoder, images = conv4(), pictures(5, 28)
    torch.manual_seed(1)
    projector = nn.Sequential(nn.Linear(encoder.dim, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 4)).train()
    projector(torch.rand(20, encoder.dim))
    evaluated = copy.deepcopy(projector).eval()
    wanted = evaluated(encoder(in_layout(images)))
    for mode in (True, False):
        given = Trained(encoder.train(mode), projector=projector.train(mode))
        torch.testing.assert_close(given.features(images, "z"), wanted, **EQUAL)
        assert {part.training for part in [*encoder.modules(), *projector.modules()]} == {mode}
    for key, value in projector.state_dict().items():
        assert torch.equal(value, evaluated.state_dict()[key]), key


def test_features_do_not_depend_on_the_mode_that_the_encoder_is_in():
    encoder, images = conv4(), pictures(5, 28)
    for place in Trained(encoder).places:
        wanted = Trained(encoder.eval()).features(images, place, 50)
        assert torch.equal(Trained(encoder.train()).features(images, place, 50), wanted)


@pytest.mark.parametrize(
    ("given", "place", "allowed"),
    [
        pytest.param(Trained(conv4()), "layer5", "h, layer1, layer2, layer3, layer4", id="no_such_layer"),
        pytest.param(Trained(conv4()), "z", "h, layer1, layer2, layer3, layer4", id="no_projection"),
        pytest.param(Trained(None), "layer1", "h$", id="raw_pixels_have_no_layers"),
        pytest.param(Trained(None), "", "h$", id="no_name"),
    ],
)
def test_a_place_that_is_not_there_is_an_error_that_names_those_that_are(given, place, allowed):
    with pytest.raises(ValueError, match=f"features at '{place}' are not there; allowed: {allowed}"):
        given.features(pictures(2, 28), place)


# ---- hooks


def hooks(encoder):
    """All hooks of all modules."""
    return [
        hook
        for part in encoder.modules()
        for hook in [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
    ]


@encoders
def test_no_hook_is_left_behind(build, side, channels):
    encoder = build()
    given = Trained(encoder)
    for place in given.places:
        given.features(pictures(2, side, channels), place, 50)
        assert hooks(encoder) == []


def test_no_hook_is_left_behind_where_a_forward_fails():
    encoder = conv4()
    with pytest.raises(RuntimeError, match="channels"):
        Trained(encoder).features(pictures(2, 28, 3), "layer2")
    assert hooks(encoder) == []

    def fail(*_):
        raise KeyboardInterrupt

    own = encoder.blocks[3].register_forward_hook(fail)  # after layer2 has been seen
    with pytest.raises(KeyboardInterrupt):
        Trained(encoder).features(pictures(2, 28), "layer2")
    assert hooks(encoder) == [fail]
    own.remove()


def test_a_hook_of_someone_else_stays():
    encoder, seen = conv4(), []
    encoder.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    Trained(encoder).features(pictures(2, 28), "layer2")
    assert len(hooks(encoder)) == len(seen) == 1


# ---- the protocol

OPTIONS = {
    "dimensions": 40,
    "l2_low": 1e-2,
    "l2_high": 1e1,
    "l2_count": 4,
    "tolerance": 1e-6,
    "k": 3,
    "temperature": 0.1,
}


def labelled(n, seed):
    """Noise with one of three brighter corners, which is the class."""
    images, labels = pictures(n, 12, 1, seed) // 2, torch.arange(n) % 3
    for c, (a, b) in enumerate(((0, 0), (0, 6), (6, 6))):
        images[labels == c, a : a + 6, b : b + 6] += 40
    return Labelled(images, labels)


@pytest.fixture(scope="module")
def data():
    return EvaluationData(labelled(45, 0), labelled(24, 1), labelled(30, 2), 3)


@pytest.fixture(scope="module")
def given():
    encoder = conv4()
    return Trained(encoder, projector=nn.Linear(encoder.dim, 4))


def test_every_layer_is_judged_by_every_classifier_the_deepest_first(given, data):
    places = [place for place in given.places if place.startswith("layer")]
    assert places == ["layer1", "layer2", "layer3", "layer4"]
    wanted = [f"{model}_{place}" for place in reversed(places) for model in ("linear", "svm", "knn")]
    metrics = evaluate(given, data, seed=0, **OPTIONS).metrics
    assert [name for name in metrics if not name.endswith(("_l2", "_validation"))] == wanted
    told = {name.removesuffix("_l2") for name in metrics if name.endswith("_l2")}
    assert told == {name for name in wanted if not name.startswith("knn")}


def test_numbers_equal_the_classifiers_on_pooled_maps(given, data):
    metrics = evaluate(given, data, seed=0, **OPTIONS).metrics
    path = [1e-2, 1e-1, 1e0, 1e1]

    def fits():
        yield "linear", partial(fit_path, classes=3, tolerance=1e-6)
        yield "svm", partial(fit_svm, classes=3, tolerance=1e-6)

    for i, module in enumerate(given.encoder.blocks, 1):
        upto = nn.Sequential(*given.encoder.blocks[: i - 1], module)
        side = round((40 / (2 * 2 ** (i - 1))) ** 0.5)  # of the pooled map: 4, 3, 2, 2, where maps are 6, 3, 2, 2

        def features(part, upto=upto, side=side):
            x = extract(upto, part.images)
            return pool_to(x, min(side, x.shape[2])).flatten(1).double()

        train, validation, query, bank = map(features, (data.train, data.validation, data.query, data.fitted))
        for name, fit in fits():
            found = choose_and_refit(
                fit, Rows(train, data.train.labels), Rows(validation, data.validation.labels), path, accuracy
            )
            wanted = accuracy(query @ found.weights + found.bias, data.query.labels)
            assert metrics[f"{name}_layer{i}"] == wanted
        predicted = knn_predict(bank, data.fitted.labels, query, 3, 0.1, 3)
        assert metrics[f"knn_layer{i}"] == top1(predicted, data.query.labels)


def test_what_one_layer_says_does_not_depend_on_the_projection(given, data):
    bare = Trained(given.encoder)
    assert evaluate(bare, data, seed=0, **OPTIONS).metrics == evaluate(given, data, seed=0, **OPTIONS).metrics


def test_chroma_is_0_for_filters_that_see_brightness_alone_1_where_they_cancel_on_gray_and_adds_by_energy():
    gray = torch.randn(4, 1, 3, 3).expand(4, 3, 3, 3)
    opposed = torch.randn(4, 1, 3, 3) * torch.tensor([1.0, -0.5, -0.5])[:, None, None]
    assert chroma(gray) == pytest.approx(0, abs=1e-12)
    assert chroma(opposed) == pytest.approx(1)
    mixed = torch.cat([gray, opposed])
    energies = [x.double().square().sum().item() for x in (gray, opposed)]
    assert chroma(mixed) == pytest.approx(energies[1] / sum(energies))


def test_independent_filters_have_two_thirds_of_their_energy_in_colour():
    torch.manual_seed(0)
    assert chroma(torch.randn(2000, 3, 3, 3)) == pytest.approx(2 / 3, abs=0.01)
