"""Other people's checkpoints: every key given exactly once or an error, and nothing in a file is ever run."""

import argparse
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from bench.build import build_encoder
from bench.encoders import ENCODERS
from bench.weights import (
    GUIDE,
    LAYOUTS,
    TORCHVISION_CHILDREN,
    TORCHVISION_NAMES,
    WeightsError,
    check_layout,
    digest,
    encoder_state,
    flatten,
    read_weights,
)
from tests.test_encoders import OPTIONS

ROOT = Path(__file__).resolve().parents[1]
OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@cache
def small(name="resnet18", channels=3, seed=3, **options):
    """An encoder whose every state differs from its first one."""
    encoder = build_encoder({"name": name, "options": OPTIONS[name] | options}, channels, seed)
    generator = torch.Generator().manual_seed(seed)
    for tensor in encoder.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.01 * torch.rand(tensor.shape, generator=generator)
        else:
            tensor += 1
    return encoder.eval()


def torchvision_names(encoder):
    return {name.removeprefix("trunk."): tensor for name, tensor in encoder.state_dict().items()}


def named(encoder, prefix=""):
    return {prefix + name: tensor for name, tensor in torchvision_names(encoder).items()}


def numbered(encoder, prefix):
    numbers = {name: number for number, name in TORCHVISION_CHILDREN.items()}
    parts = ((name.partition("."), tensor) for name, tensor in torchvision_names(encoder).items())
    return {f"{prefix}{numbers[first]}.{others}": tensor for (first, _, others), tensor in parts}


def heads(*names):
    return {name: torch.zeros(2, 3) for name in names}


def wrong(encoder, prefix=""):
    """Another encoder, such as a momentum one, that must not be taken."""
    return {prefix + name: torch.full_like(tensor, 7) for name, tensor in torchvision_names(encoder).items()}


# One file or more for every layout, as its code writes them: heads, other branches and training state among the rest.
FILES = {
    "torchvision": [
        lambda e: named(e) | heads("fc.weight", "fc.bias"),
        lambda e: {"state_dict": named(e, "module.") | heads("module.fc.weight"), "best_acc1": torch.ones(())},
        lambda e: {"model": named(e), "optimizer": OPTIMIZER, "lr_scheduler": {"x": torch.ones(1)}, "epoch": 3},
    ],
    "moco": [
        lambda e: {
            "state_dict": named(e, "module.encoder_q.")
            | wrong(e, "module.encoder_k.")
            | heads("module.encoder_q.fc.0.weight", "module.encoder_k.fc.0.weight", "module.queue", "module.queue_ptr"),
            "optimizer": OPTIMIZER,
            "arch": "resnet50",
        },
        lambda e: {
            "state_dict": named(e, "module.base_encoder.")
            | wrong(e, "module.momentum_encoder.")
            | heads("module.base_encoder.fc.0.weight", "module.predictor.0.weight"),
            "scaler": {"scale": torch.ones(1)},
        },
    ],
    "simclr": [
        lambda e: {"state_dict": named(e, "backbone.") | heads("backbone.fc.0.weight", "backbone.fc.2.bias")},
        lambda e: named(e, "encoder.") | heads("projector.0.weight", "projector.2.weight"),
    ],
    "byol": [
        lambda e: (
            named(e, "online_encoder.net.")
            | named(e, "net.")
            | wrong(e, "target_encoder.net.")
            | heads("online_encoder.projector.0.weight", "online_encoder.net.fc.weight", "online_predictor.0.weight")
        ),
        lambda e: {
            "online_network_state_dict": numbered(e, "encoder.") | heads("projetion.net.0.weight"),
            "encoder_state_dict": numbered(e, ""),
            "target_network_state_dict": wrong(e, "encoder."),
            "optimizer_state_dict": OPTIMIZER,
        },
    ],
    "swav": [
        lambda e: named(e, "module.") | heads("module.projection_head.0.weight", "module.prototypes.weight"),
        lambda e: {"state_dict": named(e, "module.") | heads("module.prototypes.weight"), "amp": {"s": torch.ones(1)}},
    ],
    "barlow": [
        lambda e: named(e),
        lambda e: {
            "model": named(e, "module.backbone.") | heads("module.projector.0.weight", "module.bn.running_mean"),
            "optimizer": OPTIMIZER,
            "epoch": 3,
        },
    ],
    "simsiam": [
        lambda e: {
            "state_dict": named(e, "module.encoder.") | heads("module.encoder.fc.0.weight", "module.predictor.0.weight")
        },
    ],
    "dino": [
        lambda e: named(e),
        lambda e: {
            "teacher": named(e, "backbone.") | heads("head.mlp.0.weight", "head.last_layer.weight_v"),
            "student": wrong(e, "module.backbone.") | heads("module.head.mlp.0.weight"),
            "dino_loss": heads("center"),
            "optimizer": OPTIMIZER,
            "fp16_scaler": {"scale": torch.ones(1)},
        },
    ],
    "lightly": [
        lambda e: {
            "state_dict": named(e, "backbone.")
            | wrong(e, "backbone_momentum.")
            | heads("projection_head.layers.0.weight"),
            "optimizer_states": [OPTIMIZER],
            "pytorch-lightning_version": "2.0",
        },
        lambda e: {"state_dict": numbered(e, "backbone.") | heads("prediction_head.layers.0.weight", "criterion.bank")},
    ],
    "solo": [
        lambda e: {
            "state_dict": named(e, "backbone.")
            | wrong(e, "momentum_backbone.")
            | heads("projector.0.weight", "classifier.weight", "momentum_projector.0.weight", "queue", "queue_ptr"),
        },
        lambda e: {"state_dict": named(e, "encoder.") | heads("prototypes.weight")},
    ],
    "vissl": [
        lambda e: {
            "classy_state_dict": {
                "base_model": {
                    "model": {"trunk": named(e, "_feature_blocks."), "heads": heads("0.clf.0.weight")},
                    "meters": {"x": torch.ones(1)},
                },
                "optimizer": OPTIMIZER,
            },
            "iteration": 7,
        },
        lambda e: {"model_state_dict": named(e, "_feature_blocks.")},
    ],
    "bench": [
        lambda e: {f"encoder.{n}": t for n, t in e.state_dict().items()} | heads("projector.0.weight", "queue.ring"),
        lambda e: e.state_dict(),
    ],
}
CASES = [(layout, i) for layout, files in FILES.items() for i in range(len(files))]
STEM = {"solo": "imagenet"}


def write(path, content):
    torch.save(content, path)
    return path


def mapped(path, layout, encoder, name="resnet18"):
    return encoder_state(read_weights(path), layout, name, encoder.state_dict())


def test_every_layout_has_a_file_here():
    assert FILES.keys() == LAYOUTS.keys()


@pytest.mark.parametrize(("layout", "i"), CASES)
def test_an_encoder_comes_back_bit_for_bit_from_a_file_of_every_layout(tmp_path, layout, i):
    stem = STEM.get(layout, "small")
    encoder, fresh = (
        small(stem=stem),
        build_encoder({"name": "resnet18", "options": OPTIONS["resnet18"] | {"stem": stem}}, 3, 0),
    )
    path = write(tmp_path / "x.pth.tar", FILES[layout][i](encoder))
    fresh.load_state_dict(mapped(path, layout, fresh))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(x), encoder(x))
    assert digest(fresh.state_dict()) == digest(encoder.state_dict())


@pytest.mark.parametrize(("layout", "i"), CASES)
def test_a_key_that_is_missing_is_an_error_in_every_layout(layout, i):
    encoder = small()
    weights = dict(flatten(FILES[layout][i](encoder)))
    ours = [name for name, tensor in weights.items() if tensor.shape == (64,) and (tensor != 7).all()]
    first = next(name for name in ours if name.endswith(("bn1.weight", "1.weight")))
    same = {
        name
        for name in weights
        if weights[name].data_ptr() == weights[first].data_ptr() and not name.startswith("net.")
    }
    with pytest.raises(WeightsError, match=r"1 of the encoder's 120 keys .*bn1\.weight[\s\S]*may hold: "):
        encoder_state({n: t for n, t in weights.items() if n not in same}, layout, "resnet18", encoder.state_dict())


@pytest.mark.parametrize(("layout", "i"), CASES)
def test_a_key_that_nothing_asks_for_is_an_error_in_every_layout(layout, i):
    encoder, content = small(), FILES[layout][i](small())
    if layout == "bench" and i == 0:
        content["encoder.trunk.layer9.weight"] = torch.ones(1)  # beside the encoder a method may keep what it likes
    else:
        content["layer9.weight"] = torch.ones(1)
    with pytest.raises(WeightsError, match=r"1 keys of the file have no place in the encoder: \S*layer9\.weight"):
        encoder_state(dict(flatten(content)), layout, "resnet18", encoder.state_dict())


def test_an_extra_key_among_the_encoders_own_is_an_error():
    encoder = small()
    weights = named(encoder, "state_dict/module.encoder_q.") | heads("state_dict/module.encoder_q.layer5.0.weight")
    with pytest.raises(WeightsError, match=r"layer5\.0\.weight[\s\S]*<encoder>\.fc\.\*, encoder_k\.\*"):
        encoder_state(weights, "moco", "resnet18", encoder.state_dict())


def test_at_most_five_keys_of_a_kind_are_listed():
    encoder = small()
    with pytest.raises(WeightsError, match="100 of the encoder's 120") as caught:
        encoder_state(heads(*(f"x{i}" for i in range(9))), "torchvision", "resnet18", encoder.state_dict())
    assert "x4 and 4 more" in str(caught.value)
    assert "x5" not in str(caught.value)


@pytest.mark.parametrize("content", [{"fc.weight": torch.ones(2)}, {"state_dict": {"module.fc.weight": torch.ones(2)}}])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_without_an_encoder_never_leaves_a_random_one(tmp_path, layout, content):
    encoder = small()
    with pytest.raises(WeightsError, match="of the encoder's 120 keys are not given"):
        mapped(write(tmp_path / "x.pth", content), layout, encoder)


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"moco"}))
def test_another_layout_than_the_files_is_an_error(layout):
    with pytest.raises(WeightsError):
        encoder_state(dict(flatten(FILES["moco"][0](small()))), layout, "resnet18", small().state_dict())


def test_another_depth_than_the_files_is_an_error(tmp_path):
    path = write(tmp_path / "x.pth", named(small()))
    deep = build_encoder({"name": "resnet50", "options": OPTIONS["resnet50"]}, 3, 0)
    with pytest.raises(WeightsError, match="not a resnet50 in layout torchvision"):
        mapped(path, "torchvision", deep, "resnet50")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:, :, :1], r"conv1\.weight has shape \(64, 3, 1, 3\), the encoder's \(64, 3, 3, 3\)"),
        (lambda t: t[:, :1], r"it sees 1 channels, the images have 3"),
        (lambda t: t * torch.nan, "conv1.weight holds values that are not finite"),
        (lambda t: (100 * t).to(torch.int8), r"conv1\.weight is of torch\.int8"),
    ],
    ids=["shape", "channels", "not_finite", "quantised"],
)
def test_a_tensor_that_does_not_fit_is_an_error(change, message):
    encoder = small()
    weights = named(encoder)
    weights["conv1.weight"] = change(weights["conv1.weight"])
    with pytest.raises(WeightsError, match=f"1 keys do not fit: .*{message}"):
        encoder_state(weights, "torchvision", "resnet18", encoder.state_dict())


def test_a_key_given_twice_is_an_error():
    encoder = small()
    for weights in (
        named(encoder) | heads("module.conv1.weight"),
        numbered(encoder, "encoder.") | named(encoder, "encoder."),
    ):
        with pytest.raises(WeightsError):
            encoder_state(weights, "byol", "resnet18", encoder.state_dict())


def test_a_half_precision_file_becomes_single_precision():
    encoder = small()
    halves = {name: t.half() if t.is_floating_point() else t for name, t in named(encoder).items()}
    state = encoder_state(halves, "torchvision", "resnet18", encoder.state_dict())
    assert state["trunk.conv1.weight"].dtype == torch.float32
    assert torch.equal(state["trunk.conv1.weight"], encoder.state_dict()["trunk.conv1.weight"].half().float())


def test_counts_of_batches_may_be_absent():
    encoder = small()
    without = {name: t for name, t in named(encoder).items() if not name.endswith("num_batches_tracked")}
    state = encoder_state(without, "torchvision", "resnet18", encoder.state_dict())
    assert state["trunk.bn1.num_batches_tracked"] == 0
    assert state.keys() == encoder.state_dict().keys()


def random_statistics(model):
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + (0.5 if name.endswith("var") else 0))
    return model.eval()


def test_torchvisions_resnet18_gives_torchvisions_features():
    torch.manual_seed(0)
    theirs = random_statistics(resnet18())
    ours = build_encoder({"name": "resnet18", "options": {"stem": "imagenet", "zero_init_residual": False}}, 3, 0)
    ours.load_state_dict(encoder_state(theirs.state_dict(), "torchvision", "resnet18", ours.state_dict()))
    theirs.fc = torch.nn.Identity()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_lightlys_own_resnet_gives_its_features():
    from lightly.models.resnet import ResNetGenerator

    torch.manual_seed(0)
    whole = random_statistics(ResNetGenerator("resnet-18"))
    theirs = torch.nn.Sequential(*list(whole.children())[:-1], torch.nn.AdaptiveAvgPool2d(1))
    weights = {f"state_dict/backbone.{name}": tensor for name, tensor in theirs.state_dict().items()}
    ours = build_encoder({"name": "resnet18", "options": OPTIONS["resnet18"]}, 3, 0)
    ours.load_state_dict(encoder_state(weights, "lightly", "resnet18", ours.state_dict()))
    x, h = torch.rand(2, 3, 32, 32), torch.relu
    with torch.no_grad():
        conv, norm, *stages, pool = theirs
        wanted = h(norm(conv(x)))
        for stage in stages:
            wanted = stage(wanted)
        torch.testing.assert_close(ours.eval()(x), pool(wanted).flatten(1), rtol=1e-5, atol=1e-6)


def test_torchvisions_vgg16_bn_names_lead_to_ours():
    with torch.device("meta"):
        from torchvision.models import vgg16_bn

        theirs = {name: tensor.shape for name, tensor in vgg16_bn().state_dict().items()}
        options = {"sobel": False, "pooled": 7, "fc_width": 4096}
        ours = build_encoder({"name": "vgg16_bn", "options": options}, 3, 0).state_dict()
    names = TORCHVISION_NAMES["vgg16_bn"]
    lead = {o + n.removeprefix(t): shape for n, shape in theirs.items() for t, o in names.items() if n.startswith(t)}
    assert lead == {name: tensor.shape for name, tensor in ours.items()}
    assert [name for name in theirs if not name.startswith(tuple(names))] == [
        "classifier.6.weight",
        "classifier.6.bias",
    ]


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_read_in_our_own_layout(name):
    encoder = build_encoder({"name": name, "options": OPTIONS[name]}, 1, 5)
    weights = {f"encoder.{n}": t for n, t in encoder.state_dict().items()} | heads("anything")
    assert digest(encoder_state(weights, "bench", name, encoder.state_dict())) == digest(encoder.state_dict())


@pytest.mark.parametrize(
    ("layout", "name", "options", "message"),
    [
        ("mocco", "resnet18", {}, "unknown layout 'mocco'; did you mean 'moco'?"),
        ("moco", "conv4", {}, "which lead to resnet18, resnet50, vgg16_bn; for conv4 there is bench"),
        ("solo", "resnet18", {"stem": "small"}, "has equal keys but is another function"),
    ],
)
def test_a_layout_that_cannot_be_meant_is_told_from_names_alone(layout, name, options, message):
    assert message in check_layout(layout, {"name": name, "options": options})
    assert check_layout("bench", {"name": name, "options": options}) is None


def test_safetensors_and_numpy_files_are_read(tmp_path):
    encoder = small()
    save_file(named(encoder), tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", **{name: tensor.numpy() for name, tensor in named(encoder).items()})
    torch.save(named(encoder), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    wanted = digest(encoder.state_dict())
    for name in ("x.safetensors", "x.npz", "old.pth"):
        assert digest(mapped(tmp_path / name, "torchvision", encoder)) == wanted


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".pth.tar"])
def test_code_in_a_file_is_refused_and_never_run(tmp_path, suffix, zipped):
    mark, path = tmp_path / "ran", tmp_path / f"x{suffix}"
    content = named(small()) | {"extra": Malicious(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"posix\.system") as caught:
        read_weights(path)
    assert GUIDE in str(caught.value)
    assert not mark.exists()


def test_code_in_a_numpy_file_is_refused_and_never_run(tmp_path):
    mark = tmp_path / "ran"
    np.savez(tmp_path / "x.npz", a=np.array([Malicious(mark)], dtype=object))
    with pytest.raises(WeightsError, match="cannot be read as NumPy arrays"):
        read_weights(tmp_path / "x.npz")
    assert not mark.exists()


def test_an_object_beside_the_tensors_is_refused_by_name(tmp_path):
    path = write(
        tmp_path / "x.pth", {"student": {}, "args": argparse.Namespace(lr=1), "when": os.stat_result(range(10))}
    )
    with pytest.raises(WeightsError, match=r"holds argparse\.Namespace, os\.stat_result"):
        read_weights(path)


def test_the_guides_lines_convert_what_was_refused(tmp_path):
    encoder = small()
    path = write(tmp_path / "x.pth", FILES["dino"][1](encoder) | {"args": argparse.Namespace(lr=1)})
    with pytest.raises(WeightsError, match="convert it once"):
        read_weights(path)
    code = (ROOT / GUIDE).read_text().split("```python\n")[1].split("```")[0]
    code = code.replace('"theirs.pth"', repr(str(path))).replace('"converted.pth"', repr(str(tmp_path / "y.pth")))
    exec(code, {})
    assert digest(mapped(tmp_path / "y.pth", "dino", encoder)) == digest(encoder.state_dict())


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.npz"])
@pytest.mark.parametrize("content", [b"", b"junk" * 10, None], ids=["empty", "junk", "cut"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content):
    path = tmp_path / name
    if content is None:
        torch.save(named(small()), path)
        content = path.read_bytes()[:1000]
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name} cannot be read as"):
        read_weights(path)


def test_a_file_that_is_not_there_or_holds_no_tensors_is_named(tmp_path):
    with pytest.raises(WeightsError, match="no checkpoint"):
        read_weights(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="holds no tensor"):
        read_weights(write(tmp_path / "x.pth", {"epoch": 3, "acc": [1.0]}))


def test_the_digest_tells_names_types_shapes_and_values_apart():
    a = {"a": torch.zeros(2, 3)}
    others = [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3).int()},
        {"a": torch.ones(2, 3)},
    ]
    assert len({digest(state) for state in [a, *others]}) == 5
    assert digest(a) == digest({"a": torch.zeros(3, 2).T})


def test_the_guide_names_every_layout():
    text = (ROOT / GUIDE).read_text()
    assert [name for name in LAYOUTS if f"| `{name}` |" not in text] == []
